"""Solvers that prove, on the tables of every family and scale, against the engines of others."""

import math

import pytest

from mpsearch.problem import Problem, Status
from tests.references.engines import cbc, cbc_scaled, few, scipy_milp
from tests.solvers.instances import BITS, FAMILIES, HARD, between, instance, interacting
from tests.solvers.ours import PROVE, solved, solver

EASY = tuple(family for family in FAMILIES if family not in HARD)
NARROW = 1e-5  # of the span: the gap of what is made to be hard


def total(problem: Problem, choice: tuple[int, ...]) -> float:
    """What an engine's answer loses; infinite where it breaks a budget or is none."""
    return problem.total(choice) if choice and problem.feasible(choice) else math.inf


@pytest.mark.parametrize("family", EASY)
@pytest.mark.parametrize("name", PROVE)
def test_realistic_tables_are_proven_optimal_and_no_engine_finds_less(
    name: str, family: str
) -> None:
    for seed, scale in enumerate((1.0, 1e-4, 1e-9)):
        problem = instance(family, 40, seed=seed, scale=scale)
        found = solved(name, problem)
        assert found.status is Status.OPTIMAL
        theirs = [total(problem, engine(problem)) for engine in (cbc, cbc_scaled, scipy_milp)]
        assert found.bound <= found.loss <= min(theirs) * (1 + 1e-12)
        assert found.loss == pytest.approx(theirs[2], rel=1e-6)


def test_cbc_as_called_by_default_is_wrong_where_losses_are_small() -> None:
    """So the comparison above, and the benchmark's, is one with something to see."""
    problem = instance("lat_real", 40, scale=1e-6)
    assert total(problem, cbc(problem)) > solved(PROVE[0], problem).loss * 1.001


@pytest.mark.parametrize("family", HARD)
def test_what_is_made_to_be_hard_has_an_honest_gap(family: str) -> None:
    for seed in range(2):
        problem = instance(family, 60, seed=seed)
        found = solver("exact", states=100_000).solve(problem)
        assert problem.feasible(found.choice)
        assert found.gap <= NARROW * problem.span
        assert found.bound <= total(problem, scipy_milp(problem, seconds=1.0))


@pytest.mark.parametrize("more", [("lat_real",), ("lat_real", "moe_int")])
@pytest.mark.parametrize("name", ["lagrange", "milp"])
def test_several_budgets_hold_together_and_no_engine_is_below_the_bound(
    name: str, more: tuple[str, ...]
) -> None:
    for seed in range(2):
        problem = instance("llm_int", 60, seed=seed, more=more)
        found = solved(name, problem)
        theirs = total(problem, scipy_milp(problem, gap=0))
        assert problem.feasible(found.choice)
        assert found.bound <= theirs
        assert found.loss <= theirs * (1 + (1e-12 if name == "milp" else 0.05))


def test_few_formats_are_no_worse_than_a_program_s() -> None:
    for seed in range(3):
        problem = instance("llm_int", 40, 8, seed)
        found = solver("few-formats", most=3).solve(problem)
        assert len(set(found.choice)) <= 3
        theirs = few(problem, 3)
        assert found.bound <= found.loss <= total(problem, theirs) * (1 + 1e-9)


def test_interactions_are_minimised_within_a_proven_bound() -> None:
    problem = interacting(8, 3, 0, 0.5)
    found = solved("quadratic", problem)
    best = solved("exhaustive", problem).loss
    assert found.bound <= best == pytest.approx(found.loss, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_instances_are_seeded_and_their_budgets_bind(family: str) -> None:
    one, two, other = (instance(family, 30, seed=seed) for seed in (1, 1, 2))
    assert (one.loss.values == two.loss.values).all()
    assert (one.loss.values != other.loss.values).any()
    (budget,) = one.budgets
    assert not budget.within(tuple(one.loss.values.argmin(axis=1)))
    assert budget.within(tuple(budget.cost.values.argmin(axis=1)))  # type: ignore[union-attr]
    assert budget.limit == between(budget.cost, 0.35)  # type: ignore[arg-type]
    assert len(one.loss.options) == len(BITS[6])
