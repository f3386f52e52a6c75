"""A problem as multiple-choice knapsacks: classes of options under sum budgets, all in integers.

Ties become one class, masks and budgets on a maximum leave options out, and every number is kept as
a 64-bit integer above the least of its class: integer tables as they are, real ones in a power of
two so fine (2^-60 of the sum over layers of the largest) that what rounding takes is far below what
``optimal`` means. Integer sums are exact in any order, so every path through a solver, compiled or
not, gives the same answer, and equal is equal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import RELATIVE_TOLERANCE, Problem, Solution, Status, infeasible
from mpsearch.solvers.counts import Counted, counted
from mpsearch.tables import Mask, Stages, Table
from mpsearch.ties import groups_of

Integers = NDArray[np.int64]
ULP = 2.0**-52


@dataclass(frozen=True, eq=False)
class Knapsack:
    """n classes of K options under R sum budgets: least total gain, no total usage above its room.

    A class with fewer than K options repeats its last one, so that no entry need be masked; of
    equal entries the first counts.

    Attributes:
        problem: What was asked.
        groups: The class of each layer.
        columns: (n, K) the option of each entry.
        gain: (n, K) loss above the least of the class, in ``unit``.
        usage: (R, n, K) each budgeted cost above the least of its class. Without a budget one row
            of the first cost, to tell equal losses apart.
        room: What each row's total may be; never below zero, at most ``2**62``.
        unit: The loss that one count of gain stands for, a power of two.
        base: What every choice loses at least.
        slip: How many counts a sum of gains may be from the loss it stands for.
        budgets: Which budget each row is of; -1 for a row that only tells equal losses apart.
    """

    problem: Problem
    groups: Sequence[int]
    columns: NDArray[np.integer]
    gain: Integers
    usage: Integers
    room: tuple[int, ...]
    unit: float
    base: tuple[float, ...]
    slip: int
    budgets: tuple[int, ...]

    def choice(self, picks: Integers) -> tuple[int, ...]:
        """An option for every layer, from (n,) the entry of each class."""
        return tuple(self.options(picks).tolist())

    def options(self, picks: Integers) -> Integers:
        """(L,) the same, as an array."""
        taken = np.take_along_axis(self.columns, picks[:, None], axis=1)[:, 0]
        if not isinstance(self.groups, range):
            taken = taken[np.asarray(self.groups)]
        return np.asarray(taken, np.int64)

    def total(self, picks: Integers) -> int:
        """The sum of gains of a choice."""
        return int(np.take_along_axis(self.gain, picks[:, None], axis=1).sum())

    def used(self, picks: Integers) -> tuple[int, ...]:
        """The total usage of each row."""
        taken = np.take_along_axis(self.usage, picks[None, :, None], axis=2)
        return tuple(int(row) for row in taken[:, :, 0].sum(axis=1))

    def fits(self, picks: Integers) -> bool:
        """Whether a choice keeps every room (and so, but for rounding, every budget)."""
        return all(used <= room for used, room in zip(self.used(picks), self.room, strict=True))

    def bound(self, gain: float) -> float:
        """The bound on the loss that a proven bound on the sum of gains (in counts) is."""
        if not math.isfinite(gain):
            return gain
        counts = math.floor(gain) - self.slip
        fine = counts & ((1 << 32) - 1)  # in two parts, as a float holds 53 bits
        parts = (float(counts - fine) * self.unit, float(fine) * self.unit)
        return math.fsum((*self.base, *parts))

    def solution(self, picks: Integers | None, gain: float, solver: str) -> Solution:
        """The answer, from an entry of each class and a proven bound on the sum of gains.

        Without an entry it is infeasible where the bound is infinite, else unknown.
        """
        if picks is None:
            if gain == math.inf:
                return infeasible(solver)
            return Solution((), math.inf, Status.UNKNOWN, self.bound(gain), solver)
        choice = self.choice(picks)
        loss = self.problem.total(choice)
        bound = min(self.bound(gain), loss)
        return Solution(choice, loss, self.problem.status(loss, bound), bound, solver)


def knapsack(problem: Problem, solver: str, *, rows: int | None = 1) -> Knapsack | None:
    """The knapsacks of a problem; ``None`` where a class or a budget alone leaves no answer.

    ``ValueError`` where the problem has what ``solver`` does not take: interactions, side
    constraints, stages, or more than ``rows`` sum budgets (``None``: any number of them).
    """
    _refuse(problem, solver, rows)
    groups = groups_of(len(problem.loss.layers), problem.ties)
    index = None if isinstance(groups, range) else np.asarray(groups)
    mask = _merged_mask(_allowed(problem), index)
    if not mask.any(axis=1).all():
        return None
    columns = _columns(mask)
    sums = [
        (place, budget.cost, budget.limit)
        for place, budget in enumerate(problem.budgets)
        if isinstance(budget.cost, Table) and budget.cost.reduce == "sum"
    ]
    if not sums:
        first = [c for c in problem.costs[:1] if isinstance(c, Table) and c.reduce == "sum"]
        sums = [(-1, cost, math.inf) for cost in first]
    gains = counted(problem.loss, columns, index)
    usages = [counted(cost, columns, index) for _, cost, _ in sums]
    room = [_room(cost, limit, used) for (_, cost, limit), used in zip(sums, usages, strict=True)]
    if any(left < 0 for left in room):
        return None
    usage = [used.counts for used in usages]
    return Knapsack(
        problem,
        groups,
        columns,
        gains.counts,
        usage[0][None] if len(usage) == 1 else np.array(usage).reshape(-1, *columns.shape),
        tuple(room),
        gains.unit,
        (float(problem.loss.fixed), *gains.low),
        gains.slip,
        tuple(place for place, _, _ in sums),
    )


def _refuse(problem: Problem, solver: str, rows: int | None) -> None:
    sums = [
        b for b in problem.budgets if not (isinstance(b.cost, Table) and b.cost.reduce != "sum")
    ]
    if problem.interactions:
        raise ValueError(f"{solver} takes no interactions; use the solver quadratic")
    if problem.constraints or any(isinstance(b.cost, Stages) for b in problem.budgets):
        what = "side constraints" if problem.constraints else "stages"
        raise ValueError(f"{solver} takes no {what}; use the solver milp")
    if rows is not None and len(sums) > rows:
        raise ValueError(
            f"{solver} takes {rows} sum budget, got {len(sums)}: "
            + ", ".join(b.cost.name for b in sums)
            + "; use the solver lagrange or milp"
        )


def _allowed(problem: Problem) -> Mask:
    """(L, K) what tables and budgets on a maximum allow."""
    mask: Mask = problem.mask
    for budget in problem.budgets:
        if budget.on_maximum:
            mask = mask & budget.mask
    return mask


def _merged_mask(mask: Mask, index: Integers | None) -> Mask:
    if index is None:
        return mask
    merged = np.ones((int(index.max()) + 1, mask.shape[1]), bool)
    np.logical_and.at(merged, index, mask)
    return merged


def _columns(mask: Mask) -> NDArray[np.integer]:
    """(n, K) the allowed options of each class in order, the last one repeated."""
    rows, width = mask.shape
    kind = np.int16 if width < 1 << 15 else np.int64
    if mask.all():
        return np.broadcast_to(np.arange(width, dtype=kind), mask.shape)
    count = mask.sum(axis=1)
    order = np.argsort(~mask, axis=1, kind="stable").astype(kind)[:, : int(count.max())]
    last = order[np.arange(rows), count - 1]
    return np.where(np.arange(order.shape[1]) < count[:, None], order, last[:, None])


def _room(cost: Table, limit: float, used: Counted) -> int:
    """The counts a budget leaves; enough for rounding that no feasible choice is shut out."""
    if limit == math.inf:
        return 1 << 62
    if cost.exact:
        whole = math.floor(limit) - int(cost.fixed) - sum(int(part) for part in used.low)
        return min(whole // int(used.unit) + used.slip, 1 << 62)
    tolerance = (RELATIVE_TOLERANCE + 4 * ULP) * abs(limit)
    parts = (limit, tolerance, -cost.fixed, *(-part for part in used.low))
    left = sum(map(Fraction, parts)) / Fraction(used.unit)  # a float may lose a few counts
    return min(math.floor(left) + used.slip, 1 << 62)
