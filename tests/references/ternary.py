"""BitNet b1.58's weights as they are written down."""

import statistics
from collections.abc import Sequence


def mean(row: Sequence[float]) -> tuple[float, list[int]]:
    return _by(statistics.fmean(map(abs, row)), row)


def median(row: Sequence[float]) -> tuple[float, list[int]]:
    """Of an even number the lower one in the middle; where that is zero, the mean."""
    middle = statistics.median_low([abs(v) for v in row])
    return _by(middle, row) if middle else mean(row)


def _by(scale: float, row: Sequence[float]) -> tuple[float, list[int]]:
    return scale, [min(max(round(v / scale), -1), 1) if scale else 0 for v in row]
