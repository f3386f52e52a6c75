"""Knapsacks say in integers what the tables say, to the last bit or to a known number of counts."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from mpsearch.formats import Option
from mpsearch.network import numbered
from mpsearch.problem import Budget, Constraint, Interaction, Problem, Status
from mpsearch.protocols import Solver
from mpsearch.solvers import Dp, Exact, FrontierExact, Lagrange, Milp, counts
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.tables import Stages, Table


def table(values: Any, name: str = "loss", **more: Any) -> Table:
    labels = tuple(Option(label=f"o{k}") for k in range(values.shape[1]))
    return Table(numbered(len(values)), labels, values, "unit", name, **more)


def made(problem: Problem, **more: Any) -> Knapsack:
    found = knapsack(problem, "mine", **more)
    assert found is not None
    return found


@st.composite
def problems(draw: DrawFn) -> Problem:
    """Tables of any scale, whole and real, large beside small, masked and tied."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    rows, columns = draw(st.integers(1, 7)), draw(st.sampled_from([1, 3, 20]))
    shape = rows, columns

    def numbers() -> Any:
        kind = draw(st.sampled_from(["whole", "large", "real", "mixed", "tiny", "coarse"]))
        return {
            "whole": rng.integers(-5, 9, shape),
            "large": rng.integers(-(1 << 61), 1 << 61, shape),
            "real": rng.normal(size=shape) * 10.0 ** rng.integers(-300, 290),
            "mixed": rng.normal(size=shape) * 10.0 ** rng.integers(-12, 12, (rows, 1)),
            "tiny": rng.normal(size=shape) * 5e-324 * 9,
            "coarse": rng.integers(-5, 9, shape) / 8,
        }[kind]

    mask = rng.random(shape) < draw(st.sampled_from([1.0, 0.6]))
    mask[np.arange(rows), rng.integers(columns, size=rows)] = True
    mask[-1] = mask[0]
    size = table(numbers(), "size", fixed=draw(st.sampled_from([0, 3])))
    limit = size.total(np.where(mask, 0, 1).argmin(axis=1))
    ties = ((0, rows - 1),) if draw(st.booleans()) else ()
    return Problem(table(numbers(), allowed=mask, fixed=1), (Budget(size, limit),), ties=ties)


def picked(found: Knapsack, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.integers(found.gain.shape[1], size=len(found.gain))


@given(problems(), st.integers(0, 99))
def test_gains_are_losses_above_the_least_to_a_known_number_of_counts(
    problem: Problem, seed: int
) -> None:
    found = made(replace(problem, budgets=(), costs=(problem.budgets[0].cost,)))
    assert found.gain.min(axis=1).max() == 0
    assert 0 <= found.gain.max(axis=1).sum() <= 1 << counts.BITS
    picks = picked(found, seed)
    choice = found.choice(picks)
    assert problem.loss.allowed[np.arange(len(choice)), list(choice)].all()
    loss = problem.loss.chosen(choice).tolist()
    wanted = sum((Fraction(x) for x in loss), Fraction(problem.loss.fixed))
    base = sum((Fraction(x) for x in found.base), Fraction(0))
    exactly = (wanted - base) / Fraction(found.unit)
    assert abs(exactly - found.total(picks)) <= found.slip
    assert math.frexp(found.unit)[0] == 0.5


@given(problems(), st.integers(0, 99))
def test_the_bound_of_an_answer_is_at_most_its_loss_and_close(problem: Problem, seed: int) -> None:
    found = made(replace(problem, budgets=(), costs=(problem.budgets[0].cost,)))
    picks = picked(found, seed)
    loss = problem.total(found.choice(picks))
    bound = found.bound(found.total(picks))
    # A float next to the loss where the loss is exact, never above it but for that rounding.
    assert bound <= loss + abs(loss) * 2.0**-52
    assert loss - bound <= abs(loss) * 2.0**-52 + (2 * found.slip + 1) * found.unit
    assert found.solution(picks, found.total(picks), "mine").status is Status.OPTIMAL


@given(problems(), st.integers(0, 99))
def test_what_is_within_the_budget_fits(problem: Problem, seed: int) -> None:
    found = knapsack(problem, "mine")
    everything = made(replace(problem, budgets=(), costs=(problem.budgets[0].cost,)))
    picks = picked(everything, seed)
    feasible = problem.feasible(everything.choice(picks))
    if feasible:
        assert found is not None
        assert found.fits(picks)
    cost = problem.budgets[0].cost
    if isinstance(cost, Table) and cost.exact and np.abs(cost.values).max() < 1 << 50:
        assert (found is not None and found.fits(picks)) == feasible


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=50))
def test_sums_are_exact(numbers: list[float]) -> None:
    parts = counts.sums(np.array(numbers))
    assert sum(map(Fraction, parts)) == sum(map(Fraction, numbers))
    assert len(parts) <= 60


def test_sums_of_a_million_take_few_parts() -> None:
    rng = np.random.default_rng(0)
    for numbers in (rng.normal(size=10**6), rng.integers(0, 1 << 62, 10**6)):
        parts = counts.sums(numbers)
        assert len(parts) <= 6
        assert math.fsum(parts) == math.fsum(numbers.tolist())


def test_masks_leave_the_last_entry_repeated() -> None:
    mask = np.array([[True, False, True], [False, True, False]])
    found = made(Problem(table(np.arange(6).reshape(2, 3), allowed=mask)))
    assert found.columns.tolist() == [[0, 2], [1, 1]]
    assert found.gain.tolist() == [[0, 2], [0, 0]]
    assert found.usage.shape == (0, 2, 2)
    assert (found.room, found.budgets) == ((), ())


def test_a_budget_on_a_maximum_leaves_options_out() -> None:
    loss, peak = table(np.array([[3, 1, 0]])), table(np.array([[1, 5, 9]]), "peak", reduce="max")
    assert made(Problem(loss, (Budget(peak, 5),))).columns.tolist() == [[0, 1]]
    assert knapsack(Problem(loss, (Budget(peak, 0),)), "mine") is None


def test_a_budget_below_the_least_leaves_nothing() -> None:
    loss, size = table(np.array([[3, 1]])), table(np.array([[4, 5]]), "size")
    assert made(Problem(loss, (Budget(size, 4),))).room == (0,)
    assert knapsack(Problem(loss, (Budget(size, 3),)), "mine") is None


def test_more_budgets_are_rows_where_they_are_asked_for() -> None:
    loss, one = table(np.array([[3, 1]])), table(np.array([[4, 5]]), "one")
    two = table(np.array([[0.5, 0.25]]), "two")
    found = made(Problem(loss, (Budget(one, 5), Budget(two, 1))), rows=None)
    assert found.usage.shape == (2, 1, 2)
    assert found.budgets == (0, 1)


def test_refuses_what_it_does_not_take_and_says_who_does() -> None:
    loss, one = table(np.array([[3, 1], [2, 1]])), table(np.array([[4, 5], [1, 2]]), "one")
    two = replace(one, name="two")
    stages = Stages(loss.layers, loss.options, (((0, 0, 1),),), "byte", "sram")
    cases = {
        r"mine takes no interactions; use the solver quadratic": Problem(
            loss, interactions=(Interaction(0, 0, 1, 0, 1.0),)
        ),
        r"mine takes no side constraints; use the solver milp": Problem(
            loss, constraints=(Constraint("c", ((0, 0, 1),), most=1),)
        ),
        r"mine takes no stages; use the solver milp": Problem(loss, (Budget(stages, 3),)),
        r"mine takes 1 sum budget, got 2: one, two; use the solver lagrange or milp": Problem(
            loss, (Budget(one, 9), Budget(two, 9))
        ),
    }
    for words, problem in cases.items():
        with pytest.raises(ValueError, match=words):
            knapsack(problem, "mine")


def test_without_an_answer_the_bound_says_why() -> None:
    found = made(Problem(table(np.array([[3, 1]]))))
    assert found.solution(None, math.inf, "mine").status is Status.INFEASIBLE
    unknown = found.solution(None, 1, "mine")
    assert (unknown.status, unknown.bound) == (Status.UNKNOWN, 2.0)


@pytest.mark.parametrize("solver", [Exact(), Lagrange(), Dp(), Milp(), FrontierExact()], ids=str)
def test_a_real_budget_of_zero_that_costs_fit_exactly_is_kept(solver: Solver) -> None:
    """Costs cancel to nothing; the room in counts is no float's."""
    u = 1e-9 / 7
    layers, options = numbered(3), tuple(Option.read(f"o{i}") for i in range(4))
    loss = np.array([[8, 5, 3, 0], [1, -3, -3, -3], [8, 7, 5, -1]])
    cost = np.array([[-u, 0, 0, u], [-u, 0, u, u], [-u, 0, 0, u]])
    priced = Table(layers, options, cost, "byte", "c")
    problem = Problem(Table(layers, options, loss, "loss"), (Budget(priced, 0.0),))
    found = solver.solve(problem)
    assert (found.choice, found.loss, found.status) == ((2, 0, 3), 3.0, Status.OPTIMAL)
