"""Our solvers by their registered names, and which questions each takes."""

from typing import Any

from mpsearch import registry
from mpsearch.problem import Problem, Solution
from mpsearch.solvers import Milp

REGISTERED = tuple(registry.names("solvers"))
PROVE = tuple(n for n in ("exact", "milp", "dp") if n in REGISTERED)  # one sum budget, optimal
FRONTIERS = tuple(n for n in ("frontier-exact", "supported") if n in REGISTERED)
# Needs a field to be given, or gives frontiers alone.
OTHERS = tuple(n for n in ("supported", "two-level", "few-formats") if n in REGISTERED)
ONE_BUDGET = tuple(n for n in REGISTERED if n not in OTHERS)  # one sum budget over a table

QUICK = {"nsga2": {"generations": 10}, "optuna": {"trials": 40}}  # enough for a few layers


def solver(name: str, **fields: Any) -> Any:
    """A solver as it comes, but for some fields; ``milp-cbc`` is milp on its other engine."""
    if name == "milp-cbc":
        return Milp(engine="cbc")
    return registry.load("solvers", name)(**QUICK.get(name, {}), **fields)


def solved(name: str, problem: Problem) -> Solution:
    found: Solution = solver(name).solve(problem)
    return found
