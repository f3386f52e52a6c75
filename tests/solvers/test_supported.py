from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mpsearch.problem import Budget, Problem
from mpsearch.solvers.frontier_exact import FrontierExact
from mpsearch.solvers.knapsack import knapsack
from mpsearch.solvers.supported import Supported, walked
from mpsearch.tables import Table
from mpsearch.testing.solver import problem

EXACT = FrontierExact(compiled="never")


def mixed(seed: int, layers: int = 8, *, whole: bool = False) -> Problem:
    """Random losses and costs, dominated options among them; small whole ones have ties."""
    rng = np.random.default_rng(seed)
    bare = problem(0)
    names = tuple(replace(bare.loss.layers[0], name=f"l{i}") for i in range(layers))
    loss = rng.integers(0, 6, (layers, 3)) if whole else rng.normal(size=(layers, 3))
    cost = rng.integers(0, 6 if whole else 1000, (layers, 3))
    return Problem(
        Table(names, bare.loss.options, loss, "loss"),
        (),
        (Table(names, bare.loss.options, cost, "byte", "size"),),
    )


def corners(usage: Any, gain: Any) -> list[tuple[int, int]]:
    """The lower left hull of points that fall, in whole numbers."""
    kept: list[tuple[int, int]] = []
    for x, y in zip(usage.tolist(), gain.tolist(), strict=True):
        while len(kept) > 1 and (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0]) >= (
            y - kept[-2][1]
        ) * (kept[-1][0] - kept[-2][0]):
            kept.pop()
        kept.append((x, y))
    return kept


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("whole", [False, True])
def test_the_points_are_the_lower_hull_of_the_exact_frontier(seed: int, whole: bool) -> None:
    asked = mixed(seed, whole=whole)
    exact, found = EXACT.frontier(asked), Supported().frontier(asked)
    every = set(zip(exact.usage.tolist(), exact.gain.tolist(), strict=True))
    mine = list(zip(found.usage.tolist(), found.gain.tolist(), strict=True))
    assert set(mine) <= every
    hull = corners(exact.usage, exact.gain)
    assert set(hull) <= set(mine)
    xs = [x for x, _ in hull]
    for x, y in mine:  # those between corners lie on an edge
        right = min(range(len(xs)), key=lambda i: (xs[i] < x, xs[i]))
        if xs[right] != x:
            (a, b), (c, d) = hull[right - 1], hull[right]
            assert Fraction(y - b, x - a) == Fraction(d - b, c - a)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("feature", [None, "masks", "ties", "max"])
def test_choices_cost_and_lose_what_is_said_within_the_budget(seed: int, feature: Any) -> None:
    asked = problem(seed, feature)
    cost = asked.budgets[0].cost
    front = Supported().frontier(asked, cost.name)
    exact = EXACT.frontier(asked, cost.name)
    assert bool(len(front)) == bool(len(exact))
    for index, choice in enumerate(front.choices(np.arange(len(front)))):
        assert asked.feasible(choice)
        assert asked.total(choice) == pytest.approx(front.loss[index], rel=1e-12)
        assert cost.total(choice) == pytest.approx(front.cost[index], rel=1e-12)
        assert front.bound[index] <= asked.total(choice)
    at = np.searchsorted(front.usage, exact.usage, side="right") - 1
    assert (front.between[at] <= exact.gain).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_line_between_points_bounds_every_choice(seed: int) -> None:
    asked = mixed(seed)
    sack = knapsack(asked, "test")
    assert sack is not None
    exact = EXACT.frontier(asked)
    assert (walked(sack).within(exact.usage) <= exact.gain).all()
    assert (walked(sack).within(exact.usage + 1) >= exact.gain / 2 - exact.gain[0]).all()


def test_a_budget_cuts_the_points_and_bounds_those_left_out() -> None:
    asked = mixed(0)
    whole = Supported().frontier(asked)
    limit = int(whole.cost[4]) - 1
    cut = Supported().frontier(replace(asked, budgets=(Budget(asked.costs[0], limit),)))
    assert (cut.usage == whole.usage[:4]).all()
    assert whole.gain[4] <= cut.between[-1] <= whole.gain[3]
    assert not cut.exact
    below = replace(asked, budgets=(Budget(asked.costs[0], asked.costs[0].least() - 1),))
    assert len(Supported().frontier(below)) == 0


def test_one_choice_alone_is_a_frontier_of_one_point() -> None:
    bare = mixed(0, 1)
    single = np.array([[False, True, False]])
    front = Supported().frontier(replace(bare, loss=replace(bare.loss, allowed=single)))
    assert [front.choice(i) for i in range(len(front))] == [(1,)]
    assert front.exact


def test_other_budgets_on_sums_are_refused() -> None:
    asked = mixed(0)
    other = replace(asked.costs[0], name="latency")
    both = replace(asked, costs=(*asked.costs, other), budgets=(Budget(other, 10),))
    with pytest.raises(ValueError, match=r"supported follows 'size' alone.*use the solver milp"):
        Supported().frontier(both, "size")


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_points_are_the_same_bit_for_bit(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    asked = mixed(1, 40, whole=whole)
    one = Supported(compiled="never").frontier(asked)
    two = Supported(compiled="always").frontier(asked)
    for name in ("usage", "gain", "least", "between"):
        assert (getattr(one, name) == getattr(two, name)).all()
    assert one.choice(3) == two.choice(3)
    assert (one.solver, two.solver) == ("supported", "supported, compiled")
    monkeypatch.setattr("mpsearch.solvers.supported.WORTH", 40)
    assert Supported().frontier(asked).solver == "supported, compiled"
    with pytest.raises(ValueError, match="compiled is 'no'; say 'auto', 'never' or 'always'"):
        Supported(compiled="no")  # type: ignore[arg-type]


def test_costs_that_differ_in_their_last_bits_only_are_told_exactly() -> None:
    of, base = mixed(0, 3), 1 << 58
    loss = np.array([[3.0, 1.0], [2.0, 0.5], [1.0, 0.0]])
    cost = np.array([[base, base + 1], [-base, 1 - base], [-base, 7 - base]])
    layers, options = of.loss.layers, of.loss.options[:2]
    asked = Problem(
        Table(layers, options, loss, "loss"), (), (Table(layers, options, cost, "byte", "size"),)
    )
    front = Supported().frontier(asked)
    assert front.cost.tolist() == [-base, 1 - base, 2 - base, 9 - base]
