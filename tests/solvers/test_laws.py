"""Laws that hold of every solver and between them, on problems that hypothesis draws."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Exhaustive
from mpsearch.tables import Numbers, Table
from mpsearch.testing.solver import least_loss
from tests.solvers.ours import ONE_BUDGET, PROVE, solved, solver

EXAMPLES = {"nsga2": 3, "optuna": 2, "evolution": 5, "genetic": 5, "quadratic": 10, "milp": 10}
STEADY = tuple(n for n in ONE_BUDGET if n not in ("nsga2", "optuna", "evolution", "genetic"))
ROUNDING = 1e-9


@st.composite
def one_budget(draw: DrawFn, layers: int = 5, options: int = 4) -> Problem:
    """A problem of one sum budget that some choice keeps; costs real, whole or few and equal."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    rows, columns = draw(st.integers(1, layers)), draw(st.integers(1, options))
    loss = rng.exponential(1.0, (rows, columns)) * 10.0 ** draw(st.integers(-3, 3))
    kind = draw(st.sampled_from(["whole", "real", "few"]))
    cost: Numbers = rng.uniform(1, 9, (rows, columns))
    if kind != "real":
        cost = rng.integers(1, 4 if kind == "few" else 1000, (rows, columns))
    if draw(st.booleans()):  # more bits, less loss
        loss, cost = -np.sort(-loss, axis=1), np.sort(cost, axis=1)
    choice = [draw(st.integers(0, columns - 1)) for _ in range(rows)]
    names = tuple(Layer(f"l{i}") for i in range(rows))
    labels = tuple(Option(label=f"o{k}") for k in range(columns))
    size = Table(names, labels, cost, "byte", "size")
    return Problem(Table(names, labels, loss, "loss"), (Budget(size, size.total(choice)),))


def each(name: str, law: Callable[[str, Problem], None], drawn: Any = None) -> None:
    """A law on as many examples as a solver's speed allows."""
    checked = given(drawn or one_budget())(lambda problem: law(name, problem))
    settings(max_examples=EXAMPLES.get(name, 15))(checked)()


def like(problem: Problem, **changes: Callable[[Numbers], Numbers]) -> Problem:
    """The problem with its tables' numbers changed; the budget stays."""
    (budget,) = problem.budgets
    assert isinstance(budget.cost, Table)
    loss, cost = (
        replace(
            table,
            layers=tuple(Layer(f"l{i}") for i in range(len(values))),
            options=tuple(Option(label=f"o{k}") for k in range(values.shape[1])),
            values=values,
            allowed=np.ones(values.shape, bool),
        )
        for table, values in (
            (problem.loss, changes.get("loss", np.asarray)(problem.loss.values)),
            (budget.cost, changes.get("cost", np.asarray)(budget.cost.values)),
        )
    )
    return Problem(loss, (Budget(cost, budget.limit),))


def right(name: str, problem: Problem) -> None:
    best, found = least_loss(problem), solved(name, problem)
    assert problem.feasible(found.choice)
    assert found.bound <= best <= found.loss == problem.total(found.choice)
    if found.status is Status.OPTIMAL or name in PROVE:
        assert found.loss - best <= ROUNDING * problem.span
        assert found.status is Status.OPTIMAL


@pytest.mark.parametrize("name", ONE_BUDGET)
def test_answers_are_feasible_and_between_bound_and_best(name: str) -> None:
    each(name, right)


@pytest.mark.parametrize("name", ["exact", "dp"])
def test_equal_losses_are_told_apart_as_exhaustive_does(name: str) -> None:
    """By lower cost, then by the order of layers: few losses, few costs, so many are equal."""

    def law(name: str, problem: Problem) -> None:
        coarse = like(problem, loss=lambda values: np.ceil(values / values.max() * 3))
        assert solved(name, coarse).choice == Exhaustive().solve(coarse).choice

    each(name, law)


@pytest.mark.parametrize("name", ONE_BUDGET)
def test_the_order_of_layers_changes_no_loss(name: str) -> None:
    def law(name: str, problem: Problem) -> None:
        order = np.random.default_rng(0).permutation(len(problem.loss.layers))
        turned = like(problem, loss=lambda v: v[order], cost=lambda v: v[order])
        same_loss(problem, solved(name, problem).loss, solved(name, turned).loss)

    each(name, law)


@pytest.mark.parametrize("name", STEADY)
def test_the_order_of_options_changes_no_loss(name: str) -> None:
    def law(name: str, problem: Problem) -> None:
        order = np.random.default_rng(0).permutation(len(problem.loss.options))
        turned = like(problem, loss=lambda v: v[:, order], cost=lambda v: v[:, order])
        same_loss(problem, solved(name, problem).loss, solved(name, turned).loss)

    each(name, law)


def same_loss(problem: Problem, one: float, two: float) -> None:
    assert abs(one - two) <= ROUNDING * problem.span


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("power", [-12, -5, 12])
def test_losses_of_any_scale_have_the_same_answer(power: int, name: str) -> None:
    def law(name: str, problem: Problem) -> None:
        scaled = like(problem, loss=lambda values: values * 10.0**power)
        found = solved(name, scaled)
        same_loss(problem, solved(name, problem).loss, problem.total(found.choice))

    each(name, law)


@pytest.mark.parametrize("name", STEADY)
def test_costs_of_any_unit_have_the_same_answer(name: str) -> None:
    """Bytes or, at the same budget, bits; and from another zero."""

    def law(name: str, problem: Problem) -> None:
        (budget,) = problem.budgets
        bits = like(problem, cost=lambda values: values * 8)
        moved = Problem(bits.loss, (Budget(bits.budgets[0].cost, budget.limit * 8),))
        same_loss(problem, solved(name, problem).loss, solved(name, moved).loss)

    each(name, law)


@pytest.mark.parametrize("name", STEADY)
def test_an_option_that_another_beats_changes_nothing(name: str) -> None:
    def law(name: str, problem: Problem) -> None:
        def worse(values: Numbers) -> Numbers:
            step = 1 if values.dtype.kind == "i" else float(values.max())
            return np.hstack([values, values.max(axis=1, keepdims=True) + step])

        wider = like(problem, loss=worse, cost=worse)
        assert solved(name, problem).choice == solved(name, wider).choice

    each(name, law)


@pytest.mark.parametrize("name", PROVE)
def test_a_larger_budget_never_loses_more(name: str) -> None:
    def law(name: str, problem: Problem) -> None:
        (budget,) = problem.budgets
        losses = [
            solved(name, Problem(problem.loss, (Budget(budget.cost, limit),))).loss
            for limit in np.linspace(budget.cost.least(), budget.limit + 5, 6).tolist()
        ]
        steps = itertools.pairwise(losses)
        assert all(two <= one + ROUNDING * problem.span for one, two in steps)

    each(name, law)


def plain_frontier(problem: Problem) -> list[tuple[float, float]]:
    """Cost and loss of every choice within the budget that none beats, by trying each."""
    (budget,) = problem.budgets
    rows, columns = problem.loss.values.shape
    every = [
        (budget.cost.total(choice), problem.total(choice))
        for choice in itertools.product(range(columns), repeat=rows)
        if budget.within(choice)
    ]
    points: list[tuple[float, float]] = []
    for cost, loss in sorted(every):
        if not points or loss < points[-1][1]:
            points.append((cost, loss))
    return points


def near(values: Sequence[float], wanted: Sequence[float], size: float) -> bool:
    return len(values) == len(wanted) and bool(
        np.allclose(values, wanted, rtol=ROUNDING, atol=1e-12 * size)
    )


@given(one_budget())
@settings(max_examples=40)
def test_the_exact_frontier_is_every_choice_that_none_beats(problem: Problem) -> None:
    front = solver("frontier-exact").frontier(problem)
    wanted = plain_frontier(problem)
    assert front.exact
    assert near(front.cost, [cost for cost, _ in wanted], 1e3)
    assert near(front.loss, [loss for _, loss in wanted], problem.span)
    assert (np.diff(front.cost) > 0).all()
    assert (np.diff(front.loss) < 0).all()


@given(one_budget(layers=12))
@settings(max_examples=15)
def test_the_exact_frontier_is_a_sweep_of_single_solves(problem: Problem) -> None:
    (budget,) = problem.budgets
    front = solver("frontier-exact").frontier(problem)
    for place in np.linspace(0, len(front) - 1, 8).astype(int):
        for share in (0.0, 0.5):  # on a point, and half-way to the next
            after = front.cost[min(place + 1, len(front) - 1)]
            limit = float(front.cost[place] + share * (after - front.cost[place]))
            found = solved(PROVE[0], Problem(problem.loss, (Budget(budget.cost, limit),)))
            assert found.loss == pytest.approx(front.loss[place], rel=ROUNDING)


@given(one_budget())
@settings(max_examples=40)
def test_supported_points_are_the_corners_of_the_frontier(problem: Problem) -> None:
    """Every corner of the lower convex hull, for every price of cost against loss, and no more."""
    (budget,) = problem.budgets
    everything = Problem(problem.loss, (Budget(budget.cost, budget.limit * 100),))
    front = solver("supported").frontier(everything)
    wanted = plain_frontier(everything)
    size = problem.span or 1.0
    for price in (*np.logspace(-6, 6, 13), math.inf):
        keys = [
            min(cost if price == math.inf else loss + price * cost for cost, loss in points)
            for points in (wanted, list(zip(front.cost, front.loss, strict=True)))
        ]
        assert keys[0] == pytest.approx(keys[1], rel=ROUNDING, abs=1e-12 * size)
    assert len(front) <= len(wanted)
