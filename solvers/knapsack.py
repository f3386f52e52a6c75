"""A problem as multiple-choice knapsacks: classes of options under sum budgets, all in integers.

Ties become one class, masks and budgets on a maximum leave options out, and every number is kept as
a 64-bit integer above the least of its class: integer tables as they are, real ones in a power of
two so fine (2^-60 of the sum over layers of the largest) that what rounding takes is far below what
``optimal`` means. Integer sums are exact in any order, so every path through a solver, compiled or
not, gives the same answer, and equal is equal.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import RELATIVE_TOLERANCE, Problem, Solution, Status, infeasible
from mpsearch.tables import Floats, Mask, Numbers, Stages, Table
from mpsearch.ties import groups_of

Integers = NDArray[np.int64]
BITS = 60  # sums of gains and of usages stay below 2 to this
CHUNK = 1 << 13  # rows taken at a time, so that they stay in the cache
SHORT = 16  # options up to which columns are reduced one by one
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
        taken = np.take_along_axis(self.columns, picks[:, None], axis=1)[:, 0]
        if not isinstance(self.groups, range):
            taken = taken[np.asarray(self.groups)]
        return tuple(taken.tolist())

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
    gains = _counted(problem.loss, columns, index)
    usages = [_counted(cost, columns, index) for _, cost, _ in sums]
    room = [
        _room(cost, limit, counted) for (_, cost, limit), counted in zip(sums, usages, strict=True)
    ]
    if any(left < 0 for left in room):
        return None
    usage = [counted.counts for counted in usages]
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
        if isinstance(budget.cost, Table) and budget.cost.reduce == "max":
            mask = mask & below(budget.cost, budget.limit)
    return mask


def below(cost: Table, limit: float) -> Mask:
    """(L, K) which options alone keep a budget on the largest of a cost's numbers."""
    if cost.exact:
        most = math.floor(limit) - int(cost.fixed)
        return np.asarray(cost.values <= min(max(most, -(2**63)), 2**63 - 1))
    return np.asarray(cost.values + cost.fixed <= limit + RELATIVE_TOLERANCE * abs(limit))


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


@dataclass(frozen=True, eq=False)
class _Counted:
    """A table in counts above the least of each class.

    Attributes:
        counts: (n, K).
        unit: What one count stands for.
        low: Numbers that add up to the least total.
        slip: How many counts a total may be off.
    """

    counts: Integers
    unit: float
    low: tuple[float, ...]
    slip: int


def _counted(table: Table, columns: NDArray[np.integer], index: Integers | None) -> _Counted:
    """A table's numbers as integers, tied layers added up."""
    unit, slip, low = _unit(table, columns, index)
    lows = _sums(low)
    counts = np.zeros(columns.shape, np.int64)
    for rows, values in _chunks(table, columns, index):
        above = _above(values, low[rows], unit)
        if index is None:
            counts[rows] = above
        else:
            np.add.at(counts, index[rows], above)
    if index is not None:
        least = _reduced(np.minimum, counts)
        counts -= least[:, None]
        common = int(least.sum())
        fine = common & ((1 << 32) - 1)
        lows += [float(common - fine) * unit, float(fine) * unit]
    return _Counted(counts, unit, tuple(lows), slip)


def _chunks(
    table: Table, columns: NDArray[np.integer], index: Integers | None
) -> Iterator[tuple[slice, Numbers]]:
    """The numbers of a few layers at a time, in the columns of their class."""
    whole = columns.strides[0] == 0 and index is None
    for start in range(0, len(table.values), CHUNK):
        rows = slice(start, start + CHUNK)
        values = table.values[rows]
        if not whole:
            to = columns[rows if index is None else index[rows]]
            values = np.take_along_axis(values, to, axis=1)
        yield rows, values


def _reduced(take: np.ufunc, values: Numbers) -> Numbers:
    """(n,) the least or the largest of each row: column by column where rows are short."""
    if values.shape[1] > SHORT:
        return np.asarray(take.reduce(values, axis=1))
    found = values[:, 0].copy()
    for column in range(1, values.shape[1]):
        take(found, values[:, column], out=found)
    return found


def _sums(low: Numbers) -> list[float]:
    """A few floats that add up to the numbers, exactly."""
    if low.dtype == np.int64:
        high = int((low >> 26).sum()) << 26
        return [*_floats(high), *_floats(int((low & ((1 << 26) - 1)).sum()))]
    parts: list[float] = []
    rest = low
    while (largest := float(np.abs(rest).max())) > 0:
        # Leading bits, so few that their sum is exact (Rump, Ogita and Oishi, "Accurate
        # floating-point summation", SIAM Journal on Scientific Computing 31, 2008).
        ruler = math.ldexp(1.0, math.frexp(largest)[1] + len(rest).bit_length() + 1)
        leading = (ruler + rest) - ruler
        parts.append(float(leading.sum()))
        rest = rest - leading
    return parts


def _floats(whole: int) -> list[float]:
    """An integer as floats that add up to it."""
    parts: list[float] = []
    while whole:
        parts.append(float(whole))
        whole -= int(parts[-1])
    return parts


def _unit(
    table: Table, columns: NDArray[np.integer], index: Integers | None
) -> tuple[float, int, Numbers]:
    """What to count a table in, by how many counts a total may be off, and the least of layers."""
    size = 0.0
    low = np.empty(len(table.values), table.values.dtype)
    for rows, values in _chunks(table, columns, index):
        low[rows] = _reduced(np.minimum, values)
        high = _reduced(np.maximum, values).astype(np.float64)
        size += float((high - low[rows].astype(np.float64)).sum())
    if table.values.dtype == np.int64 and size < 2.0**BITS:
        return 1.0, 0, low
    exponent = max(math.frexp(size)[1] - BITS, -1074) if size else -1074
    if table.values.dtype == np.int64:
        return math.ldexp(1.0, exponent), len(table.layers), low
    exact = True
    with np.errstate(over="ignore", under="ignore"):
        for _, values in _chunks(table, columns, index):
            scaled = np.ldexp(values, -exponent)
            exact = bool((np.floor(scaled) == scaled).all())
            if not exact:
                break
    return math.ldexp(1.0, exponent), 0 if exact else len(table.layers), low


def _above(values: Numbers, low: Numbers, unit: float) -> Integers:
    """How many counts each number lies above the least of its row, rounded to at most one off."""
    under = np.repeat(low, values.shape[1]).reshape(values.shape)  # quicker than broadcasting
    if unit == 1.0 and values.dtype == np.int64:
        return np.asarray(values - under)
    shift = -math.frexp(unit)[1] + 1
    if values.dtype == np.int64:
        apart = values.astype(np.uint64) - under.astype(np.uint64)
        return np.asarray(apart >> np.uint64(max(-shift, 0))).astype(np.int64)
    difference = values - under
    part = values - difference
    lost = (values - (difference + part)) + (part - under)  # Knuth's two-sum: what rounding took
    with np.errstate(under="ignore"):
        main = _scaled(difference, shift)
        return np.asarray(main + _scaled(lost, shift)) if lost.any() else main


def _scaled(numbers: Floats, shift: int) -> Integers:
    """Numbers times a power of two, as integers."""
    if abs(shift) > 1000:
        return np.asarray(np.rint(np.ldexp(numbers, shift)).astype(np.int64))
    return np.asarray(np.rint(numbers * math.ldexp(1.0, shift)).astype(np.int64))


def _room(cost: Table, limit: float, counted: _Counted) -> int:
    """The counts a budget leaves; enough for rounding that no feasible choice is shut out."""
    if limit == math.inf:
        return 1 << 62
    if cost.exact:
        whole = math.floor(limit) - int(cost.fixed) - sum(int(part) for part in counted.low)
        return min(whole // int(counted.unit) + counted.slip, 1 << 62)
    tolerance = (RELATIVE_TOLERANCE + 4 * ULP) * abs(limit)
    left = math.fsum((limit, tolerance, -float(cost.fixed), *(-part for part in counted.low)))
    counts = left / counted.unit
    if not abs(counts) < 2.0**62:
        return 1 << 62 if counts > 0 else -1
    return math.floor(counts) + counted.slip
