"""Floats of few bits as they are written down: one code, one value at a time, in plain Python."""

import math
from collections.abc import Sequence


def value(code: int, exponents: int, fractions: int, special: str = "") -> float:
    """``special``: ``ieee`` keeps the last exponent, ``nan`` the last code for what is no number."""
    sign: float = -1.0 if code >> (exponents + fractions) & 1 else 1.0
    exponent = code >> fractions & (2**exponents - 1)
    fraction = code & (2**fractions - 1)
    bias = 2 ** (exponents - 1) - 1
    if special == "ieee" and exponent == 2**exponents - 1:
        return math.nan if fraction else sign * math.inf
    if special == "nan" and exponent == 2**exponents - 1 and fraction == 2**fractions - 1:
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(fraction, 1 - bias - fractions)
    return sign * math.ldexp(1 + fraction / 2**fractions, exponent - bias)


def nearest(x: float, values: Sequence[float]) -> int:
    """The code of the nearest finite value, the even one of two; of zeros that of the positive."""
    codes = [code for code, v in enumerate(values) if math.isfinite(v)]
    codes = [code for code in codes if values[code] or math.copysign(1, values[code]) > 0]
    return min(codes, key=lambda code: (abs(values[code] - x), code % 2, code))


def llm_fp4(x: float, exponents: int, fractions: int, most: float) -> float:
    """LLM-FP4's rounding to the grid whose largest value is ``most``."""
    bias = 2**exponents - math.log2(most) + math.log2(2 - 2.0**-fractions) - 1
    clipped = min(max(x, -most), most)
    place = math.floor(math.log2(abs(clipped)) + bias) if clipped else 1
    step: float = 2 ** (max(1, place) - fractions - bias)
    return round(clipped / step) * step
