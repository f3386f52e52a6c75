"""How little loss any answer can have: Lagrangian bounds, fixing, and every state that is left.

For multipliers y >= 0 the loss of a feasible choice is at least the sum over classes of the least
``gain + y.usage``, less ``y.room``: an option that raises this above a known answer is in no better
one (Sinha and Zoltners, "The Multiple-Choice Knapsack Problem", Operations Research 1979, have it
for one row). What is left is enumerated class by class (Nemhauser and Ullmann 1969), each partial
answer judged by the linear relaxation of the rest, row by row. Rounding of every sum is allowed
for, so that a bound is one.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from mpsearch.solvers.dual import Classes, multipliers
from mpsearch.solvers.program import ULP, Program
from mpsearch.solvers.repair import improved, repaired
from mpsearch.tables import Floats, Mask

Integers = NDArray[np.int64]
FEW = 4  # rows up to which cutting planes beat the linear program
LARGE = 1 << 24  # entries of classes side by side
NEAR = 3  # choices near the relaxation
MOST_ANSWERS = 20  # of those left at the end, to be checked exactly


def relaxed(program: Program) -> tuple[Floats, Integers]:
    """Multipliers (R,) of the linear relaxation, and a choice near its solution.

    Both are only good guesses: nothing that follows trusts them.
    """
    y, choices = near(program)
    return y, bettered(program, choices[0], y, priced(program, y)[1])


def near(program: Program) -> tuple[Floats, list[Integers]]:
    """Multipliers (R,) of the linear relaxation, and choices near its solution, nearest first."""
    if len(program.rows) <= FEW and padded(program).size <= LARGE:
        index = padded(program)
        y, choices = multipliers(classes(program, index))
        return y, [index[np.arange(len(index)), picks] for picks in choices[:NEAR]]
    y, taken = _linear(program)
    # Of options that share a class take the one that uses least.
    return y, [_cheapest(program, np.where(taken > 1e-6, y @ program.usage, np.inf))]


def padded(program: Program) -> Integers:
    """(n, K) the options of each class, the last one repeated."""
    count = np.diff(program.starts, append=len(program.owner))
    place: Integers = np.minimum(np.arange(count.max()), count[:, None] - 1)
    return program.starts[:, None] + place


def classes(program: Program, index: Integers) -> Classes:
    """The program's classes side by side."""
    return Classes(program.gain[index], program.usage[:, index], program.room)


def bettered(program: Program, picks: Integers, y: Floats, raised: Floats) -> Integers:
    """A choice of options near another one that fits, as far as small moves find one."""
    index = padded(program)
    if index.size > LARGE:
        return picks
    every, rows = classes(program, index), np.arange(len(index))
    found = repaired(every, picks - program.starts, raised[index])
    if found is None:
        return picks
    return np.asarray(index[rows, improved(every, found, y, raised[index])])


def _linear(program: Program) -> tuple[Floats, Floats]:
    """Multipliers of the linear relaxation, and (M,) how much of each option it takes."""
    found = linprog(
        program.gain * 1e6,
        csr_matrix(program.usage * 1e3),
        program.room * 1e3,
        csr_matrix((np.ones(len(program.owner)), (program.owner, np.arange(len(program.owner))))),
        np.ones(len(program.layers)),
        method="highs",
    )
    if found.status != 0:
        return np.zeros(len(program.rows)), np.ones(len(program.owner))
    return np.maximum(-found.ineqlin.marginals, 0.0) * (1e3 / 1e6), np.asarray(found.x)


def _cheapest(program: Program, price: Floats) -> Integers:
    """(n,) the first option of least price in each class."""
    order = np.lexsort((price, program.owner))
    return order[program.starts]


def priced(program: Program, y: Floats) -> tuple[float, Floats]:
    """A bound on every feasible choice's sum of gains, and how far (M,) each option raises it."""
    price = program.gain + y @ program.usage
    low = program.least(price)
    given = float(y @ np.abs(program.room))
    rounding = ULP * (len(low) + len(y) + 8) * (float(program.most(price).sum()) + given)
    bound = float(low.sum() - y @ program.room) - rounding
    return bound, np.maximum(price - low[program.owner] - rounding, 0.0)


@dataclass(frozen=True, eq=False)
class _Tail:
    """What the linear relaxation of the last classes loses at least, within one row.

    Attributes:
        room: (E + 1,) ascending: what they may use.
        loss: (E + 1,) what they then lose at least.
    """

    room: Floats
    loss: Floats

    def least(self, room: Floats) -> Floats:
        """The least loss within each room; infinite where they do not fit."""
        found = np.interp(room, self.room, self.loss)
        return np.where(room < self.room[0], np.inf, found)


def _hull(usage: Floats, gain: Floats) -> list[tuple[float, float]]:
    """The corners of the lower left hull of a class: usage rises, gain falls ever more slowly."""
    corners: list[tuple[float, float]] = []
    for x, z in sorted(zip(usage.tolist(), gain.tolist(), strict=True)):
        if corners and z >= corners[-1][1]:
            continue
        while len(corners) > 1 and _above(corners[-2], corners[-1], (x, z)):
            corners.pop()
        corners.append((x, z))
    return corners


def _above(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether ``b`` lies on or above the line from ``a`` to ``c``."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


class _Tails:
    """The tails of one row, for every number of classes already decided."""

    def __init__(self, usage: Sequence[Floats], gain: Sequence[Floats]) -> None:
        hulls = [_hull(u, g) for u, g in zip(usage, gain, strict=True)]
        self.start = np.array([hull[0] for hull in hulls])
        edges = [
            (place, b[0] - a[0], b[1] - a[1])
            for place, hull in enumerate(hulls)
            for a, b in itertools.pairwise(hull)
        ]
        edges.sort(key=lambda edge: edge[2] / edge[1])
        self.edges = np.array(edges).reshape(-1, 3)

    def after(self, decided: int) -> _Tail:
        """The tail that begins after the decided classes."""
        edges = self.edges[self.edges[:, 0] >= decided]
        steps = np.vstack([self.start[decided:].sum(axis=0), edges[:, 1:]])
        room, loss = np.cumsum(steps, axis=0).T
        return _Tail(np.maximum.accumulate(room), loss)


def enumerated(
    program: Program, y: Floats, ceiling: float, most: int
) -> tuple[float, list[Integers]]:
    """A bound on the sum of gains, and choices that may gain less than ``ceiling``, best first.

    Goes through every partial answer that may still gain less than the ceiling, unless those are
    more than ``most``: then the least that the last ones at hand may gain is the bound.
    """
    open_ = _open(program, y, ceiling)
    count = np.add.reduceat(open_.astype(np.int64), program.starts)
    if not count.all():
        return ceiling, []
    first = np.flatnonzero(open_)[np.cumsum(count) - count]
    single, free = first[count == 1], np.flatnonzero(count > 1)
    widest = program.most(y @ program.usage)[free]  # those first leave fewest states
    order = free[np.argsort(-widest, kind="stable")]
    members = [np.flatnonzero(open_ & (program.owner == i)) for i in order]
    rounding = ULP * (len(program.owner) + 8)
    slack = 2 * rounding * program.span + program.slip
    rows, room = _judged(program, y, rounding)
    tails = [_Tails([row[m] for m in members], [program.gain[m] for m in members]) for row in rows]
    used, lost = rows[:, single].sum(axis=1)[:, None], program.gain[single].sum()[None]
    if (used[:, 0] > room + rounding).any():
        return ceiling, []
    least = np.full(1, -math.inf)
    trail: list[tuple[Integers, Integers]] = []
    for level, options in enumerate(members):
        most -= len(lost) * len(options)
        if most < 0:
            return min(ceiling, float(least.min()) - slack), []
        used = (used[:, :, None] + rows[:, options][:, None, :]).reshape(len(rows), -1)
        lost = (lost[:, None] + program.gain[options]).ravel()
        rests = [tail.after(level + 1).least(room[r] - used[r]) for r, tail in enumerate(tails)]
        least = lost + np.max(rests, axis=0, initial=0.0)
        keep = np.flatnonzero(least < ceiling + slack)
        keep = keep[_undominated(used[: len(program.rows), keep], lost[keep])]
        trail.append((keep // len(options), options[keep % len(options)]))
        used, lost, least = used[:, keep], lost[keep], least[keep]
        if not len(keep):
            return ceiling, []
    best = np.argsort(lost, kind="stable")[:MOST_ANSWERS]
    bound = min(ceiling, float(lost.min()))
    return bound, [_picks(first, order, trail, int(state)) for state in best]


def _open(program: Program, y: Floats, ceiling: float) -> Mask:
    """(M,) which options may be in an answer that gains less than the ceiling."""
    bound, raised = priced(program, y)
    return np.asarray(bound + raised <= ceiling + 2 * program.slip)


def _judged(program: Program, y: Floats, rounding: float) -> tuple[Floats, Floats]:
    """The rows that partial answers are judged by, and their room, that for rounding included.

    Beside the program's own their sum weighted by the multipliers, which binds more than each.
    """
    room = program.room + np.where(program.whole, 0.0, 4 * rounding)
    if len(room) == 1:
        return program.usage, room
    joint = float(y @ room) + rounding * float(y @ (2 + np.abs(room)))
    return np.vstack([program.usage, y @ program.usage]), np.append(room, joint)


def _undominated(used: Floats, lost: Floats) -> Integers:
    """Indices of states that no other uses and loses as little as; of equals the first."""
    if len(used) == 1:
        order = np.lexsort((lost, used[0]))
        before = np.minimum.accumulate(np.concatenate([[math.inf], lost[order][:-1]]))
        return order[lost[order] < before]
    if not len(used):
        return lost.argsort(kind="stable")[:1]
    order = np.lexsort((lost, *used))
    apart = (np.diff(used[:, order], axis=1) != 0).any(axis=0)
    first: Mask = np.concatenate([[True], apart])[: len(order)]
    return np.asarray(order[first])


def _picks(
    first: Integers, order: Integers, trail: Sequence[tuple[Integers, Integers]], state: int
) -> Integers:
    """(n,) the options that led to a state."""
    picks = first.copy()
    for place, (parents, options) in zip(order[::-1], reversed(trail), strict=True):
        picks[place] = options[state]
        state = int(parents[state])
    return picks
