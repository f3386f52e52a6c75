"""Solvers: one option per layer with the least total loss within every budget."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "mpsearch.solvers":
    raise ImportError(f"{__name__!r} is the source of 'mpsearch.solvers': import it by that name")

if TYPE_CHECKING:
    from mpsearch.solvers.exhaustive import Exhaustive
    from mpsearch.solvers.milp import Milp
else:
    _modules = {"Exhaustive": "exhaustive", "Milp": "milp"}

    def __getattr__(name: str) -> object:
        if name not in _modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_modules[name]}"), name)


__all__ = ["Exhaustive", "Milp"]
