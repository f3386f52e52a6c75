"""Sensitivity estimators: what quantizing one layer does to the network's loss, as a table."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "mpsearch.sensitivity":
    raise ImportError(
        f"{__name__!r} is the source of 'mpsearch.sensitivity': import it by that name"
    )

if TYPE_CHECKING:
    from mpsearch.sensitivity.coverage import Coverage
    from mpsearch.sensitivity.entropy import Entropy
    from mpsearch.sensitivity.fisher import Fisher
    from mpsearch.sensitivity.hessian_eig import HessianEig
    from mpsearch.sensitivity.hessian_trace import HessianTrace
    from mpsearch.sensitivity.interactions import Interactions
    from mpsearch.sensitivity.jsd import JSD
    from mpsearch.sensitivity.kl import KL
    from mpsearch.sensitivity.lim import Lim
    from mpsearch.sensitivity.loss import Loss
    from mpsearch.sensitivity.lrp import LRP
    from mpsearch.sensitivity.mse import MSE
    from mpsearch.sensitivity.noise import Noise
    from mpsearch.sensitivity.salience import Salience
    from mpsearch.sensitivity.sqnr import SQNR
    from mpsearch.sensitivity.taylor import Taylor
    from mpsearch.sensitivity.weight_error import WeightError
    from mpsearch.sensitivity.zd import Zd
    from mpsearch.sensitivity.zero_cost import ZeroCost
else:
    _modules = {
        "Coverage": "coverage",
        "Entropy": "entropy",
        "Fisher": "fisher",
        "HessianEig": "hessian_eig",
        "HessianTrace": "hessian_trace",
        "Interactions": "interactions",
        "JSD": "jsd",
        "KL": "kl",
        "Lim": "lim",
        "Loss": "loss",
        "LRP": "lrp",
        "MSE": "mse",
        "Noise": "noise",
        "Salience": "salience",
        "SQNR": "sqnr",
        "Taylor": "taylor",
        "WeightError": "weight_error",
        "Zd": "zd",
        "ZeroCost": "zero_cost",
    }

    def __getattr__(name: str) -> object:
        if name not in _modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_modules[name]}"), name)


__all__ = [
    "JSD",
    "KL",
    "LRP",
    "MSE",
    "SQNR",
    "Coverage",
    "Entropy",
    "Fisher",
    "HessianEig",
    "HessianTrace",
    "Interactions",
    "Lim",
    "Loss",
    "Noise",
    "Salience",
    "Taylor",
    "WeightError",
    "Zd",
    "ZeroCost",
]
