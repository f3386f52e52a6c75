"""Rounding as it is written down: one weight at a time, in plain Python."""

import math
import struct
from collections.abc import Sequence


def half(value: float) -> float:
    """The nearest 16-bit float."""
    (found,) = struct.unpack("<e", struct.pack("<e", value))
    return float(found)


def symmetric(values: Sequence[float], bits: int) -> list[float]:
    top = 2 ** (bits - 1) - 1
    peak = max(abs(v) for v in values)
    scale = half(peak / top) if peak else 1.0
    return [min(max(round(v / scale), -top), top) * scale for v in values]


def asymmetric(values: Sequence[float], bits: int) -> list[float]:
    top = 2**bits - 1
    low, high = min(0.0, *values), max(0.0, *values)
    scale = half((high - low) / top) if high > low else 1.0
    zero = min(max(round(-low / scale), 0), top)
    return [(min(max(round(v / scale) + zero, 0), top) - zero) * scale for v in values]


def grouped(row: Sequence[float], group: int, bits: int) -> list[float]:
    """A row in groups of inputs; the last one may be short."""
    parts = [row[i : i + group] for i in range(0, len(row), group)]
    return [value for part in parts for value in symmetric(part, bits)]


def packed(codes: Sequence[int], bits: int) -> bytes:
    """Code ``i`` in bits ``i * bits`` and up of one long number, least significant byte first."""
    number: int = sum((code % 2**bits) << (i * bits) for i, code in enumerate(codes))
    stream: bytes = number.to_bytes(math.ceil(len(codes) * bits / 8), "little")
    return stream
