"""Two levels: tensors outside, their columns, groups or experts inside, and one multiplier.

A tensor's options are what its fine layers take together at a multiplier, the loss that a unit of
cost must save: one curve for each tensor, the same multipliers for all. Inside, a fine layer takes

``hull``
    the least ``loss + multiplier * cost``, a point of its convex hull;
``baq``
    the option nearest to the water-filling of its fitted curve at that level (Zhang and others,
    "BAQ: Efficient Bit Allocation Quantization for Large Language Models", 2025);
``slim``
    for each middle option of the tensor, as many of its least salient layers one option down as of
    its most salient ones one up (Huang and others, "SliM-LLM: Salience-Driven Mixed-Precision
    Quantization for Large Language Models", 2025, "salience-determined bit allocation"). How many
    is chosen by the table's loss, where SliM-LLM looks at the output's KL divergence.

Outside, an exact solver gives every tensor one of these options. Each tensor's uniform options and
its own share of the room are among them, so that the answer loses no more than tensors alone (one
option each) or fine layers alone (every tensor the same share) do. The room that is left goes to
fine layers. The bound is that of the fine problem's linear relaxation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mpsearch.formats import Option
from mpsearch.network import numbered
from mpsearch.problem import Budget, Problem, Solution, Status, infeasible
from mpsearch.protocols import Solver
from mpsearch.solvers.exact import Exact
from mpsearch.solvers.hull import hull
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.solvers.moves import (
    Integers,
    answered,
    filled,
    linear_bound,
    losses,
    prices,
    undominated,
    uniforms,
)
from mpsearch.solvers.relaxation import relaxed
from mpsearch.solvers.waterfill import fitted
from mpsearch.tables import Floats, Mask, Table

Inside = Literal["hull", "baq", "slim"]
STEPS = 2.0 ** np.arange(2, -8, -1.0)
OCTAVES = np.concatenate([-STEPS, [0.0], STEPS[::-1]])  # of multipliers around the relaxation's
Taken = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TwoLevel:
    """One sum budget shared among tensors exactly, and inside each by one multiplier.

    Attributes:
        of: The number of the tensor that each layer of the problem belongs to.
        inside: How a tensor's fine layers share.
        outside: What shares among tensors.
    """

    of: Sequence[int] | NDArray[np.integer]
    inside: Inside = "hull"
    outside: Solver = field(default_factory=Exact)

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.inside not in get_args(Inside):
            known = ", ".join(get_args(Inside))
            raise ValueError(f"inside is {self.inside!r}; there are {known}")

    def solve(self, problem: Problem) -> Solution:
        """A choice within one sum budget; ``ValueError`` where ``of`` does not fit the problem."""
        tensors = self._tensors(problem)
        name = f"two-level ({self.inside})"
        asked = knapsack(problem, "two-level")
        if asked is None:
            return infeasible(name)
        of = _merged(tensors, asked.groups)

        return answered(asked, lambda room: self._search(room, of), linear_bound(asked), name)

    def _tensors(self, problem: Problem) -> Integers:
        """(L,) the tensor of each layer, numbered from 0."""
        of, layers = np.asarray(self.of), len(problem.loss.layers)
        if of.shape != (layers,) or of.dtype.kind not in "iu":
            raise ValueError(
                f"of gives tensors to {of.shape} layers as {of.dtype}; the problem has {layers}:"
                " give one whole number for each"
            )
        return np.unique(of, return_inverse=True)[1].astype(np.int64)

    def _search(self, asked: Knapsack, of: Integers) -> Integers:
        """(n,) the picked entries."""
        free = np.where(asked.gain == 0, prices(asked), np.iinfo(np.int64).max).argmin(axis=1)
        if asked.fits(free):
            return np.asarray(free)
        slope = relaxed(asked.gain, asked.usage[0], asked.room[0]).slope
        alone = share(asked, of)
        uniform, allowed = uniforms(asked)
        every = np.vstack(
            [self._inner(asked, of, slope * 2.0**OCTAVES), alone.astype(np.int32), uniform]
        )
        may = np.vstack([np.ones((len(every) - len(uniform), len(of)), bool), allowed])
        tensors = _Tensors(asked, of)
        choices = [tensors.solved(self.outside, every, may)]
        if not choices[0][1]:  # not proven: is it no worse than tensors alone?
            choices.append(tensors.solved(self.outside, uniform, allowed))
        found = [alone, *(picks for picks, _ in choices if picks is not None)]
        return filled(asked, min(found, key=asked.total))

    def _inner(self, asked: Knapsack, of: Integers, multipliers: Floats) -> Taken:
        """(J, n) what the fine layers take, by multiplier or around each middle option."""
        if self.inside == "slim":
            return balanced(asked, of)
        return (at_hull if self.inside == "hull" else at_filling)(asked, multipliers)


@dataclass(frozen=True, eq=False)
class _Tensors:
    """The coarse problem: T tensors, each of some classes.

    Attributes:
        asked: The fine problem.
        of: (n,) the tensor of each class.
    """

    asked: Knapsack
    of: Integers

    def solved(self, outside: Solver, every: Taken, may: Mask) -> tuple[Integers | None, bool]:
        """(n,) the entries of the best of (J, n) options for each tensor, and whether proven."""
        by_tensor = np.argsort(self.of, kind="stable")
        starts = np.searchsorted(self.of[by_tensor], np.arange(int(self.of.max()) + 1))
        rows = np.arange(len(self.of))

        def summed(table: Integers) -> Integers:
            columns = [np.add.reduceat(table[rows, p][by_tensor], starts) for p in every]
            return np.stack(columns, axis=1)

        allowed = np.logical_and.reduceat(may[:, by_tensor], starts, axis=1).T
        layers = numbered(len(starts))
        options = tuple(Option(label=str(j)) for j in range(len(every)))
        loss = Table(layers, options, summed(self.asked.gain), "count", allowed=allowed)
        cost = Table(layers, options, summed(self.asked.usage[0]), "count", "cost")
        if not allowed.any(axis=1).all():
            return None, False
        said = outside.solve(Problem(loss, (Budget(cost, self.asked.room[0]),)))
        if not said.choice:
            return None, False
        picks = every[np.asarray(said.choice)[self.of], rows].astype(np.int64)
        return picks, said.status is Status.OPTIMAL


def _merged(tensors: Integers, groups: Sequence[int]) -> Integers:
    """(n,) the tensor of each class of tied layers."""
    if isinstance(groups, range):
        return tensors
    index = np.asarray(groups)
    of = np.zeros(int(index.max()) + 1, np.int64)
    of[index] = tensors
    if (of[index] != tensors).any():
        layer = int((of[index] != tensors).argmax())
        raise ValueError(f"layer {layer} is tied to one of another tensor; tie within a tensor")
    return of


def at_hull(asked: Knapsack, multipliers: Floats) -> Taken:
    """(J, n) the entries of least loss plus multiplier times cost."""
    usage = asked.usage[0].astype(np.float64)
    picks = [(asked.gain + m * usage).argmin(axis=1).astype(np.int32) for m in multipliers]
    return np.stack(picks)


def at_filling(asked: Knapsack, multipliers: Floats) -> Taken:
    """(J, n) the entries nearest to the water-filling of fitted curves at each level."""
    usage = asked.usage[0]
    order, sorted_keep = undominated(asked.gain, usage)
    keep = np.zeros_like(sorted_keep)
    np.put_along_axis(keep, order, sorted_keep, axis=1)
    span = np.maximum(np.where(keep, usage, 0).max(axis=1), 1).astype(np.float64)
    curves = fitted(losses(asked), usage / span[:, None], span, keep)
    if curves is None:
        return at_hull(asked, multipliers)
    peak = curves.log_amplitude + np.log(curves.steep / span) - np.log(asked.unit)
    picks = []
    for log_level in np.log(multipliers):
        wanted = span * np.clip((peak - log_level) / curves.steep, 0.0, 1.0)
        far = np.where(keep, np.abs(usage - wanted[:, None]), np.inf)
        picks.append(far.argmin(axis=1).astype(np.int32))
    return np.stack(picks)


def balanced(asked: Knapsack, of: Integers) -> Taken:
    """(J, n) SliM-LLM's allocations, one around each middle option."""
    levels = np.argsort(asked.usage[0].sum(axis=0), kind="stable")
    if not (asked.columns == np.arange(len(asked.problem.loss.options))).all() or len(levels) < 3:
        raise ValueError(
            "inside='slim' needs three options or more, all of them for every layer;"
            " use inside='hull'"
        )
    salience = asked.gain[:, levels[0]]
    picks = []
    for down, base, up in zip(levels, levels[1:], levels[2:], strict=False):
        moved = asked.gain - asked.gain[:, [base]]
        pairs = best_pairs(salience, of, moved[:, down], moved[:, up])
        step = balance(salience, of, pairs)
        picks.append(np.choose(step + 1, [down, base, up]).astype(np.int32))
    return np.stack(picks)


def balance(salience: NDArray[np.number], of: Integers, pairs: Integers) -> Integers:
    """(n,) -1 for the ``pairs[t]`` least salient classes of each tensor, 1 for the most salient.

    Of equally salient ones the first counts as less so.
    """
    order, place, size = _ranked(salience, of)
    count = pairs[of[order]]
    step = np.zeros(len(of), np.int64)
    step[order] = (place >= size - count).astype(np.int64) - (place < count)
    return step


def best_pairs(
    salience: NDArray[np.number], of: Integers, down: Integers, up: Integers
) -> Integers:
    """(T,) how many pairs lose least, of 1 to half a tensor's classes less 1; 0 where it has few.

    ``down`` and ``up`` are what each class loses more one option down, and one up.
    """
    order, place, size = _ranked(salience, of)
    starts = np.flatnonzero(place == 0)
    mirror = np.arange(len(order)) - place + size - 1 - place
    total = np.cumsum(down[order] + up[order][mirror])
    tensor = np.repeat(np.arange(len(starts)), size[starts])
    total -= np.append(0, total[starts[1:] - 1])[tensor]
    never = np.iinfo(np.int64).max
    score = np.where(place < size // 2 - 1, total, never)
    least = np.minimum.reduceat(score, starts)
    first = np.minimum.reduceat(np.where(score == least[tensor], place, never), starts)
    return np.where(least < never, first + 1, 0)


def _ranked(salience: NDArray[np.number], of: Integers) -> tuple[Integers, Integers, Integers]:
    """Classes by tensor and salience; for each its place in its tensor, and the tensor's size."""
    order = np.lexsort((salience, of))
    count = np.bincount(of)
    place = np.arange(len(of)) - (np.cumsum(count) - count)[of[order]]
    return order, place, count[of[order]]


def share(asked: Knapsack, of: Integers) -> Integers:
    """(n,) every tensor alone: its part of the room, spent along its classes' hulls."""
    usage = asked.usage[0]
    span = np.zeros(int(of.max()) + 1)
    np.add.at(span, of, usage.max(axis=1).astype(np.float64))
    part = span * (asked.room[0] / span.sum() * (1 - 1e-9))
    edges = hull(asked.gain, usage)
    tensor = of[edges.owner]
    order = np.argsort(-edges.slope, kind="stable")
    order = order[np.argsort(tensor[order].astype(_narrow(len(span))), kind="stable")]
    used = np.cumsum(edges.usage[order])
    starts = np.searchsorted(tensor[order], np.arange(len(span)))
    before = np.append(0, used)[starts]
    fits = order[used - before[tensor[order]] <= part[tensor[order]]]
    picks = edges.first.copy()
    picks[edges.owner[fits]] = edges.entry[fits]
    return picks


def _narrow(count: int) -> type[np.integer]:
    """The type for so many numbers; short ones are sorted by radix."""
    return np.uint16 if count <= 1 << 16 else np.int64
