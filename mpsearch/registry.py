"""Names of estimators, hardware models, solvers and the rest, ours and those of installed packages.

Ours are data: a name and the ``module:attribute`` it stands for, imported when asked for. A third
party's are entry points of the group ``mpsearch.<kind>``; they do not replace ours.
"""

import importlib
from dataclasses import MISSING, Field
from importlib.metadata import entry_points
from typing import Any

_OURS: dict[str, dict[str, str]] = {
    "sensitivity": {
        "kl": "mpsearch.sensitivity.kl:KL",
        "jsd": "mpsearch.sensitivity.jsd:JSD",
        "loss": "mpsearch.sensitivity.loss:Loss",
        "mse": "mpsearch.sensitivity.mse:MSE",
        "sqnr": "mpsearch.sensitivity.sqnr:SQNR",
        "hessian-trace": "mpsearch.sensitivity.hessian_trace:HessianTrace",
        "hessian-eig": "mpsearch.sensitivity.hessian_eig:HessianEig",
        "fisher": "mpsearch.sensitivity.fisher:Fisher",
        "taylor": "mpsearch.sensitivity.taylor:Taylor",
        "lrp": "mpsearch.sensitivity.lrp:LRP",
        "salience": "mpsearch.sensitivity.salience:Salience",
        "entropy": "mpsearch.sensitivity.entropy:Entropy",
        "noise": "mpsearch.sensitivity.noise:Noise",
        "lim": "mpsearch.sensitivity.lim:Lim",
        "zd": "mpsearch.sensitivity.zd:Zd",
        "zero-cost": "mpsearch.sensitivity.zero_cost:ZeroCost",
        "weight-error": "mpsearch.sensitivity.weight_error:WeightError",
        "interactions": "mpsearch.sensitivity.interactions:Interactions",
        "coverage": "mpsearch.sensitivity.coverage:Coverage",
        "metric-decoupled": "mpsearch.sensitivity.metric_decoupled:MetricDecoupled",
        "calibrated": "mpsearch.sensitivity.calibrated:Calibrated",
        "granular": "mpsearch.sensitivity.granular:Granular",
        "mc-moe": "mpsearch.sensitivity.experts:McMoe",
    },
    "data": {"zeroq": "mpsearch.sensitivity.zeroq:ZeroQ"},
    "hwmodels": {
        "size": "mpsearch.hwmodels.size:Size",
        "bitops": "mpsearch.hwmodels.bitops:BitOps",
        "ace": "mpsearch.hwmodels.ace:Ace",
        "energy": "mpsearch.hwmodels.energy:Energy",
        "fpga": "mpsearch.hwmodels.fpga:Fpga",
        "lookup": "mpsearch.hwmodels.lookup:Lookup",
        "mcu": "mpsearch.hwmodels.mcu:Mcu",
        "measured": "mpsearch.hwmodels.measured:Measured",
        "roofline": "mpsearch.hwmodels.roofline:Roofline",
        "sram": "mpsearch.hwmodels.sram:Sram",
        "systolic": "mpsearch.hwmodels.systolic:Systolic",
    },
    "solvers": {
        "exact": "mpsearch.solvers.exact:Exact",
        "milp": "mpsearch.solvers.milp:Milp",
        "lagrange": "mpsearch.solvers.lagrange:Lagrange",
        "frontier-exact": "mpsearch.solvers.frontier_exact:FrontierExact",
        "quadratic": "mpsearch.solvers.quadratic:Quadratic",
        "nsga2": "mpsearch.solvers.nsga2:NSGA2",
        "optuna": "mpsearch.solvers.optuna_search:OptunaSearch",
        "evolution": "mpsearch.solvers.evolution:Evolution",
        "genetic": "mpsearch.solvers.genetic:Genetic",
        "waterfill": "mpsearch.solvers.waterfill:Waterfill",
        "greedy": "mpsearch.solvers.greedy:Greedy",
        "hawq-v2": "mpsearch.solvers.hawq_v2:HawqV2",
        "dp": "mpsearch.solvers.dp:Dp",
        "two-level": "mpsearch.solvers.two_level:TwoLevel",
        "few-formats": "mpsearch.solvers.few_formats:FewFormats",
        "exhaustive": "mpsearch.solvers.exhaustive:Exhaustive",
    },
    "frontiers": {
        "frontier-exact": "mpsearch.solvers.frontier_exact:FrontierExact",
        "frontier-three": "mpsearch.solvers.frontier_three:FrontierThree",
        "supported": "mpsearch.solvers.supported:Supported",
    },
    "exporters": {"torchao": "mpsearch.export.torchao:torchao"},
    "networks": {
        "language": "mpsearch.demo.language:task",
        "digits": "mpsearch.demo.digits:task",
    },
    "backends": {
        "cpu-packed": "mpsearch.kernels.packed:Packed",
        "cuda": "mpsearch.kernels.cuda:Cuda",
        "onnx": "mpsearch.kernels.onnx_runtime:OnnxRuntime",
        "onednn": "mpsearch.kernels.onednn:OneDnn",
        "plain": "mpsearch.kernels.plain:Plain",
        "torch-cpu": "mpsearch.kernels.torch_cpu:TorchCpu",
    },
    "devices": {},  # data files, see below
}
_DEVICES = "mpsearch.hwmodels.device"
KINDS = tuple(_OURS)


def names(kind: str) -> dict[str, str]:
    """Every known name of a kind, and the ``module:attribute`` it stands for.

    >>> names("solvers")["exhaustive"]
    'mpsearch.solvers.exhaustive:Exhaustive'
    """
    if kind not in _OURS:
        raise LookupError(f"no kind is named {kind!r}; kinds are {', '.join(KINDS)}")
    theirs = {e.name: e.value for e in entry_points(group=f"mpsearch.{kind}")}
    if kind == "devices":
        files = importlib.import_module(_DEVICES).devices()
        return theirs | {name: f"{each.model}: {each.title}" for name, each in files.items()}
    return dict(sorted((theirs | _OURS[kind]).items()))


def load(kind: str, name: str) -> Any:
    """What a name stands for: a class whose fields are its settings, a function, or a device.

    >>> load("solvers", "exhaustive").__module__
    'mpsearch.solvers.exhaustive'
    """
    if kind == "devices":
        return importlib.import_module(_DEVICES).device(name)
    known = names(kind)
    if name not in known:
        there = ", ".join(known) or "none in this version"
        raise LookupError(f"nothing in {kind} is named {name!r}; there are: {there}")
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(kind: str, spec: str, **settings: Any) -> Any:
    """The member of a name, or of ``name:argument``, where the argument is its first setting.

    Of the settings it gets those it has.

    >>> make("hwmodels", "bitops:nncf").variant
    'nncf'
    """
    name, colon, argument = spec.partition(":")
    made = load(kind, name)
    fields = getattr(made, "__dataclass_fields__", {})
    given = {key: value for key, value in settings.items() if key in fields}
    needed = [f for f in fields.values() if f.init and not _has_default(f)]
    if needed and not colon and not {f.name for f in needed} <= given.keys():
        raise ValueError(f"{name!r} needs {needed[0].name}: write {name}:{needed[0].name.upper()}")
    if colon:
        if not fields:
            raise ValueError(f"{name!r} has no settings, so {spec!r} means nothing; write {name!r}")
        first = next(iter(fields.values()))
        number = {"int": int, "float": float}.get(str(getattr(first.type, "__name__", first.type)))
        try:
            given[first.name] = number(argument) if number else argument
        except ValueError:
            raise ValueError(f"{first.name} of {name!r} is a number, got {argument!r}") from None
    return made(**given)


def _has_default(setting: Field[Any]) -> bool:
    return setting.default is not MISSING or setting.default_factory is not MISSING
