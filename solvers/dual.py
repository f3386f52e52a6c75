"""Multipliers of several budgets: the Lagrangian dual by cutting planes in a box that moves.

For multipliers y >= 0 every feasible choice gains at least ``sum of the least (gain + y.usage)``
less ``y.room``, concave and piecewise linear in y. Kelley, "The Cutting-Plane Method for Solving
Convex Programs", SIAM 8 (1960), maximises the least of its tangents, in as many dimensions as there
are budgets, whatever the number of classes; the box is Marsten, Hogan and Blankenship's, "The
Boxstep Method", Operations Research 23 (1975). Any y gives a bound, so nothing here need be exact
but :func:`priced`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mpsearch.tables import Floats, Numbers

Integers = NDArray[np.int64]
ULP = 2.0**-52
ROUNDS = 60  # of cutting planes
CLOSE = 1e-8  # of the bound: what it may still rise by


@dataclass(frozen=True, eq=False)
class Classes:
    """One entry of every class: least total gain, no row's total usage above its room.

    Attributes:
        gain: (n, K) at least zero, int64 or float64; a class's entries may repeat.
        usage: (R, n, K) at least zero.
        room: (R,).
    """

    gain: Numbers
    usage: Numbers
    room: Numbers

    @cached_property
    def most(self) -> float:
        """What no choice gains more than."""
        return float(self.gain.max(axis=1).sum())

    def used(self, picks: Integers) -> Numbers:
        """(R,) the total usage of a choice."""
        used: Numbers = self.usage[:, np.arange(len(picks)), picks].sum(axis=1)
        return used

    def total(self, picks: Integers) -> Any:
        """The total gain of a choice."""
        return self.gain[np.arange(len(picks)), picks].sum()

    def fits(self, picks: Integers) -> bool:
        """Whether a choice keeps every room."""
        return bool((self.used(picks) <= self.room).all())

    @cached_property
    def width(self) -> Floats:
        """(R,) what no choice uses more than; 1 for a row without usage."""
        width = self.usage.max(axis=2).sum(axis=1).astype(np.float64)
        return np.where(width > 0, width, 1.0)


def priced(classes: Classes, y: Floats) -> tuple[float, Floats]:
    """A bound on every feasible choice's gain, and how far (n, K) each entry raises it.

    Rounding is allowed for: prices and their sum are off by at most a few units in the last place.
    """
    price = _prices(classes, y)
    low = price.min(axis=1)
    given = float(y @ classes.room) if len(y) else 0.0
    sizes = float(price.max(axis=1).sum()) + float(np.abs(y) @ np.abs(classes.room))
    rounding = ULP * (2 * len(y) + 64) * sizes  # numpy adds in pairs: far less than n roundings
    return float(low.sum()) - given - rounding, np.maximum(price - low[:, None], 0.0)


def _prices(classes: Classes, y: Floats) -> Floats:
    price = classes.gain.astype(np.float64)
    for number, row in zip(y.tolist(), classes.usage, strict=True):
        if number:
            price += number * row
    return price


class _Cuts:
    """The dual function where it was looked at: values, slopes and the choices that made them."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.rows = np.arange(len(classes.gain))
        self.points: list[Floats] = []
        self.values: list[float] = []
        self.slopes: list[Floats] = []
        self.picks: list[Integers] = []

    def look(self, y: Floats) -> float:
        """The dual at y, kept as a tangent."""
        price = _prices(self.classes, y)
        picks = price.argmin(axis=1)
        self.points.append(y)
        self.values.append(float(price[self.rows, picks].sum() - y @ self.classes.room))
        self.slopes.append(self.classes.used(picks) - self.classes.room)
        self.picks.append(picks)
        return self.values[-1]

    def best(self, at: int, low: Floats, high: Floats, hope: float) -> tuple[Floats, float]:
        """Where in the box the least tangent is largest, and how far above a point's value.

        Seen from that point, in units of the box and of what is hoped for, so that the linear
        program's tolerances do not matter.
        """
        here, size = self.points[at], np.where(high > low, high - low, 1.0)
        slopes = np.array(self.slopes)
        rest = np.array(self.values) - self.values[at]
        rest += np.einsum("jr,jr->j", slopes, here - np.array(self.points))
        near = rest <= rest.min() + 1e9 * hope
        found = linprog(
            [*np.zeros(len(low)), -1.0],
            np.hstack([-slopes[near] * size / hope, np.ones((int(near.sum()), 1))]),
            rest[near] / hope,
            bounds=[*zip((low - here) / size, (high - here) / size, strict=True), (None, None)],
            method="highs-ds",
        )
        if found.status != 0:
            return here, 0.0
        return np.clip(here + found.x[:-1] * size, low, high), float(found.x[-1]) * hope


def multipliers(classes: Classes, rounds: int = ROUNDS) -> tuple[Floats, list[Integers]]:
    """Multipliers (R,) whose bound is nearly the best, and the choices met, nearest first."""
    binds = classes.usage.max(axis=2).sum(axis=1) > classes.room
    scale, wide = classes.most or 1.0, classes.width
    cuts = _Cuts(
        Classes(
            classes.gain / scale,
            classes.usage[binds] / wide[binds, None, None],
            classes.room[binds] / wide[binds],
        )
    )
    at = _centred(cuts, rounds)
    order = np.argsort(-np.array(cuts.values), kind="stable")
    y = np.zeros(len(binds))
    y[binds] = cuts.points[at] * scale / wide[binds]
    return y, [cuts.picks[i] for i in order]


def _centred(cuts: _Cuts, rounds: int) -> int:
    """Which of the points looked at is the best, when tangents say that little is left to gain."""
    size = len(cuts.classes.room)
    cuts.look(np.zeros(size))
    if size == 0 or (cuts.slopes[0] <= 0).all():
        return 0
    best = _along(cuts, np.where(cuts.slopes[0] > 0, 1.0, 0.0))
    reach = np.full(size, cuts.points[best].max() / 2)
    hope = abs(cuts.values[best]) or 1.0
    for _ in range(rounds if size > 1 else 0):
        here = cuts.points[best]
        low, high = np.maximum(here - reach, 0.0), here + reach
        y, more = cuts.best(best, low, high, hope)
        if more <= CLOSE * abs(cuts.values[best]) or cuts.values[best] > 1.0:
            break
        hope = max(more, CLOSE * hope)
        edge = (y == high) | ((y == low) & (y > 0))
        if cuts.look(y) > cuts.values[best]:
            best = len(cuts.values) - 1
            reach = np.where(edge, 3 * reach, reach)
        elif edge.any():
            reach = reach / 2
    return best


def _along(cuts: _Cuts, ray: Floats) -> int:
    """The best point on a ray from zero, by tangents that cross."""
    step = 1.0
    cuts.look(ray * step)
    while cuts.slopes[-1] @ ray > 0 and cuts.values[-1] <= 1.0:
        step *= 4
        cuts.look(ray * step)
    left, right = len(cuts.values) - 2, len(cuts.values) - 1
    for _ in range(ROUNDS):
        rise, fall = cuts.slopes[left] @ ray, cuts.slopes[right] @ ray
        if rise <= 0 or fall >= 0:
            break
        a, b = cuts.points[left].max(), cuts.points[right].max()
        cross = (cuts.values[right] - cuts.values[left] + rise * a - fall * b) / (rise - fall)
        top = cuts.values[left] + rise * (cross - a)
        if cuts.look(ray * cross) >= top - CLOSE * abs(top):
            break
        if cuts.slopes[-1] @ ray > 0:
            left = len(cuts.values) - 1
        else:
            right = len(cuts.values) - 1
    return int(np.argmax(cuts.values))
