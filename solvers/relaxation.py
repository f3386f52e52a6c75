"""The linear relaxation of one knapsack: the hulls' edges are taken from the steepest down.

Dyer, "An O(n) algorithm for the multiple-choice knapsack linear program", Mathematical Programming
29 (1984); Zemel, "An O(n) algorithm for the linear multiple choice knapsack problem and related
problems", Information Processing Letters 18 (1984): the edge that no longer fits, the break edge,
is found by partition, without sorting. Its slope is the best multiplier; what was taken before it,
the break solution, fits and is close to the best answer. Of many classes most take one entry at two
multipliers on either side, and so between them: only the others' hulls are looked at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.hull import Hull, hull
from mpsearch.tables import Floats

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
CHUNK = 1 << 14  # rows looked at together: they stay in the cache
FEW = 1024  # edges that are sorted outright
MANY = 4096  # classes from which on a bracket is looked for
NARROW = 64  # options up to which it is
BEYOND = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The break solution of n classes under a room.

    Attributes:
        picks: (n,) the entry of each class in the break solution.
        gain: Its sum of gains.
        slack: What it leaves of the room; never below zero.
        slope: The multiplier: that of the break edge.
        edge: The class and the entry that the break edge leads to.
    """

    picks: Integers
    gain: int
    slack: int
    slope: float
    edge: tuple[int, int]

    @property
    def bound(self) -> float:
        """What no answer's sum of gains is below, but for the rounding of floats."""
        return self.gain - self.slope * self.slack


def relaxed(
    gain: Integers, usage: Integers, room: int, hulls: Callable[[Integers, Integers], Hull] = hull
) -> Relaxation:
    """The relaxation of (n, K) gains, whose least do not fit in the room all together."""
    if len(gain) >= MANY and gain.shape[1] <= NARROW:
        found = _bracketed(gain, usage, room, hulls)
        if found is not None:
            return found
    edges = hulls(gain, usage)
    return _broken(gain, usage, room, edges, edges.first, np.arange(len(gain)))


def _broken(
    gain: Integers, usage: Integers, room: int, edges: Hull, picks: Integers, rows: Integers
) -> Relaxation:
    """The relaxation where only some rows have edges and the others keep their picks."""
    picks = picks.copy()
    picks[rows] = edges.first
    left = room - int(_taken(usage, picks).sum())
    last, taken = break_edge(edges, left)
    picks[rows[edges.owner[taken]]] = edges.entry[taken]  # of several in a class the last counts
    return Relaxation(
        picks,
        int(_taken(gain, picks).sum()),
        room - int(_taken(usage, picks).sum()),
        float(edges.slope[last]),
        (int(rows[edges.owner[last]]), int(edges.entry[last])),
    )


def _taken(numbers: Integers, picks: Integers) -> Integers:
    return numbers[np.arange(len(picks)), picks]


def _bracketed(
    gain: Integers, usage: Integers, room: int, hulls: Callable[[Integers, Integers], Hull]
) -> Relaxation | None:
    """The relaxation from the hulls of those classes alone that a bracket leaves open."""
    step = max(len(gain) // MANY, len(gain) // (8 * MANY) + 1, 4)
    few_gain, few_usage = gain[::step], usage[::step]
    most = int(usage[gain == 0].sum())  # of the least gains: about what would be used
    few_most = int(few_usage[few_gain == 0].sum())
    few_room = int(room * (few_most / most))
    edges = hulls(few_gain, few_usage)
    if int(edges.usage.sum()) <= few_room:
        return None
    middle = float(edges.slope[break_edge(edges, few_room)[0]])
    sides: dict[bool, tuple[float, Integers]] = {}  # by whether the room is kept
    factor = 1.1
    for _ in range(20):
        wanted = True not in sides
        slope = middle * factor if wanted else middle / factor
        picks = least(gain, usage, slope)
        fits = int(_taken(usage, picks).sum()) <= room
        sides[fits] = (slope, picks)
        if len(sides) == 2:
            break
        if fits is not wanted:
            factor = factor**2
        middle = slope if fits is not wanted else middle
    else:
        return None
    (high, few), (low, many) = sides[True], sides[False]
    rows = np.flatnonzero(few != many)
    found = _broken(gain, usage, room, hulls(gain[rows], usage[rows]), few, rows)
    return found if low <= found.slope <= high else None


def least(gain: Integers, usage: Integers, slope: float) -> Integers:
    """(n,) the entry of each class that is least in gain and usage at a multiplier."""
    picks = np.zeros(len(gain), np.int64)
    for start in range(0, len(gain), CHUNK):
        rows = slice(start, start + CHUNK)
        priced = gain[rows] + slope * usage[rows]
        low, pick = priced[:, 0].copy(), picks[rows]
        for entry in range(1, priced.shape[1]):
            less = priced[:, entry] < low
            pick[less] = entry
            np.minimum(low, priced[:, entry], out=low)
    return picks


def break_edge(edges: Hull, room: int) -> tuple[int, Flags]:
    """The first edge that does not fit, from the steepest down, and (E,) which come before it.

    Of equal slopes the earlier edge comes first. All edges together must not fit.
    """
    slope, usage, left = edges.slope, edges.usage, room
    while len(slope) > FEW:
        pivot = _pivot(slope)
        steep = slope >= pivot
        used = int(usage[steep].sum())
        if used > left and steep.all():
            steep = slope > pivot  # the pivot is the flattest: are the others enough?
            used = int(usage[steep].sum())
            if used <= left:
                left -= used
                slope, usage = slope[~steep], usage[~steep]
                break
        keep = steep if used > left else ~steep
        left -= 0 if used > left else used
        slope, usage = slope[keep], usage[keep]
    order = np.argsort(-slope, kind="stable")
    place = int(np.searchsorted(np.cumsum(usage[order]), left, side="right"))
    steepest = slope[order[place]]
    before = int((slope[order[:place]] == steepest).sum())
    taken = edges.slope > steepest
    same = np.flatnonzero(edges.slope == steepest)
    taken[same[:before]] = True
    return int(same[before]), taken


def _pivot(slope: Floats) -> float:
    """A slope from the middle of a sample."""
    sample = slope[:: len(slope) // 512]
    return float(np.partition(sample, len(sample) // 2)[len(sample) // 2])


def changes(
    gain: Integers, usage: Integers, picks: Integers
) -> Iterator[tuple[int, Integers, Integers]]:
    """What entries add in gain and in usage beside the picks, some rows at a time.

    Each is (first row, (rows, K) gains, (rows, K) usages).
    """
    step = max(CHUNK * 8 // gain.shape[1], 1)
    for start in range(0, len(gain), step):
        rows = slice(start, start + step)
        less = gain[rows] - _taken(gain[rows], picks[rows])[:, None]
        more = usage[rows] - _taken(usage[rows], picks[rows])[:, None]
        yield start, less, more


def improved(gain: Integers, usage: Integers, start: Relaxation) -> tuple[Integers, int]:
    """The best answer one change away from the break solution, with the break edge or without.

    Its entries, and its sum of gains.
    """
    owner, entry = start.edge
    past = int(gain[owner, entry]) - int(gain[owner, start.picks[owner]])
    over = int(usage[owner, entry]) - int(usage[owner, start.picks[owner]]) - start.slack
    near, far = (0, -1, 0), (BEYOND, -1, 0)
    for first, less, more in changes(gain, usage, start.picks):
        near = min(near, _fitting(first, less, more, start.slack))
        if first <= owner < first + len(less):
            more[owner - first] = BEYOND
        far = min(far, _fitting(first, less, more, -over))
    with_edge = far[0] < BEYOND and past + far[0] < near[0]
    gained, row, column = (past + far[0], *far[1:]) if with_edge else near
    picks = start.picks.copy()
    if row >= 0:
        picks[row] = column
    if with_edge:
        picks[owner] = entry
    return picks, start.gain + gained


def _fitting(first: int, less: Integers, more: Integers, slack: int) -> tuple[int, int, int]:
    """The least gain that fits, its row and its column."""
    fits = np.where(more <= slack, less, BEYOND)
    row, column = divmod(int(fits.argmin()), less.shape[1])
    return int(fits[row, column]), row + first, column
