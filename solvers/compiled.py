"""Hulls, the order of their edges and the search of a core, compiled: numpy's answers, sooner.

Loaded only where that pays: numba takes seconds to compile, or some tenths to load what it cached.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.core import Core
from mpsearch.solvers.hull import Hull
from mpsearch.solvers.hull import hull as sorted_hull
from mpsearch.solvers.search import LEAST, Found, Limits, States
from mpsearch.solvers.search import grown as merged_by_numpy
from mpsearch.tables import Floats

Integers = NDArray[np.int64]
Arrays = tuple[Integers, Integers, Floats, NDArray[np.bool_], NDArray[np.int32], NDArray[np.int32]]
DONE = np.iinfo(np.int64).max
WIDE = 64  # entries up to which a class is wrapped or merged
DIGIT = 11  # bits that are sorted by at a time
Classes = tuple[Integers, Integers, Integers, Floats, Floats]
Steps = tuple[Integers, int, bool, int]
compiled: Callable[[Any], Any] = numba.njit(cache=True, nogil=True)


@compiled
def _merged(
    states: tuple[Integers, Integers, NDArray[np.bool_]],
    gain: Integers,
    usage: Integers,
    slopes: tuple[float, float],
    slack: int,
    limit: float,
) -> Arrays:
    """Of each change one list of shifted states: the one that uses least, then loses least."""
    old_usage, old_gain, old_tied = states
    ahead, back = slopes
    size, width = len(old_usage), len(usage)
    heads = np.zeros(width, np.int64)
    head_usage, head_gain = old_usage[0] + usage, old_gain[0] + gain
    uses, loses = np.empty(size * width, np.int64), np.empty(size * width, np.int64)
    bounds, tied = np.empty(size * width, np.float64), np.empty(size * width, np.bool_)
    parent, move = np.empty(size * width, np.int32), np.empty(size * width, np.int32)
    count = 0
    while True:
        best, use, lose = 0, head_usage[0], head_gain[0]
        for k in range(1, width):
            if head_usage[k] < use or (head_usage[k] == use and head_gain[k] < lose):
                best, use, lose = k, head_usage[k], head_gain[k]
        if use == DONE:
            break
        at = heads[best]
        left = np.float64(slack - use)
        bound = np.float64(lose) + max(left * -ahead, left * -back)
        if bound <= limit:
            if count == 0 or lose < loses[count - 1]:
                uses[count], loses[count], bounds[count] = use, lose, bound
                tied[count], parent[count], move[count] = old_tied[at], at, best
                count += 1
            elif use == uses[count - 1] and lose == loses[count - 1]:
                tied[count - 1] = True
        heads[best] = at + 1
        head_usage[best] = DONE
        if at + 1 < size:
            head_usage[best] = old_usage[at + 1] + usage[best]
            head_gain[best] = old_gain[at + 1] + gain[best]
    return (
        uses[:count].copy(),
        loses[:count].copy(),
        bounds[:count].copy(),
        tied[:count].copy(),
        parent[:count].copy(),
        move[:count].copy(),
    )


def grown(
    states: States,
    gain: Integers,
    usage: Integers,
    slopes: tuple[float, float],
    slack: int,
    limit: float,
) -> States:
    """What grows from states by the changes of one class; see :class:`Grow`."""
    if len(usage) > WIDE:
        return merged_by_numpy(states, gain, usage, slopes, slack, limit)
    old = (states.usage, states.gain, states.tied)
    return States(*_merged(old, gain, usage, slopes, slack, limit))


def hull(gain: Integers, usage: Integers) -> Hull:
    """The hulls of (n, K) gains to be made small with (n, K) usage."""
    if gain.shape[1] > WIDE:
        return sorted_hull(gain, usage)
    return Hull(*_wrapped(gain, usage))


@compiled
def _wrapped(
    gain: Integers, usage: Integers
) -> tuple[Integers, Integers, Integers, Integers, Integers, Floats]:
    """Hulls by gift wrapping."""
    count, width = gain.shape
    most, edge = count * (width - 1), 0
    first, owner, entry = (
        np.empty(count, np.int64),
        np.empty(most, np.int64),
        np.empty(most, np.int64),
    )
    saved, used, slopes = (
        np.empty(most, np.int64),
        np.empty(most, np.int64),
        np.empty(most, np.float64),
    )
    for row in range(count):
        here = 0
        for k in range(1, width):
            cheaper = usage[row, k] < usage[row, here]
            if cheaper or (usage[row, k] == usage[row, here] and gain[row, k] < gain[row, here]):
                here = k
        first[row] = here
        last = np.inf
        while True:
            best, reach, to = 0.0, 0, -1
            for k in range(width):
                more, less = usage[row, k] - usage[row, here], gain[row, here] - gain[row, k]
                if more > 0 and less > 0:
                    slope = less / more
                    if slope > best or (slope == best and more > reach):
                        best, reach, to = slope, more, k
            if to < 0:
                break
            last = min(best, np.nextafter(last, 0.0))
            owner[edge], entry[edge], slopes[edge] = row, to, last
            saved[edge], used[edge] = gain[row, here] - gain[row, to], reach
            here = to
            edge += 1
    return (
        first,
        owner[:edge].copy(),
        entry[:edge].copy(),
        saved[:edge].copy(),
        used[:edge].copy(),
        slopes[:edge].copy(),
    )


def steepest(slopes: Floats) -> Integers:
    """The order of falling slopes, equal ones as they stand; all above zero."""
    # Floats above zero are ordered as their bits are; turned, the largest comes first.
    return np.asarray(_ordered(~slopes.view(np.int64) & np.iinfo(np.int64).max))


@compiled
def _ordered(keys: Integers) -> Integers:
    """The stable order of integers from 0 up, by their digits, the least digit first."""
    count, size = len(keys), 1 << DIGIT
    tallies = np.zeros((-(-63 // DIGIT), size), np.int64)
    for key in keys:
        for digit in range(len(tallies)):
            tallies[digit, (key >> (DIGIT * digit)) & (size - 1)] += 1
    order, spare = np.arange(count), np.empty(count, np.int64)
    for digit, tally in enumerate(tallies):
        if tally.max() == count:
            continue  # all the same
        start = 0
        for value in range(size):
            start, tally[value] = start + tally[value], start
        for which in order:
            value = (keys[which] >> (DIGIT * digit)) & (size - 1)
            spare[tally[value]] = which
            tally[value] += 1
        order, spare = spare, order
    return order


@compiled
def _next(
    core: Classes, place: int, usage: Integers, gain: Integers, slack: int, limit: float
) -> int:
    """The first class from a place on that has a change worth making to any of the states."""
    start, less, more, ahead, back = core
    for which in range(place, len(ahead)):
        for change in range(start[which], start[which + 1]):
            beside = -1  # the last state that uses no more than what grows of this one
            for state in range(len(usage)):
                use, lose = usage[state] + more[change], gain[state] + less[change]
                while beside + 1 < len(usage) and usage[beside + 1] <= use:
                    beside += 1
                left = np.float64(slack - use)
                if np.float64(lose) + max(left * -ahead[which], left * -back[which]) > limit:
                    continue
                if beside < 0 or gain[beside] > lose:
                    return which
                if gain[beside] == lose and usage[beside] == use:
                    return which
    return len(ahead)


@compiled
def _searched(core: Classes, best: int, slack: int, beyond: float, most: int) -> Steps:
    """The changes of the best answer, what it adds, and whether it is tied and found at all.

    The last is -1 where a class leaves more than ``most`` states, else how many changes there are.
    """
    start, less, more, ahead, back = core
    nought = np.zeros(1, np.int64)
    usage, gain, tied = nought, nought, np.zeros(1, np.bool_)
    parent, move = np.empty(most, np.int32), np.empty(most, np.int32)
    ends, begins = np.zeros(len(ahead) + 1, np.int64), np.zeros(len(ahead), np.int64)
    step, place = 0, 0
    winner_step, winner, changed = -1, 0, -1
    while len(usage) > 0:
        place = _next(core, place, usage, gain, slack, np.float64(best) + beyond)
        if place == len(ahead):
            break
        begin, end = start[place], start[place + 1]
        adds = np.concatenate((nought, less[begin:end]))
        uses = np.concatenate((nought, more[begin:end]))
        least, move_of, state_of = DONE, 0, 0
        for k in range(len(adds)):
            state = int(np.searchsorted(usage, slack - uses[k], side="right")) - 1
            if state >= 0 and gain[state] + adds[k] < least:
                least, move_of, state_of = gain[state] + adds[k], k, state
        if least < best:
            best, winner_step, winner = least, step, state_of
            changed = begin + move_of - 1 if move_of else -1
        limit = np.float64(best) + beyond
        usage, gain, _, tied, come, made = _merged(
            (usage, gain, tied), adds, uses, (ahead[place], back[place]), slack, limit
        )
        count, filled = len(usage), ends[step]
        if count > most:
            return nought, best, False, -2
        if filled + count > len(parent):
            parent = np.concatenate((parent, np.empty(filled + count, np.int32)))
            move = np.concatenate((move, np.empty(filled + count, np.int32)))
        parent[filled : filled + count], move[filled : filled + count] = come, made
        begins[step] = begin
        step += 1
        ends[step] = filled + count
        place += 1
    last, is_tied = int(np.searchsorted(usage, slack, side="right")) - 1, False
    if last >= 0 and gain[last] == best:
        winner_step, winner, changed, is_tied = step, last, -1, tied[last]
    changes, count = _walked(parent, move, ends, begins, winner_step, winner, changed)
    return changes, best, is_tied, count


@compiled
def _walked(
    parent: NDArray[np.int32],
    move: NDArray[np.int32],
    ends: Integers,
    begins: Integers,
    step: int,
    state: int,
    changed: int,
) -> tuple[Integers, int]:
    """The changes that led to a state of a step, and how many; -1 where there is no such step."""
    changes, count = np.empty(max(step + 1, 1), np.int64), 0
    if step < 0:
        return changes, -1
    if changed >= 0:
        changes[0], count = changed, 1
    for at in range(step - 1, -1, -1):
        place = ends[at] + state
        if move[place]:
            changes[count] = begins[at] + move[place] - 1
            count += 1
        state = int(parent[place])
    return changes, count


def search(core: Core, best: int, limits: Limits) -> Found | None:
    """The best answer of a core; ``None`` where states are too many for a glance."""
    if len(core.ahead) and int(np.diff(core.start).max()) > WIDE:
        return None
    classes = core.start, core.gain, core.usage, core.ahead, core.back
    changes, best, tied, count = _searched(
        classes, best, limits.slack, limits.margin - limits.gap, LEAST
    )
    if count == -2:
        return None
    return Found(None if count < 0 else changes[:count].tolist(), best, limits.proven(best), tied)
