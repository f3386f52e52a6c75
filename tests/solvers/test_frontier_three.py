import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpsearch.problem import Budget, Problem
from mpsearch.solvers import Milp
from mpsearch.solvers.frontier_three import FrontierThree, undominated
from mpsearch.tables import Table
from mpsearch.testing.solver import problem

COSTS = ("size", "latency")


def asked(seed: int, layers: int = 5, *, real: bool = False) -> Problem:
    rng = np.random.default_rng(seed)
    bare = problem(0)
    names = tuple(replace(bare.loss.layers[0], name=f"l{i}") for i in range(layers))
    loss = np.sort(rng.exponential(size=(layers, 3)), axis=1)[:, ::-1]
    size = rng.integers(1, 50, (layers, 1)) * np.array([2, 4, 8])
    latency = rng.uniform(1, 9, (layers, 3)) if real else rng.integers(1, 9, (layers, 3))
    tables = [
        Table(names, bare.loss.options, values, "unit", name)
        for values, name in zip((size, latency), COSTS, strict=True)
    ]
    return Problem(Table(names, bare.loss.options, loss, "loss"), (), tuple(tables))


def brute(held: Problem) -> Any:
    """(P, 3) the loss and the costs of every choice within the budgets."""
    rows, columns = held.loss.values.shape
    return np.array(
        [
            [held.total(c), *(cost.total(c) for cost in held.costs)]
            for c in itertools.product(range(columns), repeat=rows)
            if held.feasible(c)
        ]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("real", [False, True])
def test_no_point_is_beaten_by_another_and_every_bound_holds(seed: int, real: bool) -> None:
    held = asked(seed, real=real)
    every = brute(held)
    points = FrontierThree(weights=20, grid=4).frontier(held, COSTS)
    mine = np.array([[p.loss, *(p.cost[name] for name in COSTS)] for p in points])
    assert len(points) > 5
    for point, row in zip(points, mine, strict=True):
        assert point.loss == held.total(point.choice)
        beats = (mine <= row).all(axis=1)
        assert beats.sum() == 1
        inside = (every[:, 1:] <= row[1:]).all(axis=1)
        assert point.bound <= every[inside, 0].min() + 1e-15
    assert mine.tolist() == sorted(mine.tolist(), key=lambda row: row[1:])


@pytest.mark.parametrize("seed", range(3))
def test_with_a_proving_solver_box_by_box_the_points_are_on_the_true_frontier(seed: int) -> None:
    held = asked(seed)
    every = brute(held)
    true = {tuple(row) for row in every[undominated(every)].tolist()}
    points = FrontierThree(weights=50, grid=4, solver=Milp()).frontier(held, COSTS)
    mine = {(p.loss, *(p.cost[name] for name in COSTS)) for p in points}
    swept = FrontierThree(weights=50, grid=0).frontier(held, COSTS)
    assert {(p.loss, *(p.cost[name] for name in COSTS)) for p in swept} <= true
    assert all(p.loss - p.bound <= 1e-9 * held.span for p in swept)
    for row in mine - true:  # no point loses more than the best that costs no more
        better = [r for r in true if r[1] <= row[1] and r[2] <= row[2]]
        assert min(r[0] for r in better) == row[0]
    assert len(mine) > len(swept) / 2


def test_bounds_hold_for_what_a_budget_of_the_cost_lets_in() -> None:
    held = asked(0, 3)
    near = 1.0 + 1e-14 * np.arange(9).reshape(3, 3)
    latency = Table(held.loss.layers, held.loss.options, near, "ms", "latency")
    held = replace(held, costs=(held.costs[0], latency))
    points = FrontierThree(weights=30, grid=0).frontier(held, COSTS)
    assert len(points) > 2
    for point in points:
        budgets = tuple(Budget(c, point.cost[c.name]) for c in held.costs)
        best = brute(replace(held, budgets=budgets))[:, 0].min()
        assert point.bound <= best + 1e-15


def test_prices_alone_miss_points_that_boxes_find() -> None:
    held = asked(1, 7)
    few = FrontierThree(weights=50, grid=0).frontier(held, COSTS)
    more = FrontierThree(weights=50, grid=8).frontier(held, COSTS)
    assert {p.choice for p in more} - {p.choice for p in few}


def test_budgets_on_the_costs_hold() -> None:
    held = asked(0)
    free = FrontierThree(weights=20, grid=3).frontier(held, COSTS)
    limit = int(np.median([p.cost["size"] for p in free]))
    cut = replace(held, budgets=(Budget(held.costs[0], limit),))
    points = FrontierThree(weights=20, grid=3).frontier(cut, COSTS)
    assert points
    assert all(p.cost["size"] <= limit for p in points)
    least = held.costs[0].least() - 1
    assert (
        FrontierThree().frontier(replace(held, budgets=(Budget(held.costs[0], least),)), COSTS)
        == ()
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_is_what_no_other_beats(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (30, 3))
    kept = undominated(values)
    rows = [tuple(row) for row in values.tolist()]
    wanted = {
        a
        for a in rows
        if not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in rows)
    }
    assert sorted(rows[i] for i in kept) == sorted(wanted)


def test_it_needs_two_costs_that_add_up() -> None:
    held = asked(0)
    for costs in (("size", "size"), ("size", "energy")):
        with pytest.raises(ValueError, match=r"two costs that add up, got .*there are: 'size'"):
            FrontierThree().frontier(held, costs)
    energy = replace(held.costs[1], name="energy")
    third = replace(held, budgets=(Budget(energy, 1e9),))
    with pytest.raises(ValueError, match=r"takes 2 sum budget, got 3.*use the solver"):
        FrontierThree().frontier(third, COSTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": 1}, "weights is 1; give at least 2 prices a cost"),
        ({"grid": -1}, "grid is -1; give a number of budgets a cost, or 0"),
    ],
)
def test_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrontierThree(**settings)
