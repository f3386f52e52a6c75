"""Fields of 16-bit words as 16-bit floats, two words at once, in three instructions of NVIDIA GPUs.

A field put into the low bits of the significand of a power of two is that power plus the field
times a power of two; one multiply-add, exact, leaves what the field stands for. Conversions of
integers run at an eighth of the speed, or less.
"""

import struct
from dataclasses import dataclass

import torch

from mpsearch.kernels.triton_layout import Plane

_SIGNIFICANDS = {torch.float16: 10, torch.bfloat16: 7}  # bits that are stored
_TYPES = {torch.float16: "f16x2", torch.bfloat16: "bf16x2"}


@dataclass(frozen=True)
class Steps:
    """What is done to a word: shift right (left where negative), mask, join, multiply, add.

    All but the shift are bits of the 16-bit type.
    """

    shift: int
    mask: int
    one: int
    factor: int
    term: int


def steps(plane: Plane, field: int, dtype: torch.dtype) -> Steps:
    """Those of a field; neighbours share a shift, so that the compiler does it once."""
    significand = _SIGNIFICANDS[dtype]
    low = int(plane.offset != int(plane.offset))  # half a field needs one more bit below
    fit = (significand - low) // plane.bits
    at = field % fit * plane.bits + low
    power = float(1 << significand)
    return Steps(
        field // fit * fit * plane.bits - low,
        ((1 << plane.bits) - 1) << at,
        bits_of(power, dtype),
        bits_of(plane.factor * 2.0**-at, dtype),
        bits_of(-(power * 2.0**-at + plane.offset) * plane.factor, dtype),
    )


def instructions(plane: Plane, dtype: torch.dtype) -> tuple[str, ...]:
    """PTX of each field of a word: ``$0`` two values, of ``$1`` two words."""
    return tuple(_ptx(steps(plane, f, dtype), _TYPES[dtype]) for f in range(16 // plane.bits))


def _ptx(of: Steps, kind: str) -> str:
    moved = f"shr.b32 t, $1, {of.shift};" if of.shift >= 0 else f"shl.b32 t, $1, {-of.shift};"
    return (
        f"{{ .reg .b32 t, f, a; {moved}"
        f" lop3.b32 t, t, {_twice(of.mask)}, {_twice(of.one)}, 0xEA;"  # (t & mask) | one
        f" mov.b32 f, {_twice(of.factor)}; mov.b32 a, {_twice(of.term)};"
        f" fma.rn.{kind} $0, t, f, a; }}"
    )


def _twice(half: int) -> str:
    return f"0x{half << 16 | half:08x}"


def bits_of(value: float, dtype: torch.dtype) -> int:
    """The 16 bits of a number that the type holds exactly; ``ValueError`` for others."""
    if dtype is torch.float16:
        found: int = struct.unpack("<H", struct.pack("<e", value))[0]
        back = struct.unpack("<e", struct.pack("<H", found))[0]
    else:
        found = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
        back = struct.unpack("<f", struct.pack("<I", found << 16))[0]
    if back != value:
        raise ValueError(f"{dtype} does not hold {value!r} exactly; use another place in the word")
    return found
