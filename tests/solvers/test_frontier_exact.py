import itertools
import math
import sys
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers.exhaustive import Exhaustive
from mpsearch.solvers.front import Front
from mpsearch.solvers.frontier_exact import FrontierExact
from mpsearch.tables import Cost, Stages, Table
from mpsearch.testing.solver import SolverSuite, problem
from tests.solvers.problems import problems

SMALL = FrontierExact(compiled="never")


class TestFrontierExact(SolverSuite):
    solver = FrontierExact()
    supports = frozenset({"masks", "ties", "max"})


class TestFewLabels(SolverSuite):
    solver = FrontierExact(states=6, epsilon=0.5)
    supports = frozenset({"masks", "ties", "max"})
    proves = False


def held(asked: Problem) -> Problem:
    """The problem without what a frontier does not take: one sum is followed, others go."""
    kinds: list[Budget] = []
    costs: list[Cost] = [c for c in asked.costs if isinstance(c, Table) and c.reduce == "sum"]
    for budget in asked.budgets:
        one_sum = isinstance(budget.cost, Table) and budget.cost.reduce == "sum"
        if one_sum and budget.cost is not costs[0]:
            continue
        if not isinstance(budget.cost, Stages):
            kinds.append(budget)
    return replace(asked, budgets=tuple(kinds), constraints=(), interactions=())


def brute(asked: Problem, cost: Cost) -> list[tuple[Fraction, Fraction]]:
    """Every cost and loss that no choice beats, in exact arithmetic."""

    def exact(table: Any, choice: Any) -> Fraction:
        return sum((Fraction(n) for n in table.chosen(choice).tolist()), Fraction(table.fixed))

    rows, columns = asked.loss.values.shape
    every = [
        (exact(cost, c), exact(asked.loss, c))
        for c in itertools.product(range(columns), repeat=rows)
        if asked.feasible(c)
    ]
    kept: list[tuple[Fraction, Fraction]] = []
    for point in sorted(every):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def check(front: Front, asked: Problem, cost: Cost) -> None:
    """The points are those of brute force, but for what floats cannot tell apart."""
    wanted = brute(asked, cost)
    assert bool(len(front)) == bool(wanted)
    scale = max([abs(float(loss)) for _, loss in wanted] + [asked.span, 1e-300])
    near = 1e-9 * scale
    dear = 1e-9 * max([abs(float(price)) for price, _ in wanted] + [1e-300])
    for index in range(len(front)):
        choice = front.choice(index)
        assert asked.feasible(choice)
        assert math.isclose(asked.total(choice), front.loss[index], rel_tol=1e-12, abs_tol=near)
        assert math.isclose(cost.total(choice), front.cost[index], rel_tol=1e-12, abs_tol=dear)
        if front.cost.dtype == np.int64:
            assert cost.total(choice) == front.cost[index]
    for price, loss in wanted:
        at = [i for i in range(len(front)) if front.cost[i] <= float(price) + dear]
        assert at
        assert min(front.loss[i] for i in at) <= float(loss) + near
    for index, bound in enumerate(front.bound):
        assert all(
            float(loss) >= bound for price, loss in wanted if price <= Fraction(front.cost[index])
        )


@given(problems())
def test_the_frontier_is_that_of_brute_force(drawn: Problem) -> None:
    asked = held(drawn)
    if not asked.costs or not isinstance(asked.costs[0], Table):
        return
    sums = [c for c in asked.costs if isinstance(c, Table) and c.reduce == "sum"]
    if sums:
        followed = next((b.cost for b in asked.budgets if b.cost in sums), sums[0])
        front = SMALL.frontier(asked)
        check(front, asked, followed)
        assert front.exact


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("feature", [None, "masks", "ties", "max"])
def test_each_point_is_the_answer_to_its_own_budget(seed: int, feature: Any) -> None:
    asked = problem(seed, feature)
    cost = asked.budgets[0].cost
    front = SMALL.frontier(asked, cost.name)
    other = tuple(b for b in asked.budgets if b.cost is not cost)
    for index in range(len(front)):
        limit = cost.total(front.choice(index))
        alone = Exhaustive().solve(replace(asked, budgets=(*other, Budget(cost, limit))))
        assert math.isclose(asked.total(front.choice(index)), alone.loss, rel_tol=1e-12)


def curve(seed: int, layers: int = 24, *, real: bool = False) -> Problem:
    """Losses fall and costs rise with each option, on no line."""
    rng = np.random.default_rng(seed)
    bare = problem(0)
    names = tuple(replace(bare.loss.layers[0], name=f"l{i}") for i in range(layers))
    size = rng.integers(1, 1000, (layers, 1))
    values = size * np.array([2, 4, 8]) + rng.integers(0, 9, (layers, 3))
    loss = rng.exponential(size=(layers, 1)) * 4.0 ** -np.array([2, 4, 8])
    loss *= np.exp(rng.normal(0, 0.3, loss.shape))
    cost = Table(names, bare.loss.options, values * (0.1 if real else 1), "byte", "size")
    return Problem(Table(names, bare.loss.options, loss, "loss"), (), (cost,))


@pytest.mark.parametrize("real", [False, True])
def test_costs_rise_and_losses_fall_also_as_floats(real: bool) -> None:
    front = SMALL.frontier(curve(0, real=real))
    assert len(front) > 400
    assert (np.diff(front.cost) > 0).all()
    assert (np.diff(front.loss) < 0).all()
    assert front.cost.dtype == (np.float64 if real else np.int64)
    assert front.exact
    assert front.epsilon == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_layers_and_options_changes_no_point(seed: int) -> None:
    asked = curve(seed)
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(24), rng.permutation(3)

    def turned(table: Any) -> Any:
        return replace(
            table,
            layers=[table.layers[i] for i in rows],
            options=tuple(table.options[i] for i in columns),
            values=table.values[rows][:, columns],
        )

    one = SMALL.frontier(asked)
    two = SMALL.frontier(Problem(turned(asked.loss), (), (turned(asked.costs[0]),)))
    assert (one.usage == two.usage).all()
    assert (one.gain == two.gain).all()
    back = np.empty(24, int)
    back[rows] = columns[list(two.choice(7))]
    assert tuple(back) == one.choice(7)


def test_a_budget_on_the_cost_cuts_the_frontier_there() -> None:
    asked = curve(1)
    whole = SMALL.frontier(asked)
    limit = int(whole.cost[len(whole) // 2])
    cut = SMALL.frontier(replace(asked, budgets=(Budget(asked.costs[0], limit),)))
    assert (cut.cost == whole.cost[: len(whole) // 2 + 1]).all()
    assert (cut.gain == whole.gain[: len(cut)]).all()
    assert cut.exact


def test_a_frontier_of_nothing_feasible_has_no_points() -> None:
    asked = curve(1)
    cost = asked.costs[0]
    below = replace(asked, budgets=(Budget(cost, cost.least() - 1),))
    front = SMALL.frontier(below)
    assert len(front) == 0
    assert front.points() == ()
    assert len(front.cost) == len(front.loss) == len(front.bound) == 0
    assert front.exact
    with pytest.raises(IndexError, match="no points: no choice is within the budget"):
        front.picks(0)
    assert SMALL.solve(below).status is Status.INFEASIBLE


def test_many_small_merges_and_few_large_ones_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = SMALL.frontier(curve(2))
    monkeypatch.setattr("mpsearch.solvers.labels.BLOCK", 7)
    two = SMALL.frontier(curve(2))
    assert (one.usage == two.usage).all()
    assert (one.gain == two.gain).all()


@pytest.mark.parametrize("states", [10**6, 400])
@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("grain", [1, 500])
def test_compiled_points_are_the_same_bit_for_bit(states: int, share: float, grain: int) -> None:
    pytest.importorskip("numba")
    asked = curve(3)
    size = asked.costs[0]
    assert isinstance(size, Table)
    cost = replace(size, values=size.values // grain)  # large grains make equal costs
    asked = replace(asked, costs=(cost,))
    dear = cost.total([2] * 24)
    asked = replace(asked, budgets=(Budget(cost, int(share * dear)),))
    settings: dict[str, Any] = {"states": states, "epsilon": 0.1}
    one = FrontierExact(compiled="never", **settings).frontier(asked)
    two = FrontierExact(compiled="always", **settings).frontier(asked)
    for name in ("usage", "gain", "least", "between"):
        assert (getattr(one, name) == getattr(two, name)).all()
    assert one.choice(-1) == two.choice(-1)
    assert (one.solver, two.solver) == ("frontier-exact", "frontier-exact, compiled")


def missing(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}")


def test_auto_compiles_only_where_there_are_many_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    assert FrontierExact().frontier(curve(3)).solver == "frontier-exact"
    monkeypatch.setattr("mpsearch.solvers.frontier_exact.WORTH", 1000)
    assert FrontierExact().frontier(curve(3)).solver == "frontier-exact, compiled"
    monkeypatch.setattr("mpsearch.solvers.front.import_module", missing)
    assert FrontierExact().frontier(curve(3)).solver == "frontier-exact"


def test_nothing_compiled_is_loaded_for_a_small_frontier() -> None:
    before = set(sys.modules)
    FrontierExact().frontier(curve(0, 5))
    assert not {name for name in set(sys.modules) - before if "numba" in name}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("states", [1000, 300, 70])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_with_few_labels_what_is_proven_holds(seed: int, states: int, share: float) -> None:
    asked = curve(seed)
    cost = asked.costs[0]
    limit = int(cost.least() + share * (cost.total([2] * 24) - cost.least()))
    asked = replace(asked, budgets=(Budget(cost, limit),))
    whole = SMALL.frontier(asked)
    few = FrontierExact(states=states, compiled="never").frontier(asked)
    assert not few.exact
    assert len(few) < len(whole)
    assert 0 < few.epsilon < math.inf
    at = np.searchsorted(few.usage, whole.usage, side="right") - 1
    assert (at >= 0).all()
    assert (few.gain[at] >= whole.gain).all()
    assert (few.between[at] <= whole.gain).all()
    assert (few.gain[at] <= whole.gain * (1 + few.epsilon) * (1 + 1e-12)).all()
    best = np.searchsorted(whole.usage, few.usage, side="right") - 1
    assert (few.least <= whole.gain[best]).all()
    assert (few.between <= few.least).all()
    for index in range(0, len(few), 7):
        assert asked.feasible(few.choice(index))
        assert asked.total(few.choice(index)) == pytest.approx(few.loss[index])


def test_the_error_aimed_at_is_kept_where_labels_allow() -> None:
    asked = curve(0)
    whole = FrontierExact(compiled="never").frontier(asked)
    few = FrontierExact(states=3 * len(whole), epsilon=0.3, compiled="never").frontier(asked)
    assert not few.exact
    assert few.epsilon <= 0.3


def test_an_epsilon_of_zero_refuses_to_merge_labels() -> None:
    with pytest.raises(ValueError, match=r"more than states=100 labels; raise states.*epsilon"):
        FrontierExact(states=100, epsilon=0).frontier(curve(0))
    assert FrontierExact(epsilon=0).frontier(curve(0)).exact


def test_a_thinned_frontier_keeps_its_ends_and_bounds_what_it_left_out() -> None:
    asked = curve(0)
    whole = SMALL.frontier(asked)
    few = whole.thinned(20)
    assert 10 <= len(few) <= 20
    assert (few.cost[0], few.cost[-1]) == (whole.cost[0], whole.cost[-1])
    for index in range(len(few) - 1):
        inside = (whole.usage >= few.usage[index]) & (whole.usage < few.usage[index + 1])
        assert whole.gain[inside].min() == few.between[index]
    assert (few.least == few.gain).all()
    assert few.choice(3) == whole.choice(int(np.flatnonzero(whole.usage == few.usage[3])[0]))
    assert whole.thinned(10**6) is whole
    with pytest.raises(ValueError, match="got 1 points; a thinned frontier has its two ends"):
        whole.thinned(1)


def test_points_carry_exact_totals_and_proven_bounds() -> None:
    asked = curve(0, real=True)
    front = SMALL.frontier(asked).thinned(30)
    points = front.points()
    assert len(points) == len(front)
    for point in points:
        assert point.loss == asked.total(point.choice)
        assert point.cost == {"size": asked.costs[0].total(point.choice)}
        assert point.between is not None
        assert point.between <= point.bound <= point.loss
        assert point.loss - point.bound <= 1e-9 * asked.span


def test_the_cost_named_is_followed_and_told_first() -> None:
    asked = curve(0)
    other = replace(curve(5).costs[0], name="latency")
    both = replace(asked, costs=(*asked.costs, other))
    front = SMALL.frontier(both, "latency")
    assert (front.usage == SMALL.frontier(replace(asked, costs=(other,))).usage).all()
    assert set(front.thinned(3).points()[0].cost) == {"size", "latency"}
    assert (SMALL.frontier(both).cost == SMALL.frontier(asked).cost).all()
    with_budget = replace(both, budgets=(Budget(other, other.total([2] * 24)),))
    assert (SMALL.frontier(with_budget).cost == front.cost).all()


def single(loss: Any, cost: Any, *, loss_fixed: float = 0, cost_fixed: float = 0) -> Problem:
    """One layer of three options."""
    bare = problem(0).loss
    rows = bare.layers[:1]
    return Problem(
        Table(rows, bare.options, np.array([loss]), "loss", fixed=loss_fixed),
        (),
        (Table(rows, bare.options, np.array([cost]), "ms", "latency", fixed=cost_fixed),),
    )


def test_costs_that_a_budget_cannot_tell_apart_share_a_bound() -> None:
    asked = single([2.0, 1.0, 0.0], [1.0, 1.0 + 1e-14, 2.0])
    front = SMALL.frontier(asked)
    assert front.loss.tolist() == [2.0, 1.0, 0.0]
    assert front.bound[0] <= 1.0
    assert front.bound[1] > 0.9
    held = replace(asked, budgets=(Budget(asked.costs[0], front.cost[0]),))
    assert SMALL.solve(held).loss == 1.0


def test_points_that_floats_cannot_tell_apart_are_one() -> None:
    costs = SMALL.frontier(single([2.0, 1.0, 0.0], [0.25, 0.5, 64.0], cost_fixed=1e16))
    assert len(costs) == 2
    assert [costs.choice(i) for i in range(2)] == [(1,), (2,)]
    losses = SMALL.frontier(single([64.0, 0.5, 0.25], [1, 2, 3], loss_fixed=1e16))
    assert [losses.choice(i) for i in range(2)] == [(0,), (1,)]
    assert costs.exact
    assert len(losses) == 2


def test_other_budgets_on_sums_are_refused_and_milp_is_named() -> None:
    asked = curve(0)
    other = replace(curve(5).costs[0], name="latency")
    both = replace(asked, costs=(*asked.costs, other), budgets=(Budget(other, 1e9),))
    with pytest.raises(ValueError, match=r"follows 'size' alone.*budgets on latency; use.*milp"):
        SMALL.frontier(both, "size")
    with pytest.raises(ValueError, match=r"a cost that adds up, got 'ms'; there are: 'size'"):
        SMALL.frontier(asked, "ms")
    with pytest.raises(ValueError, match="a cost that adds up, got None; there are: none"):
        SMALL.frontier(replace(asked, costs=()))


@given(st.integers(0, 1 << 16))
def test_numbers_of_very_different_sizes_are_kept_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = curve(0, 5)
    values = 10 ** rng.integers(0, 16, (5, 3))
    loss = rng.normal(size=(5, 3)) * 10.0 ** rng.integers(-12, 12, (5, 1))
    cost = Table(asked.loss.layers, asked.loss.options, values, "byte", "size")
    mixed = Problem(replace(asked.loss, values=loss), (), (cost,))
    check(SMALL.frontier(mixed), mixed, cost)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": 0}, "states is 0; allow at least one label"),
        ({"epsilon": -1.0}, "epsilon is -1.0; give a finite number, 0 or above"),
        ({"epsilon": math.inf}, "epsilon is inf; give a finite number"),
        ({"epsilon": math.nan}, "epsilon is nan; give a finite number"),
        ({"compiled": "yes"}, "compiled is 'yes'; say 'auto', 'never' or 'always'"),
    ],
)
def test_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrontierExact(**settings)


def test_compiled_code_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpsearch.solvers.front.import_module", missing)
    with pytest.raises(ImportError, match=r"needs numba: pip install mpsearch\[fast\]"):
        FrontierExact(compiled="always").frontier(curve(0))
