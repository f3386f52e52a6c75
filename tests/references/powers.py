"""Powers as they are written down, one value at a time."""

import math
from collections.abc import Sequence


def of_two(bits: int) -> list[float]:
    """Zero and signed powers of two from 1 down, as many as there are codes."""
    above = [2.0**-k for k in range(2 ** (bits - 1) - 1)]
    return sorted([0.0, *above, *(-v for v in above)])


def nearest(x: float, values: Sequence[float]) -> float:
    return min(values, key=lambda v: abs(v - x))


def exponent(x: float, bits: int, power: float, peak: float) -> float:
    """PowerQuant and NUPES: uniform rounding of the sign times the magnitude to a power."""
    top = 2 ** (bits - 1) - 1
    code = min(round(abs(x / peak) ** power * top), top)
    return math.copysign((code / top) ** (1 / power) * peak, x) if code else 0.0


def log(x: float, bits: int, q: int, peak: float) -> float:
    """AdaLog: uniform rounding of the logarithm to base 2 ** (q / 37); the last code is zero."""
    if x <= 0:
        return 0.0
    code = max(0, round(-math.log2(x / peak) / (q / 37)))
    return peak * 2.0 ** (-code * q / 37) if code < 2**bits - 1 else 0.0


def root(x: float, bits: int, peak: float) -> float:
    """RepQ-ViT: log-sqrt2 codes read by a log2 quantizer whose scale depends on their parity.

    Its own code has zero beside the ``2 ** bits`` powers; here zero is the last code.
    """
    if x <= 0:
        return 0.0
    code = max(0, round(-2 * math.log2(x / peak)))
    scale = peak * math.sqrt(2) if code % 2 else peak
    return scale * 2.0 ** math.floor(-code / 2) if code < 2**bits - 1 else 0.0
