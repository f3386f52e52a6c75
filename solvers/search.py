"""The search of a core: partial answers grow class by class, and those that cannot win are dropped.

A class none of whose changes can come of any partial answer is passed over; many at a time are
looked at together. Where more are alive than may be kept, those of the smallest bounds are (a
beam), and the least bound dropped is what remains proven.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.core import Core
from mpsearch.tables import Floats

Integers = NDArray[np.int64]
SHARE = 32  # one class may take this part of the states that are left
LEAN = 2.0**-6  # of a count's worth: what uses about all there is is kept first
TIES = 100  # an answer that is proven looks for its equals in this part of the states
LEAST = 1000  # states of a class that are kept in any case
LOOK = 1 << 15  # changes times states that are looked at together


@dataclass(frozen=True, eq=False)
class States:
    """Partial answers, by rising usage and falling gain.

    Attributes:
        usage: (s,) what each uses beside the break solution.
        gain: (s,) what each loses beside it.
        bound: (s,) what no completion loses less than, but for rounding.
        tied: (s,) whether more than one way leads to it.
        parent: (s,) the state it grew from.
        move: (s,) the change it made then, counted in its class from 1; 0 for none.
    """

    usage: Integers
    gain: Integers
    bound: Floats
    tied: NDArray[np.bool_]
    parent: NDArray[np.int32]
    move: NDArray[np.int32]

    def of(self, kept: NDArray[np.bool_]) -> "States":
        """Those of a mask."""
        return States(
            self.usage[kept],
            self.gain[kept],
            self.bound[kept],
            self.tied[kept],
            self.parent[kept],
            self.move[kept],
        )


@dataclass(frozen=True)
class Limits:
    """What an answer may use, what may be left out, and how much may be kept.

    Attributes:
        slack: What an answer may use beside the break solution.
        slope: What a count of usage is worth.
        margin: What bounds may be off by.
        gap: How far from the best the answer may be.
        states: Most states that are kept in all.
    """

    slack: int
    slope: float
    margin: float
    gap: float
    states: int

    @property
    def floor(self) -> int:
        """What no answer adds less than, by the relaxation alone."""
        return math.ceil(-self.slope * self.slack - self.margin)

    def proven(self, best: int, dropped: float = math.inf) -> int:
        """What no answer adds less than, where the least bound of what was dropped is known."""
        bound = best - max(math.ceil(self.gap) - 1, 0)  # pruned is what is not better by the gap
        if dropped < bound + self.margin:
            bound = math.ceil(dropped - self.margin)
        return max(self.floor, bound)


class Grow(Protocol):
    """What grows from states by the changes of one class (the first is none) within a limit."""

    def __call__(
        self,
        states: States,
        gain: Integers,
        usage: Integers,
        slopes: tuple[float, float],
        slack: int,
        limit: float,
    ) -> States:
        """The states that are not dominated and whose bound is at most ``limit``."""
        ...


@dataclass(frozen=True, eq=False)
class Found:
    """What the search of a core found.

    Attributes:
        changes: The changes of the best answer; ``None`` where none beats the one that was known.
        best: The gain that the best answer adds.
        bound: What no answer adds less than.
        tied: Whether another answer may add and use the same.
    """

    changes: list[int] | None
    best: int
    bound: int
    tied: bool


def begun() -> States:
    """The break solution alone."""
    nought, none = np.zeros(1, np.int64), np.zeros(1, np.int32)
    return States(nought, nought, np.zeros(1), np.zeros(1, bool), none, none)


def search(core: Core, best: int, limits: Limits, grow: Grow) -> Found:
    """The best answer of a core, ``best`` being the gain that a known one adds."""
    floor, beyond = limits.floor, limits.margin - limits.gap
    states, nought = begun(), np.zeros(1, np.int64)
    trail: list[tuple[int, States]] = []
    winner: tuple[int, int, int] | None = None  # how many steps, the state then, and its change
    dropped, kept, place, slack = np.inf, 0, 0, limits.slack
    while True:
        limit = best + beyond
        place = next_class(core, place, states, slack, limit)
        if place == len(core.ahead):
            break
        begin, end = int(core.start[place]), int(core.start[place + 1])
        less = np.concatenate((nought, core.gain[begin:end]))
        more = np.concatenate((nought, core.usage[begin:end]))
        gain, state, move = _best(states, less, more, slack)
        if gain < best:
            best, winner = gain, (len(trail), state, begin + move - 1 if move else -1)
            limit = best + beyond
        slopes = float(core.ahead[place]), float(core.back[place])
        states = grow(states, less, more, slopes, slack, limit)
        width = max((limits.states // (TIES if best <= floor else 1) - kept) // SHARE, LEAST)
        if len(states.usage) > width:
            states, lost = _narrowed(states, slack, LEAN * limits.slope, width)
            dropped = min(dropped, lost)
        kept += len(states.usage)
        trail.append((begin, states))
        place += 1
    tied = False
    if dropped == np.inf:
        last = int(np.searchsorted(states.usage, slack, side="right")) - 1
        if last >= 0 and int(states.gain[last]) == best:  # of those as good it uses the least
            winner, tied = (len(trail), last, -1), bool(states.tied[last])
    return Found(_walked(trail, winner), best, limits.proven(best, dropped), tied)


def next_class(core: Core, place: int, states: States, slack: int, limit: float) -> int:
    """The first class from a place on that has a change worth making to any of the states."""
    size, total = len(states.usage), len(core.ahead)
    if not size:
        return total
    if size * 64 > LOOK:
        return place
    count = 8
    usage, gain = states.usage[:, None], states.gain[:, None]
    while place < total:
        stop = min(place + count, total)
        begin, end = int(core.start[place]), int(core.start[stop])
        each = np.diff(core.start[place : stop + 1])
        left = (slack - usage) - core.usage[begin:end]
        ahead, back = (np.repeat(a[place:stop], each) for a in (core.ahead, core.back))
        bound = gain + core.gain[begin:end] + np.maximum(left * -ahead, left * -back)
        state, change = np.nonzero(bound <= limit)
        if len(state):
            change += begin
            new = _undominated(states, state, core.gain[change], core.usage[change])
            if new.any():
                at = int(change[new].min())
                return int(np.searchsorted(core.start, at, side="right")) - 1
        place = stop
        count = max(min(count * 4, LOOK // size // 2), 8)
    return total


def _undominated(
    states: States, state: Integers, less: Integers, more: Integers
) -> NDArray[np.bool_]:
    """Whether no state uses and loses less than what grows of a state by a change."""
    uses, loses = states.usage[state] + more, states.gain[state] + less
    beside = np.searchsorted(states.usage, uses, side="right") - 1
    low, same = states.gain[beside], states.usage[beside] == uses
    return np.asarray((beside < 0) | (low > loses) | ((low == loses) & same))


def _best(states: States, less: Integers, more: Integers, slack: int) -> tuple[int, int, int]:
    """The least gain within the slack after one change; the state and the change it comes of."""
    reach = np.searchsorted(states.usage, slack - more, side="right") - 1
    gain = np.where(reach >= 0, states.gain[reach] + less, np.iinfo(np.int64).max)
    move = int(gain.argmin())
    return int(gain[move]), int(reach[move]), move


def grown(
    states: States,
    gain: Integers,
    usage: Integers,
    slopes: tuple[float, float],
    slack: int,
    limit: float,
) -> States:
    """What grows from states by the changes of one class, in numpy; see :class:`Grow`."""
    size = len(states.usage)
    uses = (states.usage + usage[:, None]).ravel()
    loses = (states.gain + gain[:, None]).ravel()
    left = slack - uses
    bound = np.asarray(loses + np.maximum(left * -slopes[0], left * -slopes[1]), np.float64)
    kept = np.flatnonzero(bound <= limit)
    kept = kept[np.argsort(uses[kept], kind="stable")]
    by_usage, by_gain = uses[kept], loses[kept]
    best = front(by_usage, by_gain)
    chosen = kept[best]
    parent = chosen % size
    return States(
        by_usage[best],
        by_gain[best],
        bound[chosen],
        states.tied[parent] | _twice(by_usage, by_gain, best),
        parent.astype(np.int32),
        (chosen // size).astype(np.int32),
    )


def front(usage: Integers, gain: Integers) -> Integers:
    """Which states, in order of usage, lose less than all others that use no more."""
    low = np.minimum.accumulate(gain)
    kept = np.flatnonzero(np.concatenate((gain[:1] == gain[:1], gain[1:] < low[:-1])))
    again = usage[kept[1:]] == usage[kept[:-1]]
    return np.asarray(kept[np.concatenate((~again, kept[:1] == kept[:1]))])


def _twice(usage: Integers, gain: Integers, best: Integers) -> NDArray[np.bool_]:
    """For each state that is kept whether another has its very usage and gain."""
    if not (usage[1:] == usage[:-1]).any():
        return np.zeros(len(best), bool)
    at = np.minimum(np.searchsorted(usage[best], usage), len(best) - 1)
    same = (usage[best[at]] == usage) & (gain[best[at]] == gain)
    return np.asarray(np.bincount(at[same], minlength=len(best)) > 1)


def _narrowed(states: States, slack: int, lean: float, width: int) -> tuple[States, float]:
    """The states of the smallest bounds, and the least bound of those dropped.

    Where bounds are alike those that use about all there is come first: what is left, or overdrawn,
    counts ``lean`` a unit on top.
    """
    score = states.bound + lean * np.abs(slack - states.usage)
    last = np.partition(score, width)[width]
    stay = score < last
    equal = np.flatnonzero(score == last)
    stay[equal[: width - int(stay.sum())]] = True
    return states.of(stay), float(states.bound[~stay].min())


def _walked(
    trail: list[tuple[int, States]], winner: tuple[int, int, int] | None
) -> list[int] | None:
    """The changes that led to the winner."""
    if winner is None:
        return None
    steps, state, change = winner
    changes = [change] if change >= 0 else []
    for begin, states in reversed(trail[:steps]):
        if states.move[state]:
            changes.append(begin + int(states.move[state]) - 1)
        state = int(states.parent[state])
    return changes
