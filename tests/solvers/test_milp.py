"""Milp: exact against Exhaustive, sound in its bounds, and honest about both."""

from hypothesis import given, settings

from mpsearch.problem import OPTIMAL_GAP, Problem
from mpsearch.solvers import Exhaustive, Milp
from tests.solvers.problems import problems


def check(problem: Problem, solver: Milp) -> None:
    best, found = Exhaustive().solve(problem), solver.solve(problem)
    assert found.bound <= best.loss
    assert found.status is best.status
    if found.choice:
        assert problem.feasible(found.choice)
        assert found.loss == problem.total(found.choice)
        assert found.gap <= OPTIMAL_GAP * problem.span


@settings(max_examples=1000)
@given(problems())
def test_finds_and_proves_what_enumeration_finds(problem: Problem) -> None:
    check(problem, Milp())


@settings(max_examples=60)
@given(problems())
def test_finds_and_proves_it_with_cbc_too(problem: Problem) -> None:
    check(problem, Milp(engine="cbc"))
