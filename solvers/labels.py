"""Labels: the costs and losses that the first classes can have, none beaten by another.

One step of Nemhauser and Ullmann (1969) shifts them by every option of a class and merges what
comes out. A trail keeps the labels of every step, so that a choice can be read out of it backwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpsearch.solvers.knapsack import Integers

BLOCK = 1 << 15  # shifted labels merged at a time: they stay in the cache


@dataclass(frozen=True, eq=False)
class Labels:
    """P labels, cheapest first, each with less loss than the one before.

    Attributes:
        cost: (P,) counts, strictly rising.
        loss: (P,) counts, strictly falling.
        least: (P,) the least loss of all that a label stands for; ``None`` where each stands for
            itself.
    """

    cost: Integers
    loss: Integers
    least: Integers | None = None


@dataclass(frozen=True, eq=False)
class Options:
    """The options of a class that no other beats, cheapest first; the first costs nothing more.

    Attributes:
        place: Which class it is.
        entry: (m,) the entry of each.
        usage: (m,) counts, from 0 on strictly rising.
        gain: (m,) counts, strictly falling to 0.
    """

    place: int
    entry: Integers
    usage: Integers
    gain: Integers


Merge = Callable[[Labels, Options, int], Labels]  # see `merged`


def undominated(gain: Integers, usage: Integers) -> tuple[Integers, list[Options]]:
    """(n,) the cheapest entry of each class, and those with a choice, the widest first."""
    order = np.lexsort((gain, usage), axis=1)
    used = np.take_along_axis(usage, order, axis=1)
    lost = np.take_along_axis(gain, order, axis=1)
    keep = np.ones(order.shape, bool)
    keep[:, 1:] = lost[:, 1:] < np.minimum.accumulate(lost, axis=1)[:, :-1]
    width = np.where(keep, used, 0).max(axis=1)
    turn = np.argsort(-width, kind="stable")
    return order[:, 0], [
        Options(int(i), order[i, keep[i]], used[i, keep[i]], lost[i, keep[i]])
        for i in turn[width[turn] > 0]
    ]


def merged(labels: Labels, options: Options, room: int) -> Labels:
    """The labels within a room that none beats, of labels shifted by every option."""
    cost, usage = labels.cost, options.usage
    ends = np.searchsorted(cost, room - usage, side="right")
    blocks = -(-len(cost) * len(usage) // BLOCK) if labels.least is None else 1
    # A block ends below a cost of its own, of every option where that stands.
    inner = cost[np.arange(1, blocks) * len(cost) // blocks]
    reach = inner[:, None] + (usage[len(usage) // 2] - usage)
    cuts = np.vstack([0 * ends, np.minimum(np.searchsorted(cost, reach), ends), ends])
    floor = np.iinfo(np.int64).max
    parts: list[Labels] = []
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        part = _block(labels, options, [slice(*span) for span in zip(start, stop, strict=True)])
        fresh = int(np.searchsorted(-part.loss, -floor, side="right"))
        if fresh < len(part.loss):
            floor = int(part.loss[-1])
        parts.append(Labels(part.cost[fresh:], part.loss[fresh:], part.least))
    if len(parts) == 1:
        return parts[0]
    return Labels(np.concatenate([p.cost for p in parts]), np.concatenate([p.loss for p in parts]))


def _block(labels: Labels, options: Options, spans: list[slice]) -> Labels:
    """Merged, of each option some of the labels only."""
    cost = _shifted(labels.cost, options.usage, spans)
    loss = _shifted(labels.loss, options.gain, spans)
    order = cost.argsort(kind="stable")  # merges runs, as these are
    cost, loss = cost[order], loss[order]
    keep = np.flatnonzero(loss[1:] < np.minimum.accumulate(loss)[:-1]) + 1
    keep = np.append(0, keep)[: len(loss)]
    # Of equal costs the last one kept loses least.
    keep = keep[np.append(cost[keep[1:]] > cost[keep[:-1]], True)[: len(keep)]]
    if labels.least is None:
        return Labels(cost[keep], loss[keep])
    carried = _shifted(labels.least, options.gain, spans)[order]
    starts = np.searchsorted(cost, cost[keep])
    return Labels(cost[keep], loss[keep], np.minimum.reduceat(carried, starts))


def _shifted(values: Integers, by: Integers, spans: list[slice]) -> Integers:
    pairs = zip(spans, by.tolist(), strict=True)
    return np.concatenate([values[span] + shift for span, shift in pairs])


def thinned(labels: Labels, step: float, wider: float, most: int) -> Labels:
    """One label, the cheapest, of those whose losses differ by less than ``exp(step)``.

    While those are more than ``most`` the step grows by a factor ``wider``.
    """
    logs = np.log(np.maximum(labels.loss, 0.25))  # 0 and 1 are labels of their own
    while True:
        part = np.floor(logs / step)
        keep = np.flatnonzero(np.append(True, part[1:] != part[:-1]))
        if len(keep) <= most:
            break
        step *= wider
    least = labels.loss if labels.least is None else labels.least
    return Labels(labels.cost[keep], labels.loss[keep], np.minimum.reduceat(least, keep))


@dataclass(frozen=True, eq=False)
class Trail:
    """The labels after every step.

    Attributes:
        first: (n,) the cheapest entry of each class.
        steps: The classes with a choice in the order they were taken, and the labels before each.
        last: The labels after all.
        compiled: Whether compiled code merged some of them.
    """

    first: Integers
    steps: tuple[tuple[Options, Labels], ...]
    last: Labels
    compiled: bool

    def picks(self, spots: Integers) -> Integers:
        """(m, n) the entry of each class at each of some of the last labels."""
        rows = np.tile(self.first, (len(spots), 1))
        cost, loss = self.last.cost[spots], self.last.loss[spots]
        for options, before in reversed(self.steps):
            costs, losses = cost[:, None] - options.usage, loss[:, None] - options.gain
            at = np.searchsorted(before.cost, costs).clip(max=len(before.cost) - 1)
            came = (before.cost[at] == costs) & (before.loss[at] == losses)
            option = came.argmax(axis=1)
            rows[:, options.place] = options.entry[option]
            cost, loss = cost - options.usage[option], loss - options.gain[option]
        return rows
