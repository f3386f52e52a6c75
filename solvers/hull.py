"""The lower left convex hull of every class: the only options the linear relaxation can take.

Sinha and Zoltners, "The Multiple-Choice Knapsack Problem", Operations Research 27 (1979): along a
class's hull gain falls and usage rises, ever less for more, and the relaxation is solved by walking
the edges of all classes from the steepest down (Dyer 1984, Zemel 1984). Slopes are rounded, which
costs a bound nothing: for any multiplier ``m`` the sum over classes of the least
``gain + m * usage``, less ``m * room``, is a bound.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.tables import Floats

Integers = NDArray[np.int64]
Edges = tuple[Integers, Integers, Integers, Integers, Integers, Floats]
CHUNK = 1 << 14  # rows wrapped at a time: they stay in the cache
WIDE = 64  # options above which a class is sorted, not wrapped
ROUNDS = 16  # of leaving out all corners that bend the wrong way, before one is done at a time


@dataclass(frozen=True, eq=False)
class Hull:
    """The corners of n classes as edges, each class's one after another, steepest first.

    Attributes:
        first: (n,) the entry of least usage, and of those the first of least gain.
        owner: (E,) the class of each edge, ascending.
        entry: (E,) the entry an edge leads to.
        gain: (E,) what it saves, above zero.
        usage: (E,) what it uses more, above zero.
        slope: (E,) saved for each count used; strictly falling within a class.
    """

    first: Integers
    owner: Integers
    entry: Integers
    gain: Integers
    usage: Integers
    slope: Floats


def hull(gain: Integers, usage: Integers) -> Hull:
    """The hulls of (n, K) gains to be made small with (n, K) usage."""
    step = CHUNK if gain.shape[1] <= WIDE else max(CHUNK * WIDE // gain.shape[1], 1)
    found = _wrapped if gain.shape[1] <= WIDE else _chained
    parts = [
        found(gain[start : start + step], usage[start : start + step], start)
        for start in range(0, len(gain), step)
    ]
    first, owner, entry, saved, used, slope = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    return Hull(first, owner, entry, saved, used, slope)


def _wrapped(gain: Integers, usage: Integers, start: int) -> Edges:
    """Hulls by gift wrapping: from each corner on to the entry of the steepest slope."""
    rows = np.arange(len(gain))
    cheap = usage == usage.min(axis=1)[:, None]
    here = np.where(cheap, gain, np.iinfo(np.int64).max).argmin(axis=1)
    first = here.copy()
    last = np.full(len(gain), np.inf)
    found: list[tuple[Integers, Integers, Integers, Integers, Floats]] = []
    while len(rows):
        more = usage[rows] - usage[rows, here][:, None]
        less = gain[rows, here][:, None] - gain[rows]
        ahead = (more > 0) & (less > 0)
        slopes = np.where(ahead, less / np.where(ahead, more, 1), -1.0)
        best = slopes.max(axis=1)
        # Of equal slopes the longest edge.
        reach = np.where(slopes == best[:, None], more, -1)
        to = reach.argmax(axis=1)
        goes = best > 0
        rows, to, here, best = rows[goes], to[goes], here[goes], best[goes]
        if not len(rows):
            break
        slope = np.minimum(best, np.nextafter(last[rows], 0.0))
        last[rows] = slope
        saved = gain[rows, here] - gain[rows, to]
        found.append((rows + start, to, saved, usage[rows, to] - usage[rows, here], slope))
        here = to
    if not found:
        none = np.zeros(0, np.int64)
        return first, none, none, none, none, np.zeros(0)
    owner, entry, saved, used, slope = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(owner, kind="stable")
    return first, owner[order], entry[order], saved[order], used[order], slope[order]


def _chained(gain: Integers, usage: Integers, start: int) -> Edges:
    """Hulls of many options by sorting: what is beaten goes, then what lies above a chord."""
    order = np.lexsort((gain, usage), axis=1)
    by_usage = np.take_along_axis(usage, order, axis=1)
    by_gain = np.take_along_axis(gain, order, axis=1)
    low = np.minimum.accumulate(by_gain, axis=1)
    better = np.ones(gain.shape, bool)
    better[:, 1:] = by_gain[:, 1:] < low[:, :-1]
    row, place = np.nonzero(better)
    entry, used, lost = order[row, place], by_usage[row, place], by_gain[row, place]
    kept = np.arange(len(row))
    for _ in range(ROUNDS):
        bent = _bent(row[kept], used[kept], lost[kept])
        if not len(bent):
            break
        kept = np.delete(kept, bent)
    else:
        kept = _bent_back(row, used, lost, kept)
    row, entry, used, lost = row[kept], entry[kept], used[kept], lost[kept]
    first = np.diff(row, prepend=-1) > 0
    ends = np.flatnonzero(~first)
    return (
        entry[first],
        row[ends] + start,
        entry[ends],
        lost[ends - 1] - lost[ends],
        used[ends] - used[ends - 1],
        (lost[ends - 1] - lost[ends]) / (used[ends] - used[ends - 1]),
    )


def _bent(row: Integers, used: Integers, lost: Integers) -> Integers:
    """The points of a row after which the slope is not below that before: none is a corner."""
    same = np.flatnonzero(row[1:] == row[:-1])
    slope = (lost[same] - lost[same + 1]) / (used[same + 1] - used[same])
    before, after = np.full(len(row), np.inf), np.full(len(row), -np.inf)
    before[same + 1], after[same] = slope, slope
    return np.asarray(np.flatnonzero(after >= before))


def _bent_back(row: Integers, used: Integers, lost: Integers, kept: Integers) -> Integers:
    """What is left when, point by point, those before it that bend the wrong way are dropped.

    Andrew, "Another efficient algorithm for convex hulls in two dimensions", Information
    Processing Letters 9 (1979).
    """
    stack: list[int] = []
    slopes: list[float] = []
    rows, uses, loses = row[kept].tolist(), used[kept].tolist(), lost[kept].tolist()
    for point in range(len(kept)):
        slope = math.inf
        while stack and rows[stack[-1]] == rows[point]:
            last = stack[-1]
            slope = (loses[last] - loses[point]) / (uses[point] - uses[last])
            if slope < slopes[-1]:
                break
            stack.pop()
            slopes.pop()
            slope = math.inf
        stack.append(point)
        slopes.append(slope)
    return np.asarray(kept[np.array(stack)])
