"""Dynamic programming over layers: every total that no other beats, or every total there is.

``pareto``
    Layer by layer the partial totals of cost and loss that no other beats in both (Cai and others,
    "ZeroQ: A Novel Zero Shot Quantization Framework", 2020, section 3.3; Nemhauser and Ullmann,
    "Discrete Dynamic Programming and Capital Allocation", Management Science 1969). AutoRound's
    AutoScheme does the same. For costs of any kind.
``budget``
    Layer by layer the least loss for every total of an integer cost, counted in the greatest common
    divisor of all differences (the knapsack of HIGGS, "Pushing the Limits of Large Language Model
    Quantization via the Linearity Theorem", 2024, section 5, and of EvoPress's comparison, 2024).

Both go from the last layer to the first and keep the first option of equals, so that of equal
losses the cheapest is found, and of those the first in the order of layers and options.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.knapsack import Integers, Knapsack, knapsack
from mpsearch.solvers.moves import undominated
from mpsearch.tables import Mask

Over = Literal["pareto", "budget"]
UNREACHED = 1 << 62  # no sum of gains comes near


@dataclass(frozen=True)
class Dp:
    """The least loss within one sum budget, by dynamic programming.

    Attributes:
        over: The totals that are kept.
        limit: Most totals kept over all layers, of 8 bytes each.
    """

    over: Over = "pareto"
    limit: int = 50_000_000

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.over not in get_args(Over):
            raise ValueError(f"dp is over 'pareto' or 'budget', not {self.over!r}")
        if self.limit < 1:
            raise ValueError(f"limit is {self.limit}; allow at least one total")

    def solve(self, problem: Problem) -> Solution:
        """The best choice; ``ValueError`` where more than ``limit`` totals would be kept."""
        name = f"dp ({self.over})"
        asked = knapsack(problem, "dp")
        if asked is None:
            return infeasible(name)
        layers, room = _layers(asked)
        found = (pareto if self.over == "pareto" else budgeted)(layers, room, self.limit)
        least = float(found.gain[-1])
        for total in range(len(found.gain) - 1, -1, -1):
            picks = found.picks(total)
            if problem.feasible(asked.choice(picks)):  # a real budget's rounding may let more in
                return asked.solution(picks, least, name)
        return asked.solution(None, least, name)


@dataclass(frozen=True, eq=False)
class Entries:
    """What one class may take: the entries that no other beats or equals, in order.

    Attributes:
        entry: (k,).
        gain: (k,) what each loses.
        usage: (k,) what each uses.
    """

    entry: Integers
    gain: Integers
    usage: Integers


@dataclass(frozen=True, eq=False)
class Found:
    """The totals of all layers that no other beats: usage rises, gain falls.

    Attributes:
        gain: (S,).
        trail: For each layer, the first one first, the entry and the next layer's total that each
            of its totals comes from.
        first: (S,) their places among the first layer's totals.
    """

    gain: Integers
    trail: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]]
    first: Integers

    def picks(self, total: int) -> Integers:
        """(n,) the entries that make up a total."""
        place = int(self.first[total])
        picks = []
        for entry, tail in self.trail:
            picks.append(int(entry[place]))
            place = int(tail[place])
        return np.array(picks)


def _layers(asked: Knapsack) -> tuple[list[Entries], int]:
    """What each class may take, and the room, at most what all together can use."""
    usage = asked.usage[0] if len(asked.usage) else np.zeros_like(asked.gain)
    order, keep = undominated(asked.gain, usage)
    layers = []
    for row, (entries, kept) in enumerate(zip(order, keep, strict=True)):
        entry = np.sort(entries[kept])
        layers.append(Entries(entry, asked.gain[row, entry], usage[row, entry]))
    most = sum(int(layer.usage.max()) for layer in layers)
    return layers, min(asked.room[0], most) if asked.room else 0


def pareto(layers: Sequence[Entries], room: int, limit: int) -> Found:
    """All totals within the room that no other beats, by label setting."""
    used, lost = np.zeros(1, np.int64), np.zeros(1, np.int64)
    trail: list[tuple[NDArray[np.integer], NDArray[np.integer]]] = []
    kept = 0
    for layer in reversed(layers):
        count = len(used)
        _check(kept + count * len(layer.entry), limit)
        wide = (layer.usage[:, None] + used).ravel()
        total = (layer.gain[:, None] + lost).ravel()
        order = np.argsort(wide, kind="stable")
        order = order[: np.searchsorted(wide[order], room, side="right")]
        order = order[_falls(total[order])]
        order = order[np.append(np.diff(wide[order]) > 0, True)]  # of equal usage the last is least
        used, lost = wide[order], total[order]
        kept += len(order)
        entry, tail = layer.entry[order // count], order % count
        trail.append((entry.astype(np.int32), tail.astype(np.int32)))
    return Found(lost, trail[::-1], np.arange(len(lost)))


def budgeted(layers: Sequence[Entries], room: int, limit: int) -> Found:
    """The least loss for every total of the cost within the room, in units of the divisor."""
    unit = max(int(np.gcd.reduce(np.concatenate([layer.usage for layer in layers]))), 1)
    width = room // unit + 1
    _check(width * len(layers), limit)
    least = np.full(width, UNREACHED)
    least[0] = 0
    trail: list[tuple[NDArray[np.integer], NDArray[np.integer]]] = []
    for layer in reversed(layers):
        lost, entry = np.full(width, UNREACHED), np.zeros(width, np.int32)
        tail = np.arange(width, dtype=np.int32)
        for place, gain, usage in zip(layer.entry, layer.gain, layer.usage // unit, strict=True):
            if usage < width:
                total = least[: width - usage] + gain
                less = total < lost[usage:]
                lost[usage:][less] = total[less]
                entry[usage:][less] = place
                tail[usage:][less] = np.flatnonzero(less)
        least = np.minimum(lost, UNREACHED)
        trail.append((entry, tail))
    first = np.flatnonzero(_falls(least) & (least < UNREACHED))
    return Found(least[first], trail[::-1], first)


def _falls(total: Integers) -> Mask:
    """Which totals are less than all before them."""
    before = np.minimum.accumulate(np.append(np.iinfo(np.int64).max, total[:-1]))
    return np.asarray(total < before[: len(total)])


def _check(count: int, limit: int) -> None:
    if count > limit:
        raise ValueError(
            f"dp would keep more than limit={limit} totals; use the solver exact, or raise limit"
        )
