"""Signs and scales as they are written down."""

import itertools
import statistics
from collections.abc import Sequence


def xnor(row: Sequence[float]) -> list[float]:
    scale = statistics.fmean(map(abs, row))
    return [scale if v >= 0 else -scale for v in row]


def residual(row: Sequence[float], turns: int = 15) -> list[float]:
    """A mean and two signed scales, fitted in turns: signs, mean, first scale, second scale."""
    count = len(row)
    mean = sum(row) / count
    first = sum(abs(v - mean) for v in row) / count
    second = sum(abs(abs(v - mean) - first) for v in row) / count
    for _ in range(turns):
        pairs = [(v, _nearest(v, mean, first, second)) for v in row]
        mean = sum(v - first * b - second * c for v, (b, c) in pairs) / count
        first = sum(b * (v - mean - second * c) for v, (b, c) in pairs) / count
        second = sum(c * (v - mean - first * b) for v, (b, c) in pairs) / count
    signs = [_nearest(v, mean, first, second) for v in row]
    return [mean + first * b + second * c for b, c in signs]


def _nearest(value: float, mean: float, first: float, second: float) -> tuple[int, int]:
    both = [(b, c) for c, b in itertools.product((-1, 1), (-1, 1))]
    return min(both, key=lambda bc: abs(value - mean - first * bc[0] - second * bc[1]))
