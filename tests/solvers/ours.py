"""Our solvers by their registered names, and which questions each takes."""

from typing import Any

from mpsearch import registry
from mpsearch.problem import Problem, Solution
from mpsearch.solvers import Milp

REGISTERED = tuple(registry.names("solvers"))
PROVE = ("exact", "milp", "dp")  # one sum budget, optimal
GIVEN = ("two-level", "few-formats")  # a field must be given
ONE_BUDGET = tuple(name for name in REGISTERED if name not in GIVEN)  # one sum budget over a table
QUICK = {"nsga2": {"population": 20, "generations": 5}, "optuna": {"trials": 40}}  # a few layers


def solver(name: str, **fields: Any) -> Any:
    """A solver as it comes, but for some fields; ``milp-cbc`` is milp on its other engine."""
    if name == "milp-cbc":
        return Milp(engine="cbc")
    kind = "solvers" if name in REGISTERED else "frontiers"
    return registry.load(kind, name)(**QUICK.get(name, {}), **fields)


def solved(name: str, problem: Problem) -> Solution:
    found: Solution = solver(name).solve(problem)
    return found
