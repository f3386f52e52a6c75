"""Of all answers of the same gain and usage, the first in the order of layers and options.

The classes of a core are added in the order of layers. Of two ways to the same usage and gain the
one that comes first stands for both; states that do not lead to the wanted gain and usage are left
out by the bounds of the search.
"""

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.core import Core, by_layer
from mpsearch.solvers.search import Limits, States, begun, front, next_class

Integers = NDArray[np.int64]


def first(core: Core, picks: Integers, answer: Integers, limits: Limits) -> Integers | None:
    """The first of the answers that add and use what one does; ``None`` where states run out.

    ``picks`` are the entries of the break solution, ``answer`` those of the answer.
    """
    differs = answer[core.owner] == core.entry
    gain, slack = int(core.gain[differs].sum()), int(core.usage[differs].sum())
    core = by_layer(core, gain + limits.slope * slack + limits.margin, limits.slope)
    states, rank, kept, place = begun(), np.zeros(1, np.int64), 0, 0
    trail: list[tuple[int, States]] = []
    limit = gain + limits.margin
    while True:
        place = next_class(core, place, states, slack, limit)
        if place == len(core.ahead):
            break
        states, rank = _ranked(core, place, states, rank, picks, slack, limit)
        trail.append((place, states))
        kept += len(rank)
        place += 1
        if kept > limits.states:
            return None
    state = int(np.searchsorted(states.usage, slack))
    found = picks.copy()
    for place, step in reversed(trail):
        if step.move[state]:
            change = int(core.start[place]) + int(step.move[state]) - 1
            found[core.owner[change]] = core.entry[change]
        state = int(step.parent[state])
    return found


def _ranked(
    core: Core,
    place: int,
    states: States,
    rank: Integers,
    picks: Integers,
    slack: int,
    limit: float,
) -> tuple[States, Integers]:
    """The states grown by one class, and the place of each in the order of choices."""
    now = slice(int(core.start[place]), int(core.start[place + 1]))
    entries = np.append(picks[core.owner[now.start]], core.entry[now])
    key = (rank * len(entries) + np.argsort(np.argsort(entries))[:, None]).ravel()
    uses = (states.usage + np.append(0, core.usage[now])[:, None]).ravel()
    loses = (states.gain + np.append(0, core.gain[now])[:, None]).ravel()
    left = slack - uses
    bound = loses + np.maximum(left * -core.ahead[place], left * -core.back[place])
    kept = np.flatnonzero(bound <= limit)
    kept = kept[np.lexsort((key[kept], loses[kept], uses[kept]))]
    kept = kept[front(uses[kept], loses[kept])]
    move, parent = np.divmod(kept, len(rank))
    rank = np.argsort(np.argsort(key[kept]))
    return (
        States(
            uses[kept],
            loses[kept],
            bound[kept],
            np.zeros(len(kept), bool),
            parent.astype(np.int32),
            move.astype(np.int32),
        ),
        rank,
    )
