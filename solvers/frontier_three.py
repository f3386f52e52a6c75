"""Three objectives, loss and two costs: supported choices and certified boxes, joined.

A choice that is best for some price of each cost is found for a whole grid of prices at a time, and
is proven the best within what it costs (Geoffrion, "Proper Efficiency and the Theory of Vector
Maximization", 1968; Everett, "Generalized Lagrange Multiplier Method", Operations Research 11,
1963). What prices cannot reach is looked for under pairs of budgets (the epsilon-constraint method:
Haimes, Lasdon and Wismer, 1971), each answered with a bound of its own.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.pareto import Point
from mpsearch.problem import RELATIVE_TOLERANCE, Budget, Problem
from mpsearch.protocols import Solver
from mpsearch.solvers.front import scale
from mpsearch.solvers.hull import hull
from mpsearch.solvers.knapsack import ULP, Integers, Knapsack, knapsack
from mpsearch.solvers.lagrange import Lagrange
from mpsearch.tables import Floats, Table

NAME = "frontier-three"
CHUNK = 1 << 20  # priced entries at a time


@dataclass(frozen=True)
class FrontierThree:
    """Points of the frontier of loss and two sum costs, each with a proven bound.

    Attributes:
        weights: Prices tried for each cost; their pairs are all tried.
        grid: Budgets tried for each cost; their pairs are all solved.
        solver: Who solves two budgets.
    """

    weights: int = 100
    grid: int = 8
    solver: Solver = Lagrange()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.weights < 2:
            raise ValueError(f"weights is {self.weights}; give at least 2 prices a cost")
        if self.grid < 0:
            raise ValueError(f"grid is {self.grid}; give a number of budgets a cost, or 0 for none")

    def frontier(self, problem: Problem, costs: tuple[str, str]) -> tuple[Point, ...]:
        """Points none of which another beats in all three, by the first cost, then the second.

        Budgets on the two costs hold; no points where nothing was found within them. A point's
        bound is on the loss of every choice that costs at most as much in both. ``ValueError`` for
        interactions, side constraints, stages and budgets on other sums.
        """
        boxed = _boxed(problem, costs)
        sack = knapsack(boxed, NAME, rows=2)
        if sack is None:
            return ()
        points = list(_swept(sack, self.weights))
        for limits in _limits(points, costs, self.grid):
            points += _answered(boxed, dict(zip(costs, limits, strict=True)), self.solver)
        values = np.array([_objectives(p, costs) for p in points]).reshape(-1, 3)
        kept = [points[i] for i in undominated(values)]
        return tuple(sorted(kept, key=lambda p: tuple(p.cost[name] for name in costs)))


def _objectives(point: Point, costs: tuple[str, str]) -> list[float]:
    return [point.loss, *(point.cost[name] for name in costs)]


def _boxed(problem: Problem, costs: tuple[str, str]) -> Problem:
    """The problem with a budget on both costs, in their order; the dearest where it had none."""
    known = {c.name: c for c in problem.costs if isinstance(c, Table) and c.reduce == "sum"}
    if len(set(costs)) != 2 or not set(costs) <= known.keys():
        there = ", ".join(repr(name) for name in known) or "none"
        raise ValueError(f"{NAME} follows two costs that add up, got {costs}; there are: {there}")
    limits: dict[str, float] = {}
    for name in costs:
        values = np.where(problem.mask, known[name].values.astype(np.float64), -np.inf)
        limits[name] = known[name].total(values.argmax(axis=1))
    others: list[Budget] = []
    for budget in problem.budgets:
        if budget.cost.name in costs:
            limits[budget.cost.name] = min(limits[budget.cost.name], budget.limit)
        else:
            others.append(budget)
    held = tuple(Budget(known[name], limits[name]) for name in costs)
    return replace(problem, budgets=(*held, *others))


def _swept(sack: Knapsack, count: int) -> list[Point]:
    """The choices that are best at some pair of prices, within the budgets."""
    pairs, totals = _totals(sack, *(_prices(sack, row, count) for row in (0, 1)))
    fits = (totals[:, 1:] <= np.array(sack.room)).all(axis=1)
    pairs, totals = pairs[fits], totals[fits]
    scales = [scale(sack, row) for row in (0, 1)]
    points = []
    for index in undominated(totals):
        gain, *used = totals[index].tolist()
        price = (sack.gain + pairs[index, 0] * sack.usage[0]) + pairs[index, 1] * sack.usage[1]
        picks = price.argmin(axis=1)
        choice = sack.choice(picks)
        if sack.problem.feasible(choice):
            # No choice that uses at most as much gains less, but for rounding.
            slack = 16 * ULP * float(np.take_along_axis(price, picks[:, None], axis=1).sum())
            slack += sum(
                _spare(sack, *scales[row], used[row]) * pairs[index, row] for row in (0, 1)
            )
            points.append(_point(sack.problem, choice, sack.bound(gain - slack)))
    return points


def _spare(sack: Knapsack, base: float, unit: float, used: int) -> float:
    """The counts by which a budget of what is used may be passed."""
    if isinstance(base, int):
        return 0.0
    tolerance = (RELATIVE_TOLERANCE + 8 * ULP) * abs(base + used * unit)
    return 2 * len(sack.problem.loss.layers) + tolerance / unit


def _point(problem: Problem, choice: tuple[int, ...], bound: float) -> Point:
    loss = problem.total(choice)
    return Point(choice, loss, min(bound, loss), {c.name: c.total(choice) for c in problem.costs})


def _prices(sack: Knapsack, row: int, count: int) -> Floats:
    """0 and prices of a row, spread as the slopes of its hulls are, a little apart from them."""
    slopes = hull(sack.gain, sack.usage[row]).slope
    if not len(slopes):
        return np.zeros(1)
    low, high = np.log(slopes.min()), np.log(slopes.max())
    shares = np.linspace(0, 1, count - 1)
    spread = (np.log(np.quantile(slopes, shares)) + low + (high - low) * shares) / 2
    return np.append(0.0, np.exp(spread) * (1 + 1e-9))


def _totals(sack: Knapsack, one: Floats, two: Floats) -> tuple[Floats, Integers]:
    """(W, 2) every pair of prices, and (W, 3) the gain and usages of the cheapest choice there."""
    rows = np.arange(len(sack.gain))
    step = max(CHUNK // sack.gain.size, 1)
    totals: list[Integers] = []
    for first in one:
        price = sack.gain + first * sack.usage[0]
        for start in range(0, len(two), step):
            more = two[start : start + step, None, None] * sack.usage[1]
            picks = (price + more).argmin(axis=2)
            each = (sack.gain, sack.usage[0], sack.usage[1])
            totals.append(np.stack([table[rows, picks].sum(axis=1) for table in each], axis=1))
    pairs = np.stack([np.repeat(one, len(two)), np.tile(two, len(one))], axis=1)
    return pairs, np.concatenate(totals)


def _limits(points: list[Point], costs: tuple[str, str], grid: int) -> list[tuple[float, float]]:
    """Pairs of budgets, spread as the costs of the points are."""
    if not points or not grid:
        return []
    shares = np.arange(1, grid + 1) / (grid + 1)
    ones, twos = (
        np.quantile([p.cost[name] for p in points], shares, method="lower").tolist()
        for name in costs
    )
    return [(one, two) for one in sorted(set(ones)) for two in sorted(set(twos))]


def _answered(boxed: Problem, limits: dict[str, float], solver: Solver) -> list[Point]:
    """The answer within a pair of budgets, where one was found."""
    held = tuple(Budget(b.cost, limits.get(b.cost.name, b.limit)) for b in boxed.budgets)
    solution = solver.solve(replace(boxed, budgets=held))
    return [_point(boxed, solution.choice, solution.bound)] if solution.choice else []


def undominated(values: NDArray[np.int64] | Floats) -> list[int]:
    """Which of (P, 3) rows no other equals or beats in every number; of equals the first."""
    ones: list[float] = []  # a staircase of the last two numbers: the second falls where this rises
    twos: list[float] = []
    kept: list[int] = []
    for index in np.lexsort(values.T[::-1]).tolist():
        _, one, two = values[index].tolist()
        place = bisect_right(ones, one)
        if place and twos[place - 1] <= two:
            continue
        end = place
        while end < len(twos) and twos[end] >= two:
            end += 1
        ones[place:end], twos[place:end] = [one], [two]
        kept.append(index)
    return kept
