"""Growing the states of a core in compiled code: the same states as numpy's, several times sooner.

Loaded only where that pays: numba takes seconds to compile, or some tenths to load what it cached.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.search import States
from mpsearch.tables import Floats

Integers = NDArray[np.int64]
Arrays = tuple[Integers, Integers, Floats, NDArray[np.bool_], NDArray[np.int32], NDArray[np.int32]]
DONE = np.iinfo(np.int64).max
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
    old = (states.usage, states.gain, states.tied)
    return States(*_merged(old, gain, usage, slopes, slack, limit))
