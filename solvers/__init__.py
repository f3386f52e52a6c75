"""Solvers: one option per layer with the least total loss within every budget."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "mpsearch.solvers":
    raise ImportError(f"{__name__!r} is the source of 'mpsearch.solvers': import it by that name")

if TYPE_CHECKING:
    from mpsearch.solvers.dp import Dp
    from mpsearch.solvers.evolution import Evolution
    from mpsearch.solvers.exact import Exact
    from mpsearch.solvers.exhaustive import Exhaustive
    from mpsearch.solvers.few_formats import FewFormats
    from mpsearch.solvers.frontier_exact import FrontierExact
    from mpsearch.solvers.frontier_three import FrontierThree
    from mpsearch.solvers.genetic import Genetic
    from mpsearch.solvers.greedy import Greedy
    from mpsearch.solvers.hawq_v2 import HawqV2
    from mpsearch.solvers.lagrange import Lagrange
    from mpsearch.solvers.milp import Milp
    from mpsearch.solvers.nsga2 import NSGA2
    from mpsearch.solvers.optuna_search import OptunaSearch
    from mpsearch.solvers.quadratic import Quadratic
    from mpsearch.solvers.supported import Supported
    from mpsearch.solvers.two_level import TwoLevel
    from mpsearch.solvers.waterfill import Waterfill
else:
    _modules = {
        "Dp": "dp",
        "Evolution": "evolution",
        "Exact": "exact",
        "Exhaustive": "exhaustive",
        "FewFormats": "few_formats",
        "FrontierExact": "frontier_exact",
        "FrontierThree": "frontier_three",
        "Genetic": "genetic",
        "Greedy": "greedy",
        "HawqV2": "hawq_v2",
        "Lagrange": "lagrange",
        "Milp": "milp",
        "NSGA2": "nsga2",
        "OptunaSearch": "optuna_search",
        "Quadratic": "quadratic",
        "Supported": "supported",
        "TwoLevel": "two_level",
        "Waterfill": "waterfill",
    }

    def __getattr__(name: str) -> object:
        if name not in _modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_modules[name]}"), name)


__all__ = [
    "NSGA2",
    "Dp",
    "Evolution",
    "Exact",
    "Exhaustive",
    "FewFormats",
    "FrontierExact",
    "FrontierThree",
    "Genetic",
    "Greedy",
    "HawqV2",
    "Lagrange",
    "Milp",
    "OptunaSearch",
    "Quadratic",
    "Supported",
    "TwoLevel",
    "Waterfill",
]
