"""RepQ-ViT's scale reparameterization as it is written down, one number at a time.

``x`` is a list of rows, each with a number for every channel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Grids:
    """A step and a whole zero point for each channel; codes run from 0 to ``top``."""

    steps: Sequence[float]
    zeros: Sequence[int]
    top: int

    def codes(self, x: Rows) -> list[list[int]]:
        return [
            [
                min(max(round(v / s) + z, 0), self.top)
                for v, s, z in zip(row, self.steps, self.zeros, strict=True)
            ]
            for row in x
        ]

    def values(self, x: Rows) -> list[list[float]]:
        return [
            [(code - z) * s for code, s, z in zip(row, self.steps, self.zeros, strict=True)]
            for row in self.codes(x)
        ]


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two values it lies between, in a straight line."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ranges(x: Rows, percent: float = 100.0) -> list[tuple[float, float]]:
    """The percentiles that clip each channel; its extremes where nothing is clipped."""
    columns = list(zip(*x, strict=True))
    return [(percentile(c, 100 - percent), percentile(c, percent)) for c in columns]


def by_channel(x: Rows, bits: int, percent: float = 100.0) -> Grids:
    """Asymmetric quantization of each channel on its own."""
    top = 2**bits - 1
    steps = [(high - low) / top for low, high in ranges(x, percent)]
    lows = [low for low, _ in ranges(x, percent)]
    return Grids(steps, [round(-low / s) for low, s in zip(lows, steps, strict=True)], top)


@dataclass(frozen=True)
class Reparameterized:
    """A layer norm's affine parameters and the layer after it, and the one grid between them."""

    gain: Sequence[float]
    shift: Sequence[float]
    weight: Rows
    bias: Sequence[float]
    step: float
    zero: int


def reparameterized(
    gain: Sequence[float],
    shift: Sequence[float],
    weight: Rows,
    bias: Sequence[float],
    grids: Grids,
) -> Reparameterized:
    """``gain / r1``, ``(shift + s r2) / r1``, ``r1 W`` and ``b - W (s r2)`` (its equations 9-11).

    The mean zero point is rounded: codes are whole.
    """
    count = len(grids.steps)
    step = sum(grids.steps) / count
    zero = round(sum(grids.zeros) / count)
    r1 = [s / step for s in grids.steps]
    moved = [s * (z - zero) for s, z in zip(grids.steps, grids.zeros, strict=True)]
    return Reparameterized(
        [g / r for g, r in zip(gain, r1, strict=True)],
        [(b + m) / r for b, m, r in zip(shift, moved, r1, strict=True)],
        [[w * r for w, r in zip(row, r1, strict=True)] for row in weight],
        [b - dot(row, moved) for b, row in zip(bias, weight, strict=True)],
        step,
        zero,
    )


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def linear(x: Rows, weight: Rows, bias: Sequence[float]) -> list[list[float]]:
    return [[dot(row, w) + b for w, b in zip(weight, bias, strict=True)] for row in x]


def about_the_middle(x: Rows, bits: int, zero: int, percent: float = 100.0) -> list[list[float]]:
    """Quantization of each channel with the code ``zero`` in the middle of its range."""
    top = 2**bits - 1
    found = []
    for row in x:
        values = []
        for v, (low, high) in zip(row, ranges(x, percent), strict=True):
            middle, step = (low + high) / 2, (high - low) / top
            code = min(max(round((v - middle) / step) + zero, 0), top)
            values.append(middle + (code - zero) * step)
        found.append(values)
    return found
