"""Tables made to break solvers: refused in words, or answered right, by every solver we have."""

import math
import random

import numpy as np
import pytest

from mpsearch import registry
from mpsearch.formats import Option
from mpsearch.network import numbered
from mpsearch.problem import Budget, Problem, Status
from mpsearch.tables import Numbers, Table
from mpsearch.testing.solver import least_loss
from tests.solvers.ours import GIVEN, ONE_BUDGET, PROVE, solved

SMALL = {"exhaustive", "hawq-v2", "nsga2", "optuna"}  # not for a million of anything
SURE = ("exhaustive", *PROVE)  # prove what is small


def table(values: Numbers, name: str = "loss", fixed: float = 0) -> Table:
    rows, columns = values.shape
    labels = tuple(Option(label=f"o{k}") for k in range(columns))
    return Table(numbered(rows), labels, values, "unit", name, fixed=fixed)


def problem(loss: Numbers, cost: Numbers, limit: float) -> Problem:
    return Problem(table(loss), (Budget(table(cost, "size"), limit),))


def small(kind: str) -> Problem:
    """A problem of at most five layers whose tables are poisoned in one way."""
    rng = np.random.default_rng(7)
    loss = np.sort(rng.exponential(1, (5, 3)), axis=1)[:, ::-1]
    cost = np.sort(rng.integers(1, 99, (5, 3)), axis=1)
    middle = int(cost[:, 1].sum())
    least = int(cost[:, 0].sum())
    tiny = np.array([[0, 1, 10**15]] * 2 + [[0, 10**15, 10**15 + 1]] * 2)
    return {
        "negative losses": problem(loss - 5, cost, middle),
        "negative costs": problem(loss, cost - 60, middle - 300),
        "all negative": problem(-loss, -cost, -middle),
        "losses all equal": problem(np.full((5, 3), 0.25), cost, middle),
        "costs all equal": problem(loss, np.full((5, 3), 7), 35),
        "everything equal": problem(np.full((5, 3), 0.25), np.full((5, 3), 7), 35),
        "losses all zero": problem(np.zeros((5, 3)), cost, middle),
        "costs all zero": problem(loss, np.zeros((5, 3)), 0.0),
        "one layer": problem(loss[:1], cost[:1], int(cost[0, 1])),
        "one option": problem(loss[:, :1], cost[:, :1], least),
        "one of each": problem(loss[:1, :1], cost[:1, :1], int(cost[0, 0])),
        "the least budget": problem(loss, cost, least),
        "the least budget, real": problem(loss, cost / 7, math.fsum(cost[:, 0] / 7)),
        "an exact fit": problem(loss, cost, middle),
        "no limit to speak of": problem(loss, cost, 10**18),
        "petabytes beside bytes": problem(loss[:4], tiny, 10**15 + 1),
        "petabytes, real": problem(loss[:4], tiny + 0.5, 10**15 + 3.5),
        "tiny losses": problem(loss * 1e-300, cost, middle),
        "huge losses": problem(loss * 1e290, cost, middle),
        "losses of all sizes": problem(loss * 10.0 ** np.arange(-12, 13, 6)[:, None], cost, middle),
        "denormal losses": problem(loss * 5e-324 / 1e-3, cost, middle),
        "large fixed parts": Problem(
            table(loss, fixed=1e6), (Budget(table(cost, "size", 10**12), middle + 10**12),)
        ),
    }[kind]


KINDS = (
    "negative losses", "negative costs", "all negative", "losses all equal", "costs all equal",
    "everything equal", "losses all zero", "costs all zero", "one layer", "one option",
    "one of each", "the least budget", "the least budget, real", "an exact fit",
    "no limit to speak of", "petabytes beside bytes", "petabytes, real", "tiny losses",
    "huge losses", "losses of all sizes", "denormal losses", "large fixed parts",
)  # fmt: skip


def judge(name: str, asked: Problem) -> None:
    """What holds of any solver's answer to a small problem that has one."""
    best = least_loss(asked)
    found = solved(name, asked)
    assert found.choice, found
    assert asked.feasible(found.choice)
    assert found.loss == asked.total(found.choice)
    assert found.bound <= best
    if found.status is Status.OPTIMAL:
        assert found.loss - best <= 1e-9 * asked.span
    assert found.status is Status.OPTIMAL or name not in SURE


def drawn_from() -> str:
    """Where Python's and numpy's global chance stand."""
    return f"{random.getstate()} {np.random.get_state(legacy=False)}"  # noqa: NPY002


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ONE_BUDGET)
def test_small_poisoned_tables_are_answered(name: str, kind: str) -> None:
    rules, state = np.geterr(), drawn_from()
    judge(name, small(kind))
    assert np.geterr() == rules
    assert drawn_from() == state


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_reaches_no_solver(poison: float) -> None:
    values = np.ones((3, 2))
    values[1, 1] = poison
    with pytest.raises(ValueError, match=r"for layer '1' at 'o1'; give a finite number, or mask"):
        table(values)
    with pytest.raises(ValueError, match="give a finite number"):
        Budget(table(np.ones((3, 2)), "size"), poison)


@pytest.mark.parametrize("name", ONE_BUDGET)
@pytest.mark.parametrize("below", [1, 10**15])
def test_a_budget_below_the_least_value_has_no_answer(below: int, name: str) -> None:
    asked = small("the least budget")
    budget = asked.budgets[0]
    found = solved(name, Problem(asked.loss, (Budget(budget.cost, budget.limit - below),)))
    assert (found.choice, found.loss, found.status) == ((), math.inf, Status.INFEASIBLE)


@pytest.mark.parametrize("name", ONE_BUDGET)
def test_masked_numbers_do_not_matter(name: str) -> None:
    """However poisonous: an option that may not be taken is as if it were not there."""
    rng = np.random.default_rng(3)
    mask = rng.random((4, 4)) < 0.6
    mask[:, 0] = True
    loss, cost = rng.exponential(1, (4, 4)), rng.integers(1, 50, (4, 4))
    asked, poisoned = (
        Problem(
            Table(t.layers, t.options, np.where(mask, t.values, bad), "unit", allowed=mask),
            (Budget(table(np.where(mask, cost, other), "size"), 90),),
        )
        for t in (table(loss),)
        for bad, other in ((0.0, 1), (-1e30, -(10**15)))
    )
    one, two = solved(name, asked), solved(name, poisoned)
    assert (one.choice, one.loss, one.status) == (two.choice, two.loss, two.status)
    judge(name, poisoned)


@pytest.fixture(scope="module")
def wide() -> Problem:
    """Two layers of 500,000 options each, all of one cost."""
    loss = np.random.default_rng(0).random((2, 500_000))
    return problem(loss, np.full(loss.shape, 3), 6)


@pytest.mark.parametrize("name", sorted(set(ONE_BUDGET) - SMALL))
def test_a_million_options_of_equal_cost_are_one_best(name: str, wide: Problem) -> None:
    found = solved(name, wide)
    assert found.choice == tuple(wide.loss.values.argmin(axis=1))
    assert found.status is Status.OPTIMAL


@pytest.mark.parametrize("name", sorted(set(ONE_BUDGET) - {*SMALL, "dp"}))
def test_a_million_equal_entries_need_no_time(name: str) -> None:
    """dp, whose table has a row a layer, takes seconds for it."""
    ones = np.ones((250_000, 4))
    found = solved(name, problem(ones, np.full(ones.shape, 2), 500_000))
    assert (found.loss, found.status) == (250_000, Status.OPTIMAL)


def test_every_registered_solver_is_poisoned_here() -> None:
    assert {*ONE_BUDGET, *GIVEN} == set(registry.names("solvers"))
