"""Classes added one by one to a core, those likeliest to differ from the break solution first.

Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", European Journal of
Operational Research 83 (1995). A state is what the classes looked at so far use and lose beside the
break solution. It is left out when another uses and loses no more (dominance), or when no way to
complete it can beat the best answer: the room that is left saves no more than the steepest slope
ahead, what is overdrawn is bought back at no less than the flattest slope back. Usages and gains
are integers and their sums exact; only bounds are floats, and nothing is left out whose bound is
within rounding of the best answer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.relaxation import Relaxation, changes
from mpsearch.tables import Floats

Integers = NDArray[np.int64]
FAR = 2.0**900  # the slope back of a class that has no way back


@dataclass(frozen=True, eq=False)
class Core:
    """The changes of the break solution that a better answer may make.

    Classes are in the order in which they are to be looked at, the changes of each by usage.

    Attributes:
        owner: (c,) the class of a change.
        entry: (c,) the entry it takes.
        gain: (c,) the gain it adds.
        usage: (c,) the usage it adds.
        start: (m + 1,) where the changes of each class begin.
        ahead: (m,) the steepest slope ahead in the classes after this one.
        back: (m,) the flattest slope back in the classes after this one.
    """

    owner: Integers
    entry: Integers
    gain: Integers
    usage: Integers
    start: Integers
    ahead: Floats
    back: Floats


def core(gain: Integers, usage: Integers, start: Relaxation, most: float) -> Core:
    """The changes that move the bound by at most ``most``, the classes of the closest slopes first.

    By how much a change moves the bound is its reduced cost: the gain it adds and the usage it adds
    at the multiplier.
    """
    parts: list[tuple[Integers, Integers, Integers, Integers]] = []
    for first, less, more in changes(gain, usage, start.picks):
        moves = less + start.slope * more <= most
        moves &= (less < 0) | (more < 0)
        owner, entry = np.nonzero(moves)
        parts.append((owner + first, entry, less[owner, entry], more[owner, entry]))
    owner, entry, less, more = (np.concatenate(part) for part in zip(*parts, strict=True))
    kept = _undominated(owner, entry, less, more)
    whole = _arranged(owner[kept], entry[kept], less[kept], more[kept])
    near = np.minimum(start.slope - whole.ahead, whole.back - start.slope)
    return arranged(whole, np.argsort(near, kind="stable"))


def _undominated(owner: Integers, entry: Integers, less: Integers, more: Integers) -> Integers:
    """The changes that use or lose less than any other of their class, by class and usage."""
    kept = np.lexsort((entry, less, more, owner))
    while True:
        own, low = owner[kept], less[kept]
        beaten = (own[1:] == own[:-1]) & (low[1:] >= low[:-1])
        if not beaten.any():
            return kept
        kept = kept[np.concatenate(([True], ~beaten))]


def _arranged(owner: Integers, entry: Integers, less: Integers, more: Integers) -> Core:
    """Changes, class after class, with the slopes of each class itself."""
    if not len(owner):
        nought = np.zeros(0)
        return Core(owner, entry, less, more, np.zeros(1, np.int64), nought, nought)
    begin = np.flatnonzero(np.diff(owner, prepend=-1))
    slope = -less / np.where(more == 0, 1, more)
    ahead = np.maximum.reduceat(np.where(more > 0, slope, 0.0), begin)
    back = np.minimum.reduceat(np.where(more < 0, slope, FAR), begin)
    return Core(owner, entry, less, more, np.append(begin, len(owner)), ahead, back)


def arranged(whole: Core, order: Integers) -> Core:
    """Classes with slopes of their own in another order, each with the slopes of those after it."""
    count = np.diff(whole.start)[order]
    start = np.concatenate(([0], np.cumsum(count)))
    flat = np.repeat(whole.start[:-1][order] - start[:-1], count) + np.arange(start[-1])
    return Core(
        whole.owner[flat],
        whole.entry[flat],
        whole.gain[flat],
        whole.usage[flat],
        start,
        _after(np.maximum, whole.ahead[order], 0.0),
        _after(np.minimum, whole.back[order], FAR),
    )


def by_layer(found: Core, most: float, slope: float) -> Core:
    """A core in the order of layers, of the changes that move the bound by at most ``most``."""
    flat = np.flatnonzero(found.gain + slope * found.usage <= most)
    flat = flat[np.argsort(found.owner[flat], kind="stable")]
    whole = _arranged(found.owner[flat], found.entry[flat], found.gain[flat], found.usage[flat])
    return arranged(whole, np.arange(len(whole.ahead)))


def _after(take: np.ufunc, slope: Floats, none: float) -> Floats:
    """For each place the largest, or the smallest, of the slopes after it."""
    following = np.append(slope[1:], none)[: len(slope)]
    return np.asarray(take.accumulate(following[::-1])[::-1])
