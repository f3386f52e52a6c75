"""Moves from option to option within the room of every budget: the ground of greedy searches.

Among the moves that fit, greed takes the one that saves most for what it uses. Rounds of one move
a class stand in for single moves, so that a million classes cost no more than a few passes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Solution
from mpsearch.solvers.knapsack import Knapsack
from mpsearch.solvers.relaxation import relaxed
from mpsearch.tables import Floats, Mask

Integers = NDArray[np.int64]
ULP = 2.0**-52
PRICED = 1 << 32  # what a whole room is counted as, where there are several
Search = Callable[[Knapsack], Integers | None]


@dataclass(frozen=True, eq=False)
class Moves:
    """Moves in the order they are tried; those of a class follow one another.

    Attributes:
        owner: (E,) the class of each.
        entry: (E,) the entry it leads to.
        usage: (R, E) what it uses more of each room than the entry before it.
    """

    owner: Integers
    entry: Integers
    usage: Integers

    def at(self, which: Integers | Mask) -> "Moves":
        """Some of them, in the order given."""
        return Moves(self.owner[which], self.entry[which], self.usage[:, which])


def answered(asked: Knapsack, search: Search, bound: float, solver: str) -> Solution:
    """What a search finds, checked; unknown where it finds nothing within every budget.

    Where rounding lets a choice over a budget on real numbers, the search has a little less room.
    """
    less = tuple(max(room - (room >> 38) - 1, 0) for room in asked.room)
    for room in (asked.room, less, (0,) * len(less)):
        picks = search(replace(asked, room=room))
        if picks is not None and asked.problem.feasible(asked.choice(picks)):
            return asked.solution(picks, bound, solver)
    return asked.solution(None, bound, solver)


def prices(asked: Knapsack) -> Integers:
    """(n, K) what each entry uses, of several rooms the sum of its shares."""
    if len(asked.room) == 1:
        return np.asarray(asked.usage[0])
    total = np.zeros(asked.gain.shape, np.int64)
    for usage, room in zip(asked.usage, asked.room, strict=True):
        share = np.minimum(usage / max(room, 1), 2.0)
        total += np.rint(share * PRICED).astype(np.int64)
    return total


def undominated(gain: Integers, price: Integers) -> tuple[Integers, Mask]:
    """(n, K) entries of each class by price, and which of them no other beats or equals.

    Along those that are left the price rises and the gain falls.
    """
    by_gain = np.argsort(gain, axis=1, kind="stable")
    priced = np.take_along_axis(price, by_gain, axis=1)
    order = np.take_along_axis(by_gain, np.argsort(priced, axis=1, kind="stable"), axis=1)
    sorted_gain = np.take_along_axis(gain, order, axis=1)
    keep = np.ones(gain.shape, bool)
    keep[:, 1:] = sorted_gain[:, 1:] < np.minimum.accumulate(sorted_gain, axis=1)[:, :-1]
    return order, keep


def taken(table: NDArray[np.int64], picks: Integers) -> Integers:
    """(…, n) the numbers of the picked entries of a (…, n, K) table."""
    return np.asarray(table[..., np.arange(len(picks)), picks])


def left(asked: Knapsack, picks: Integers) -> Integers:
    """(R,) what a choice leaves of each room; below zero where it does not fit."""
    used = taken(asked.usage, picks).sum(axis=-1, dtype=np.int64)
    return np.asarray(np.array(asked.room, np.int64) - used)


def walked(picks: Integers, moves: Moves, room: Integers) -> Integers:
    """Every move that fits after those before it; a class whose move does not fit stays there."""
    picks, room = picks.copy(), room.copy()
    first = np.full(len(picks), len(moves.owner))
    while len(moves.owner):
        late = over(moves.usage, room)
        first[moves.owner] = len(moves.owner)
        np.minimum.at(first, moves.owner[late], np.flatnonzero(late))
        moves = moves.at(np.arange(len(late)) < first[moves.owner])
        used = np.cumsum(moves.usage, axis=1)
        late = over(used, room)
        stop = int(late.argmax()) if late.any() else len(late)
        picks[moves.owner[:stop]] = moves.entry[:stop]
        if stop == len(late):
            break
        room -= used[:, stop - 1]  # the first move fits, so that stop is above 0
        rest = np.arange(len(late)) > stop
        moves = moves.at(rest & (moves.owner != moves.owner[stop]))
    return picks


def over(usage: Integers, room: Integers) -> Mask:
    """(E,) which of (R, E) usages break some room."""
    return np.asarray((usage > room[:, None]).any(axis=0))


def filled(asked: Knapsack, picks: Integers) -> Integers:
    """With the room that is left used: round after round of each class's best move that fits."""
    rows = np.arange(len(picks))
    price = prices(asked)
    while len(rows):
        here = picks[rows, None]
        less = np.take_along_axis(asked.gain[rows], here, axis=1) - asked.gain[rows]
        more = np.take_along_axis(price[rows], here, axis=1)
        used = asked.usage[:, rows]
        used = used - np.take_along_axis(used, here[None], axis=2)
        room = left(asked, picks)
        fits = (less > 0) & (used <= room[:, None, None]).all(axis=0)
        ratio = np.where(fits, _ratio(less, price[rows] - more), -1.0)
        best = ratio.argmax(axis=1)
        open_ = np.flatnonzero(fits.any(axis=1))
        order = open_[np.argsort(-ratio[open_, best[open_]], kind="stable")]
        moves = Moves(rows[order], best[order], used[:, order, best[order]])
        picks = walked(picks, moves, room)
        rows = rows[open_]
    return picks


def _ratio(less: Integers, more: Integers) -> Floats:
    """Saved for each count used; above all others where a move saves and uses no more."""
    return np.where(more > 0, less / np.maximum(more, 1), less * 2.0**62)


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps down through the options that no other beats, each class's one after another.

    Attributes:
        start: (n,) the entry each class starts from.
        owner: (E,) the class of each step.
        entry: (E,) where it leads.
        before: (E,) where it comes from.
        number: (E,) how many steps of the class come before it.
    """

    start: Integers
    owner: Integers
    entry: Integers
    before: Integers
    number: Integers


def steps_down(asked: Knapsack, start: Integers | None = None) -> Steps:
    """Steps from (n,) undominated entries, or from those of least loss, to the cheapest."""
    price = prices(asked)
    order, keep = undominated(asked.gain, price)
    if start is not None:
        keep &= np.take_along_axis(price, order, axis=1) <= taken(price, start)[:, None]
    order, keep = order[:, ::-1], keep[:, ::-1]
    owner, place = np.nonzero(keep)
    entry = order[owner, place]
    begins = np.append(True, owner[1:] != owner[:-1])
    number = np.cumsum(keep, axis=1)[owner, place] - 2
    later = np.flatnonzero(~begins)
    return Steps(entry[begins], owner[later], entry[later], entry[later - 1], number[later])


def by_ratio(asked: Knapsack, steps: Steps) -> Integers:
    """(E,) the steps by what each loses for what it frees, the least first."""
    price = prices(asked)
    freed = price[steps.owner, steps.before] - price[steps.owner, steps.entry]
    lost = asked.gain[steps.owner, steps.entry] - asked.gain[steps.owner, steps.before]
    # A step waits for those before it, so that it is taken at the dearest of them.
    waits = np.full(asked.gain.shape, -np.inf)
    waits[steps.owner, steps.number] = lost / freed
    waits = np.maximum.accumulate(waits, axis=1)[steps.owner, steps.number]
    return np.lexsort((steps.number, steps.owner, waits))


def descended(asked: Knapsack, steps: Steps, order: Integers) -> Integers | None:
    """(n,) down in the order given until every budget holds, then whatever fits again."""
    picks = steps.start.copy()
    owner, entry, before = steps.owner[order], steps.entry[order], steps.before[order]
    room = left(asked, picks)[:, None]
    used = np.cumsum(asked.usage[:, owner, entry] - asked.usage[:, owner, before], axis=1)
    fits = np.append((room >= 0).all(), (used <= room).all(axis=0))
    if not fits.any():
        return None
    stop = int(fits.argmax())
    picks[owner[:stop]] = entry[:stop]
    return filled(asked, picks)


def losses(asked: Knapsack) -> Floats:
    """(n, K) the loss of each entry as the table has it, those of tied layers added up."""
    table = asked.problem.loss.values
    if isinstance(asked.groups, range):
        return np.take_along_axis(table, asked.columns, axis=1).astype(np.float64)
    merged = np.zeros((len(asked.gain), table.shape[1]))
    np.add.at(merged, np.asarray(asked.groups), table)
    return np.take_along_axis(merged, asked.columns, axis=1)


def uniforms(asked: Knapsack) -> tuple[NDArray[np.int32], Mask]:
    """(K, n) the entries of one option for all, and where a class may take it."""
    wide = len(asked.gain), len(asked.problem.loss.options)
    entry = np.full(wide, -1, np.int32)
    numbers = np.broadcast_to(np.arange(asked.gain.shape[1], dtype=np.int32), asked.gain.shape)
    np.put_along_axis(entry, asked.columns, numbers, axis=1)
    return np.maximum(entry, 0).T, (entry >= 0).T


def linear_bound(asked: Knapsack) -> float:
    """A bound on the sum of gains: the linear relaxation of one budget, else no gain at all.

    For any multiplier m and any choice z, no choice that fits has less than
    ``gain(z) - m left(z) + sum over classes of least (gain + m usage) - (the same at z)``. With the
    relaxation's multiplier and break solution that is its optimum. Rounding is allowed for.
    """
    if len(asked.room) != 1:
        return 0.0
    gain, usage, room = asked.gain, asked.usage[0], asked.room[0]
    freest = np.where(gain == 0, usage, np.iinfo(np.int64).max).min(axis=1)
    if int(freest.sum()) <= room:
        return 0.0
    near = relaxed(gain, usage, room)
    less = gain - taken(gain, near.picks)[:, None]
    more = near.slope * (usage - taken(usage, near.picks)[:, None])
    reduced = less + more - 4 * ULP * (np.abs(less) + np.abs(more))
    below = float(reduced.min(axis=1).sum()) * (1 + 1e-6)
    slack = near.slope * near.slack
    return max(near.gain - slack + below - 8 * ULP * (near.gain + slack), 0.0)
