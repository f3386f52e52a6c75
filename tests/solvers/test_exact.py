"""Exact against every choice tried, against another solver, and against itself in other words."""

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from scipy.optimize import Bounds, LinearConstraint, milp

from mpsearch.formats import Option
from mpsearch.network import numbered
from mpsearch.problem import OPTIMAL_GAP, Budget, Problem, Status
from mpsearch.solvers import compiled, layer_order, search
from mpsearch.solvers.exact import Exact
from mpsearch.solvers.exhaustive import Exhaustive
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite
from mpsearch.testing.solver import Feature
from tests.solvers.instances import FAMILIES, instance
from tests.solvers.problems import numbers

FEATURES: frozenset[Feature] = frozenset({"masks", "ties", "max"})
NUMPY, NUMBA = Exact(compiled="never"), Exact(compiled="always")


class TestExact(SolverSuite):
    solver = Exact()
    supports = FEATURES


class TestExactCompiled(SolverSuite):
    solver = NUMBA
    supports = FEATURES


def table(values: Any, name: str = "loss", **more: Any) -> Table:
    labels = tuple(Option(label=f"o{k}") for k in range(values.shape[1]))
    return Table(numbered(len(values)), labels, values, "unit", name, **more)


def asked(loss: Any, cost: Any, limit: float) -> Problem:
    return Problem(table(loss), (Budget(table(cost, "size"), limit),))


@st.composite
def full_of_equals(draw: DrawFn) -> Problem:
    """Small whole losses and costs, some layers alike, masked or tied."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    loss = rng.integers(0, draw(st.sampled_from([2, 3, 6])), (rows, columns))
    cost = rng.integers(0, draw(st.sampled_from([2, 4])), (rows, columns))
    if draw(st.booleans()):
        loss[:], cost[:] = loss[0], cost[0]
    mask = rng.random((rows, columns)) < draw(st.sampled_from([1.0, 0.8]))
    mask[np.arange(rows), rng.integers(columns, size=rows)] = True
    mask[-1] = mask[0]
    limit = cost.min(axis=1).sum() + rng.integers(0, 1 + np.ptp(cost, axis=1).sum())
    ties = ((0, rows - 1),) if draw(st.integers(0, 3)) == 3 else ()
    return Problem(table(loss, allowed=mask), (Budget(table(cost, "size"), int(limit)),), ties=ties)


@given(full_of_equals(), st.sampled_from([NUMPY, NUMBA]))
@settings(max_examples=300, deadline=None)
def test_of_equals_takes_the_one_that_exhaustive_takes(problem: Problem, solver: Exact) -> None:
    one, two = solver.solve(problem), Exhaustive().solve(problem)
    assert (one.choice, one.loss, one.status) == (two.choice, two.loss, two.status)
    assert one.bound == two.bound


@st.composite
def real_or_whole(draw: DrawFn) -> Problem:
    """At most five layers of any scale, with a budget at, or a hair beside, what a choice costs."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    slope = draw(st.sampled_from([1, 0]))
    loss = draw(numbers(rows, columns, -3, -slope))
    size = table(draw(numbers(rows, columns, -1, slope)), "size")
    choice = np.random.default_rng(draw(st.integers(0, 1 << 16))).integers(columns, size=rows)
    limit = size.total(choice)
    more = draw(st.sampled_from([0, 0, 1e-13, -1e-13, 0.9e-12, 1.1e-12, -1.1e-12, 0.1, 0.4]))
    return Problem(table(loss), (Budget(size, limit + more * abs(limit) if more else limit),))


@given(real_or_whole(), st.sampled_from([NUMPY, NUMBA]))
@settings(max_examples=300, deadline=None)
def test_is_as_good_as_exhaustive_at_every_scale(problem: Problem, solver: Exact) -> None:
    one, two = solver.solve(problem), Exhaustive().solve(problem)
    assert one.status is two.status
    if two.choice:
        assert problem.feasible(one.choice)
        assert one.bound <= two.loss
        assert one.loss - two.loss <= 1e-15 * problem.span


@given(st.sampled_from(FAMILIES), st.integers(0, 1 << 16), st.sampled_from([0.1, 0.35, 0.7]))
@settings(max_examples=24, deadline=None)
def test_compiled_answers_are_those_of_numpy(family: str, seed: int, share: float) -> None:
    problem = instance(family, 60, seed=seed, share=share)
    for states in (2_000_000, 20_000):
        one = replace(NUMPY, states=states).solve(problem)
        two = replace(NUMBA, states=states).solve(problem)
        assert (one.solver, two.solver) == ("exact", "exact (numba)")
        assert replace(two, solver="exact") == one


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "strong"])
def test_proves_a_language_model_optimal_within_one_part_in_a_billion(family: str) -> None:
    for share in (0.1, 0.35, 0.7):
        problem = instance(family, 224, share=share)
        solution = Exact().solve(problem)
        assert solution.status is Status.OPTIMAL
        assert problem.feasible(solution.choice)
        assert solution.gap <= OPTIMAL_GAP * problem.span


@pytest.mark.parametrize("family", ["llm_int", "moe_int", "lat_real", "convex_real", "strong"])
def test_no_answer_of_highs_is_better(family: str) -> None:
    problem = instance(family, 50)
    loss, cost = problem.loss.values, problem.budgets[0].cost
    assert isinstance(cost, Table)
    rows, columns = loss.shape
    scaled = (loss - loss.min(axis=1)[:, None]) / problem.span * 1e6
    one_each = np.kron(np.eye(rows), np.ones(columns))
    room = problem.budgets[0].limit - cost.values.min(axis=1).sum()
    used = (cost.values - cost.values.min(axis=1)[:, None]) / room
    theirs = milp(
        scaled.ravel(),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(used.ravel()[None], -np.inf, 1.0),
        ],
        integrality=np.ones(rows * columns),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    solution = Exact().solve(problem)
    least = math.fsum(loss.min(axis=1))
    ours = (solution.loss - least) / problem.span * 1e6
    assert ours == pytest.approx(theirs.fun, abs=2e-2)  # HiGHS may overdraw by 1e-6 of a budget


@given(st.integers(0, 1 << 16), st.sampled_from([1e-12, 1e-6, 1e6, 1e12]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_scales_and_orders_change_no_answer(seed: int, scale: float, losses: bool) -> None:
    bare = instance("lat_real", 30, 4, seed)
    cost = bare.budgets[0].cost
    assert isinstance(cost, Table)
    two = 2.0 ** round(math.log2(scale))
    choice = Exact().solve(bare).choice
    if losses:
        scaled = asked(bare.loss.values * two, cost.values, bare.budgets[0].limit)
    else:
        scaled = asked(bare.loss.values, cost.values * two, bare.budgets[0].limit * two)
    assert Exact().solve(scaled).choice == choice
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(30), rng.permutation(4)
    turned = asked(
        bare.loss.values[rows][:, columns], cost.values[rows][:, columns], bare.budgets[0].limit
    )
    assert tuple(columns[list(Exact().solve(turned).choice)]) == tuple(np.array(choice)[rows])


def test_a_gap_is_kept_and_stops_sooner() -> None:
    problem = instance("strong", 224)
    for gap in (1e-3, 1e-5):
        solution = Exact(gap=gap).solve(problem)
        assert solution.gap <= gap * problem.span
        assert solution.bound <= Exact().solve(problem).loss <= solution.loss


def test_where_states_run_out_the_bound_is_what_was_proven() -> None:
    problem = instance("strong", 1000, seed=1, share=0.1)
    solution = Exact(states=100_000).solve(problem)
    assert solution.status is Status.FEASIBLE
    assert problem.feasible(solution.choice)
    assert 0 < solution.gap <= 1e-4 * problem.span


def test_a_budget_of_even_numbers_leaves_the_odd_one() -> None:
    """Without this the last unit of room is never shown to be of no use."""
    problem = instance("subset", 100)
    assert problem.budgets[0].limit % 2 == 1
    solution = Exact(states=200_000).solve(problem)
    assert (solution.status, solution.bound) == (Status.OPTIMAL, solution.loss)


def test_one_layer_of_a_million_options() -> None:
    rng = np.random.default_rng(0)
    labels = tuple(Option(label=f"o{k}") for k in range(10**6))
    loss = Table(numbered(1), labels, rng.random((1, 10**6)), "loss")
    size = Table(numbered(1), labels, rng.integers(0, 10**6, (1, 10**6)), "byte", "size")
    same = replace(size, values=np.full((1, 10**6), 7))
    for cost in (size, same):
        best = np.where(cost.values[0] <= 5000, loss.values[0], np.inf).argmin()
        solution = NUMPY.solve(Problem(loss, (Budget(cost, 5000),)))
        assert solution.choice == (int(best),)
        assert solution.status is Status.OPTIMAL


ABOVE = 1 + 1e-12 + 3 * 2.0**-52  # above a limit of 1 by more than is allowed, but by rounding only


@pytest.mark.parametrize("solver", [NUMPY, NUMBA])
def test_what_only_seems_to_fit_is_not_taken(solver: Exact) -> None:
    second = asked(np.array([[3.0, 0.0]]), np.array([[0.5, ABOVE]]), 1.0)
    solution = solver.solve(second)
    assert (solution.choice, solution.loss) == ((0,), 3.0)
    assert solution.bound <= 3.0
    coarse = asked(np.array([[3.0, 0.0, 0.0]]), np.array([[1.0, ABOVE, 1e9]]), 1.0)
    assert solver.solve(coarse).choice == (0,)
    neither = asked(np.array([[3.0, 0.0]]), np.array([[ABOVE, ABOVE]]), 1.0)
    assert solver.solve(neither).status is Status.INFEASIBLE
    tied = replace(asked(np.ones((2, 2)), np.full((2, 2), ABOVE / 2), 1.0), ties=((0, 1),))
    assert solver.solve(tied).status is Status.UNKNOWN


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for solver in (NUMPY, NUMBA):
        solver.solve(instance("moe_int", 224))
    assert capfd.readouterr() == ("", "")


def test_without_numba_numpy_answers_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = instance("moe_int", 50)
    wanted = NUMPY.solve(problem)
    monkeypatch.setitem(sys.modules, "mpsearch.solvers.compiled", None)
    monkeypatch.delattr("mpsearch.solvers.compiled")
    assert NUMBA.solve(problem) == wanted


def test_auto_loads_numba_only_for_what_is_hard(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = instance("strong", 224)
    wanted = NUMPY.solve(hard)
    monkeypatch.setattr("mpsearch.solvers.exact.PAYS", 10_000)
    assert Exact().solve(instance("llm_int", 224)).solver == "exact"
    assert Exact().solve(hard) == replace(wanted, solver="exact (numba)")


def test_first_in_layer_order_gives_up_beyond_its_states(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, cost = np.tile([3, 1, 0], (40, 1)), np.tile([0, 2, 3], (40, 1))
    problem = asked(loss, cost, 61)
    best = Exact().solve(problem)
    found: list[Any] = []
    whole = layer_order.first

    def narrow(core: Any, picks: Any, answer: Any, limits: Any) -> Any:
        found.append(whole(core, picks, answer, replace(limits, states=1)))
        return found[-1]

    monkeypatch.setattr("mpsearch.solvers.exact.first", narrow)
    assert Exact().solve(problem).loss == best.loss
    assert found == [None]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("gap", 1.0, r"gap is 1.0; give a part of the span"),
        ("gap", -1e-9, r"gap is -1e-09; give a part of the span"),
        ("gap", math.nan, r"gap is nan; give a part of the span"),
        ("states", 0, r"states is 0; allow at least 1"),
        ("compiled", "yes", r"compiled is 'yes'; it is 'auto', 'never' or 'always'"),
    ],
)
def test_settings_are_checked(field: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Exact(**{field: value})


def test_narrowed_keeps_the_best_bounds_and_says_what_it_dropped() -> None:
    nought, none = np.zeros(5, np.int64), np.zeros(5, np.int32)
    bound = np.array([3.0, 1.0, 2.0, 2.0, 9.0])
    states = search.States(np.arange(5), nought, bound, nought == 1, none, none)
    kept, lost = search._narrowed(states, 0, 0.0, 2)
    assert kept.usage.tolist() == [1, 2]
    assert lost == 2.0


@pytest.mark.parametrize("count", [1, 7, 65])
def test_compiled_states_are_those_of_numpy(count: int) -> None:
    rng = np.random.default_rng(count)
    none = np.zeros(50, np.int32)
    old = search.States(
        np.sort(rng.choice(999, 50, replace=False)),
        -np.sort(-rng.choice(999, 50, replace=False)),
        np.zeros(50),
        rng.random(50) < 0.2,
        none,
        none,
    )
    gain, usage = rng.integers(-50, 50, (2, count))
    gain[0] = usage[0] = 0
    one, two = (g(old, gain, usage, (0.5, 2.0), 700, 600.0) for g in (search.grown, compiled.grown))
    for name in ("usage", "gain", "bound", "tied", "parent", "move"):
        assert getattr(one, name).tolist() == getattr(two, name).tolist()
    assert len(one.usage) > 1
