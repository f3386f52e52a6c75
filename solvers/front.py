"""What a frontier solver gives: costs and losses of many points, and choices when asked for."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np

from mpsearch.pareto import Point
from mpsearch.problem import RELATIVE_TOLERANCE, Problem
from mpsearch.solvers.knapsack import ULP, Integers, Knapsack
from mpsearch.tables import Floats, Numbers, Table

Compiled = Literal["auto", "never", "always"]  # whether compiled code runs


class Trail(Protocol):
    """How the points of a sweep were reached."""

    def picks(self, spots: Integers) -> Integers:
        """(m, n) the entry of each class, at m places of the sweep."""
        ...


@dataclass(frozen=True, eq=False)
class Front:
    """P points along one cost, cheapest first, none as cheap and as good as another.

    Attributes:
        sack: The problem in integers; ``None`` where nothing is feasible, and then P is 0.
        usage: (P,) cost above the least, in counts; strictly rising.
        gain: (P,) loss above the least, in counts; strictly falling.
        least: (P,) no choice that uses at most as much gains less: equal to ``gain`` where the
            point is proven the best for its cost.
        between: (P,) no choice that uses less than the next point gains less: equal to ``gain``
            where nothing is left out before the next one.
        spots: (P,) where the points stand in the trail.
        trail: How to find their choices; they are not kept.
        solver: Who found them.
    """

    sack: Knapsack | None
    usage: Integers
    gain: Integers
    least: Integers
    between: Integers
    spots: Integers
    trail: Trail | None
    solver: str

    @classmethod
    def empty(cls, solver: str) -> "Front":
        """The frontier of what is infeasible."""
        none = np.zeros(0, np.int64)
        return cls(None, none, none, none, none, none, None, solver)

    @classmethod
    def of(
        cls,
        sack: Knapsack,
        usage: Integers,
        gain: Integers,
        trail: Trail,
        solver: str,
        *,
        spots: Integers | None = None,
        bounds: tuple[Integers, Integers] | None = None,
    ) -> "Front":
        """The points of a sweep whose costs and losses differ as floats too."""
        spots = np.arange(len(usage)) if spots is None else spots
        front = cls(sack, usage, gain, *(bounds or (gain, gain)), spots, trail, solver)
        cost, loss = front.cost, front.loss
        apart = np.flatnonzero(np.append(cost[1:] > cost[:-1], True))
        apart = apart[np.append(True, loss[apart[1:]] < loss[apart[:-1]])]
        return front if len(apart) == len(usage) else front._only(apart)

    def _only(self, kept: Integers) -> "Front":
        names = ("usage", "gain", "least", "between", "spots")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    def __len__(self) -> int:
        """How many points."""
        return len(self.usage)

    @property
    def exact(self) -> bool:
        """Whether it is the whole frontier, every point of it proven."""
        return bool((self.between == self.gain).all() and (self.least == self.gain).all())

    @property
    def epsilon(self) -> float:
        """How much less may be lost: any choice loses at least 1 / (1 + epsilon) of what is said.

        Losses are counted above the least that any choice has. It holds for every budget from the
        cheapest point's cost on; 0 for an exact frontier, infinite where nothing is proven.
        """
        over = (self.gain - self.between).astype(np.float64)
        if not over.any():
            return 0.0
        under = self.between.astype(np.float64)
        ratios = np.divide(over, under, out=np.where(over > 0, np.inf, 0.0), where=under > 0)
        return float(ratios.max())

    @cached_property
    def cost(self) -> Numbers:
        """(P,) the real cost; int64 where the cost is exact, else rounded."""
        if self.sack is None:
            return np.zeros(0)
        base, unit = scale(self.sack)
        if isinstance(base, int):
            return self.usage + base
        return np.asarray(base + self.usage * unit)

    @cached_property
    def loss(self) -> Floats:
        """(P,) the loss, rounded."""
        return self._losses(self.gain)

    def _losses(self, gain: Integers) -> Floats:
        if self.sack is None:
            return np.zeros(0)
        return np.asarray(math.fsum(self.sack.base) + gain * self.sack.unit, np.float64)

    @cached_property
    def bound(self) -> Floats:
        """(P,) no choice within a budget of the point's cost loses less."""
        return self._bounds(self.least[self._reach()])

    def _bounds(self, gain: Integers) -> Floats:
        """What bounds in counts prove of losses, rounding allowed for."""
        if self.sack is None:
            return np.zeros(0)
        losses = self._losses(gain - self.sack.slip)
        sizes = np.abs(losses) + abs(math.fsum(self.sack.base))
        return np.asarray(losses - 4 * ULP * sizes, np.float64)

    def _reach(self) -> Integers:
        """(P,) the dearest point that a budget of each one's cost may let in."""
        if self.cost.dtype == np.int64:
            return np.arange(len(self))
        room = self.cost + (RELATIVE_TOLERANCE + 8 * ULP) * np.abs(self.cost)
        return np.asarray(np.searchsorted(self.cost, room, side="right") - 1)

    def some(self, indices: Integers) -> "Front":
        """Some of its points, in ascending order; what lies between them is bounded anew."""
        ends = np.append(indices[1:], len(self)) - 1
        return replace(self._only(indices), between=self.between[ends])

    def thinned(self, count: int) -> "Front":
        """At most so many of its points, evenly along the stairs they make; both ends stay."""
        if len(self) <= count:
            return self
        if count < 2:
            raise ValueError(f"got {count} points; a thinned frontier has its two ends at least")
        steps = (self.usage - self.usage[0]) / float(self.usage[-1] - self.usage[0])
        falls = (self.gain[0] - self.gain) / float(self.gain[0] - self.gain[-1])
        inner = np.searchsorted(steps + falls, np.linspace(0, 2, count)[1:-1])
        return self.some(np.unique([0, *inner.tolist(), len(self) - 1]))

    def picks(self, index: int) -> Integers:
        """(n,) the entry of each class at a point."""
        if self.trail is None:
            raise IndexError("the frontier has no points: no choice is within the budget")
        picks: Integers = self.trail.picks(self.spots[[index]])[0]
        return picks

    def choice(self, index: int) -> tuple[int, ...]:
        """An option for every layer, at a point."""
        picks = self.picks(index)
        return () if self.sack is None else self.sack.choice(picks)

    def choices(self, indices: Integers) -> list[tuple[int, ...]]:
        """An option for every layer, for each of some points."""
        if self.sack is None or self.trail is None:
            return []
        return [self.sack.choice(row) for row in self.trail.picks(self.spots[indices])]

    def points(self) -> tuple[Point, ...]:
        """All points with their choices and exact totals: what :class:`mp.Frontier` holds."""
        if self.sack is None:
            return ()
        problem = self.sack.problem
        proven = (self.bound.tolist(), self._bounds(self.between).tolist())
        return tuple(
            _point(problem, choice, *bounds)
            for choice, *bounds in zip(self.choices(np.arange(len(self))), *proven, strict=True)
        )


def _point(problem: Problem, choice: tuple[int, ...], bound: float, between: float) -> Point:
    loss = problem.total(choice)
    cost = {c.name: c.total(choice) for c in problem.costs}
    return Point(choice, loss, min(bound, loss), cost, min(between, loss))


def scale(sack: Knapsack, row: int = 0) -> tuple[float, float]:
    """The cost of a choice that uses nothing above a row's least, and that of one count more.

    The cost is an ``int`` where costs are exact integers of 64 bits. A count is a power of two.
    """
    place = sack.budgets[row]
    cost = sack.problem.costs[0] if place < 0 else sack.problem.budgets[place].cost
    cheapest, dearest = sack.usage[row].argmin(axis=1), sack.usage[row].argmax(axis=1)
    if not isinstance(cost, Table):
        return cost.total(sack.choice(cheapest)), 1.0
    low, high = sack.options(cheapest), sack.options(dearest)
    base, count = cost.total(low), sack.used(dearest)[row]
    if not count:
        return base, 1.0
    rise = cost.chosen(high) - cost.chosen(low)
    if rise.dtype == np.int64:
        rise = rise.view(np.uint64)  # none is below zero, so that this is right modulo 2^64
    unit = 2.0 ** round(math.log2(float(rise.astype(np.float64).sum()) / count))
    whole = cost.exact and unit == 1.0 and abs(base) + count < 2**62
    return (int(base) if whole else float(base)), unit


def along(problem: Problem, name: str | None, solver: str) -> Problem:
    """The problem with the cost of the frontier first, where no other cost's sum is held.

    Without a name it is the cost of the only sum budget, else the first that adds up.
    """
    sums = [c for c in problem.costs if isinstance(c, Table) and c.reduce == "sum"]
    held = [b.cost.name for b in problem.budgets if b.cost in sums]
    if name is None:
        name = next(iter([*held, *(c.name for c in sums)]), None)
    found = next((c for c in sums if c.name == name), None)
    if found is None:
        known = ", ".join(repr(c.name) for c in sums) or "none"
        raise ValueError(f"{solver} follows a cost that adds up, got {name!r}; there are: {known}")
    others = [other for other in held if other != name]
    if others:
        raise ValueError(
            f"{solver} follows {name!r} alone, and there are budgets on {', '.join(others)};"
            " use the solver milp, budget by budget"
        )
    rest = tuple(c for c in problem.costs if c is not found)
    return replace(problem, costs=(found, *rest))


def loaded(module: str, setting: Compiled, *, pays: bool) -> Any:
    """A module of compiled code, or ``None``: ``auto`` loads it where it pays and it can be.

    ``ImportError`` where it must and cannot: without numba, or a folder for what it compiles.
    """
    if setting == "never" or (setting == "auto" and not pays):
        return None
    try:
        return import_module(f"mpsearch.solvers.{module}")
    except (ImportError, RuntimeError) as error:
        if setting == "auto":
            return None
        raise ImportError(
            f"compiled='always' needs numba: pip install mpsearch[fast] ({error})"
        ) from error


def check_compiled(setting: str) -> None:
    """Refuse what is no such setting."""
    if setting not in ("auto", "never", "always"):
        raise ValueError(f"compiled is {setting!r}; say 'auto', 'never' or 'always'")
