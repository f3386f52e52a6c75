"""Names of estimators, hardware models, solvers and the rest, ours and those of installed packages.

Ours are data: a name and the ``module:attribute`` it stands for, imported when asked for. A third
party's are entry points of the group ``mpsearch.<kind>``; they do not replace ours.
"""

import importlib
from importlib.metadata import entry_points
from typing import Any

_OURS: dict[str, dict[str, str]] = {
    "sensitivity": {
        "kl": "mpsearch.sensitivity.kl:KL",
        "hessian-trace": "mpsearch.sensitivity.hessian_trace:HessianTrace",
        "weight-error": "mpsearch.sensitivity.weight_error:WeightError",
    },
    "hwmodels": {
        "size": "mpsearch.hwmodels.size:Size",
        "bitops": "mpsearch.hwmodels.bitops:BitOps",
        "ace": "mpsearch.hwmodels.ace:Ace",
    },
    "solvers": {
        "milp": "mpsearch.solvers.milp:Milp",
        "exhaustive": "mpsearch.solvers.exhaustive:Exhaustive",
    },
    "exporters": {"torchao": "mpsearch.export.torchao:torchao"},
    "networks": {
        "language": "mpsearch.demo.language:task",
        "digits": "mpsearch.demo.digits:task",
    },
    "backends": {},
    "devices": {},
}
KINDS = tuple(_OURS)


def names(kind: str) -> dict[str, str]:
    """Every known name of a kind, and the ``module:attribute`` it stands for.

    >>> names("solvers")["exhaustive"]
    'mpsearch.solvers.exhaustive:Exhaustive'
    """
    if kind not in _OURS:
        raise LookupError(f"no kind is named {kind!r}; kinds are {', '.join(KINDS)}")
    theirs = {e.name: e.value for e in entry_points(group=f"mpsearch.{kind}")}
    return dict(sorted((theirs | _OURS[kind]).items()))


def load(kind: str, name: str) -> Any:
    """What a name stands for: a class whose fields are its settings, or a function.

    >>> load("solvers", "exhaustive").__module__
    'mpsearch.solvers.exhaustive'
    """
    known = names(kind)
    if name not in known:
        there = ", ".join(known) or "none in this version"
        raise LookupError(f"nothing in {kind} is named {name!r}; there are: {there}")
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
