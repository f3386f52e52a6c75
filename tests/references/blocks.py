"""Blocks with a shared scale as they are written down, one block at a time."""

import math
from collections.abc import Sequence

from tests.references import floats

ELEMENTS = {  # exponent and fraction bits, what is kept for NaN, largest exponent
    "mxfp4": (2, 1, "", 2),
    "mxfp6_e2m3": (2, 3, "", 2),
    "mxfp6_e3m2": (3, 2, "", 4),
    "mxfp8_e4m3": (4, 3, "nan", 8),
    "mxfp8_e5m2": (5, 2, "ieee", 15),
}


def elements(base: str) -> list[float]:
    exponents, fractions, special, _ = ELEMENTS[base]
    count = 1 << (1 + exponents + fractions)
    return [floats.value(code, exponents, fractions, special) for code in range(count)]


def mx(block: Sequence[float], base: str) -> list[float]:
    """The scale has the exponent of the largest value, less the largest of an element."""
    peak = max(map(abs, block))
    largest = 0 if base == "mxint8" else ELEMENTS[base][3]
    scale = 2.0 ** (math.floor(math.log2(peak)) - largest) if peak else 1.0
    if base == "mxint8":
        return [min(max(round(v / scale * 64), -127), 127) / 64 * scale for v in block]
    known = elements(base)
    return [known[floats.nearest(v / scale, known)] * scale for v in block]


def nv(blocks: Sequence[Sequence[float]]) -> list[list[float]]:
    """All blocks of a tensor: its largest value is the largest code times the largest scale."""
    peak = max(abs(v) for block in blocks for v in block)
    whole = peak / (6 * 448) if peak else 1.0
    steps, codes = [floats.value(c, 4, 3, "nan") for c in range(127)], elements("mxfp4")
    found = []
    for block in blocks:
        step = steps[floats.nearest(max(map(abs, block)) / 6 / whole, steps)] * whole
        by = [codes[floats.nearest(v / step, codes)] * step if step else 0.0 for v in block]
        found.append(by)
    return found
