"""Sensitivity estimators: what quantizing one layer does to the network's loss, as a table."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "mpsearch.sensitivity":
    raise ImportError(
        f"{__name__!r} is the source of 'mpsearch.sensitivity': import it by that name"
    )

if TYPE_CHECKING:
    from mpsearch.sensitivity.hessian_trace import HessianTrace
    from mpsearch.sensitivity.kl import KL
    from mpsearch.sensitivity.weight_error import WeightError
else:
    _modules = {"HessianTrace": "hessian_trace", "KL": "kl", "WeightError": "weight_error"}

    def __getattr__(name: str) -> object:
        if name not in _modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_modules[name]}"), name)


__all__ = ["KL", "HessianTrace", "WeightError"]
