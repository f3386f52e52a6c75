"""Merging labels in compiled code: the same labels as numpy's, several times sooner.

Loaded only where that pays: numba takes seconds to compile, or some tenths to load what it cached.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from mpsearch.solvers.knapsack import Integers
from mpsearch.solvers.labels import Labels, Options

NONE = np.zeros(0, np.int64)
DONE = np.iinfo(np.int64).max
Arrays = tuple[Integers, Integers, Integers]
compiled: Callable[[Any], Any] = numba.njit(cache=True, nogil=True)


@compiled
def _merged(
    cost: Integers,
    loss: Integers,
    least: Integers,
    usage: Integers,
    gain: Integers,
    room: int,
) -> Arrays:
    """Of each option one list of shifted labels: the cheapest head, of equal ones the better."""
    carry, width = len(least) > 0, len(usage)
    heads = np.zeros(width, np.int64)
    head_cost, head_loss = cost[0] + usage, loss[0] + gain
    head_cost[head_cost > room] = DONE
    most = len(cost) * width
    to_cost, to_loss = np.empty(most, np.int64), np.empty(most, np.int64)
    to_least = np.empty(most if carry else 0, np.int64)
    count, floor = 0, DONE
    while True:
        best, low_cost, low_loss = 0, head_cost[0], head_loss[0]
        for option in range(1, width):
            its_cost = head_cost[option]
            if its_cost < low_cost or (its_cost == low_cost and head_loss[option] < low_loss):
                best, low_cost, low_loss = option, its_cost, head_loss[option]
        if low_cost == DONE:
            break
        at = heads[best]
        stands = least[at] + gain[best] if carry else 0
        if low_loss < floor:
            to_cost[count] = low_cost
            to_loss[count] = floor = low_loss
            if carry:
                to_least[count] = stands
            count += 1
        elif carry and stands < to_least[count - 1]:
            to_least[count - 1] = stands
        heads[best] = at = at + 1
        more = at < len(cost) and cost[at] + usage[best] <= room
        head_cost[best] = cost[at] + usage[best] if more else DONE
        if more:
            head_loss[best] = loss[at] + gain[best]
    return to_cost[:count].copy(), to_loss[:count].copy(), to_least[:count].copy()


def merged(labels: Labels, options: Options, room: int) -> Labels:
    """The labels within a room that none beats, of labels shifted by every option."""
    carried = NONE if labels.least is None else labels.least
    cost, loss, least = _merged(
        labels.cost, labels.loss, carried, options.usage, options.gain, room
    )
    return Labels(cost, loss, None if labels.least is None else least)
