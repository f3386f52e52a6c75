"""Tables as integers: each number as so many counts above the least of its row.

Whole numbers stay as they are, real ones are counted in a power of two; what rounding takes is said
in counts.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.tables import Floats, Numbers, Table

Integers = NDArray[np.int64]
BITS = 60  # sums of counts stay below 2 to this
CHUNK = 1 << 13  # rows taken at a time, so that they stay in the cache
SHORT = 16  # options up to which columns are reduced one by one


@dataclass(frozen=True, eq=False)
class Counted:
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


def counted(table: Table, columns: NDArray[np.integer], index: Integers | None) -> Counted:
    """A table's numbers as integers, tied layers added up."""
    unit, slip, low = _unit(table, columns, index)
    lows = sums(low)
    counts = np.zeros(columns.shape, np.int64)
    for rows, values in _chunks(table, columns, index):
        above = _above(values, low[rows], unit)
        if index is None:
            counts[rows] = above
        else:
            np.add.at(counts, index[rows], above)
    if index is not None:
        least = reduced(np.minimum, counts)
        counts -= least[:, None]
        common = int(least.sum())
        fine = common & ((1 << 32) - 1)
        lows += [float(common - fine) * unit, float(fine) * unit]
    return Counted(counts, unit, tuple(lows), slip)


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


def reduced(take: np.ufunc, values: Numbers) -> Numbers:
    """(n,) the least or the largest of each row: column by column where rows are short."""
    if values.shape[1] > SHORT:
        return np.asarray(take.reduce(values, axis=1))
    found = values[:, 0].copy()
    for column in range(1, values.shape[1]):
        take(found, values[:, column], out=found)
    return found


def sums(low: Numbers) -> list[float]:
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
        low[rows] = reduced(np.minimum, values)
        high = reduced(np.maximum, values).astype(np.float64)
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
