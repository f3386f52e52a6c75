"""Sensitivity estimators: what quantizing one layer does to the network's loss, as a table."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "mpsearch.sensitivity":
    raise ImportError(
        f"{__name__!r} is the source of 'mpsearch.sensitivity': import it by that name"
    )

if TYPE_CHECKING:
    from mpsearch.sensitivity.calibrated import Calibrated
    from mpsearch.sensitivity.coverage import Coverage
    from mpsearch.sensitivity.entropy import Entropy
    from mpsearch.sensitivity.experts import McMoe
    from mpsearch.sensitivity.fisher import Fisher
    from mpsearch.sensitivity.granular import Granular
    from mpsearch.sensitivity.hessian_eig import HessianEig
    from mpsearch.sensitivity.hessian_trace import HessianTrace
    from mpsearch.sensitivity.interactions import Interactions
    from mpsearch.sensitivity.jsd import JSD
    from mpsearch.sensitivity.kl import KL
    from mpsearch.sensitivity.lim import Lim
    from mpsearch.sensitivity.loss import Loss
    from mpsearch.sensitivity.lrp import LRP
    from mpsearch.sensitivity.metric_decoupled import MetricDecoupled
    from mpsearch.sensitivity.mse import MSE
    from mpsearch.sensitivity.noise import Noise
    from mpsearch.sensitivity.salience import Salience
    from mpsearch.sensitivity.sqnr import SQNR
    from mpsearch.sensitivity.ssim import SSIM
    from mpsearch.sensitivity.taylor import Taylor
    from mpsearch.sensitivity.weight_error import WeightError
    from mpsearch.sensitivity.zd import Zd
    from mpsearch.sensitivity.zero_cost import ZeroCost
    from mpsearch.sensitivity.zeroq import ZeroQ
else:
    _modules = {
        "Calibrated": "calibrated",
        "Coverage": "coverage",
        "Entropy": "entropy",
        "Fisher": "fisher",
        "Granular": "granular",
        "HessianEig": "hessian_eig",
        "HessianTrace": "hessian_trace",
        "Interactions": "interactions",
        "JSD": "jsd",
        "KL": "kl",
        "Lim": "lim",
        "Loss": "loss",
        "LRP": "lrp",
        "McMoe": "experts",
        "MetricDecoupled": "metric_decoupled",
        "MSE": "mse",
        "Noise": "noise",
        "Salience": "salience",
        "SQNR": "sqnr",
        "SSIM": "ssim",
        "Taylor": "taylor",
        "WeightError": "weight_error",
        "Zd": "zd",
        "ZeroCost": "zero_cost",
        "ZeroQ": "zeroq",
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
    "SSIM",
    "Calibrated",
    "Coverage",
    "Entropy",
    "Fisher",
    "Granular",
    "HessianEig",
    "HessianTrace",
    "Interactions",
    "Lim",
    "Loss",
    "McMoe",
    "MetricDecoupled",
    "Noise",
    "Salience",
    "Taylor",
    "WeightError",
    "Zd",
    "ZeroCost",
    "ZeroQ",
]
