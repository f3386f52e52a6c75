"""Families of number formats: what a name stands for, before suffixes.

=========================  =======================================================================
``int1`` .. ``int8``       integers; one bit is the sign
``fp8_e4m3``, ``fpN_eXmY`` floats of 1 to 5 exponent and 0 to 7 fraction bits. As OCP has them
                           (``fp8_e4m3`` keeps one NaN, ``fp8_e5m2`` infinities), otherwise every
                           code is a number; ``i`` at the end: infinities and NaN as IEEE has them,
                           ``f``: every code is a number
``fp4_exmx``, 6, 8         floats whose split in exponent and fraction is searched for each tensor
``mxfp4``, ``mxfp6_e2m3``  OCP's blocks of 32 with a power of two as scale; ``mxfp6_e3m2``,
                           ``mxfp8_e4m3``, ``mxfp8_e5m2``, ``mxint8`` too
``nvfp4``                  blocks of 16, scales in ``fp8_e4m3``, one 32-bit scale for the tensor
``nf4``                    quantiles of the normal distribution, in groups of 64
``ternary``, ``ternarym``  -1, 0, 1 times the mean, or the median, of the magnitudes
``binary``, ``binary2``    signs times the mean magnitude; with the signs of what is left
``pot2`` .. ``pot8``       zero and signed powers of two
``power2`` .. ``power8``   integers to a power that is searched for each tensor
``log2`` .. ``log8``       zero and powers of a base searched for each tensor, for inputs >= 0
``logr2`` .. ``logr7``     zero and powers of the root of two: a shift, and one of two scales
``fx8.4``                  fixed point: 8 bits, 4 of fraction; nearest even and saturating, or as
                           in ``fx8.4_trn_wrap`` with a rounding and an overflow mode of HLS
``pb10``                   10 % of the weights at 8 bits, the others' signs
``sc20``                   20 % of the input channels at 4 bits, the others' signs
=========================  =======================================================================

Suffixes: ``g128`` one scale for 128 inputs, ``t`` one for the tensor, ``a`` asymmetric, ``s``
symmetric, and last ``o1`` for 1 % of the weights kept in 16 bits or ``r32`` for a branch of rank
32 in 16 bits beside the codes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Kind = Literal[
    "int", "float", "block", "lookup", "ternary", "binary", "power", "exponent", "log", "fixed",
    "partial", "salient", "mixed", "full",
]  # fmt: skip
ROUNDING = ("conv", "rnd", "rndz", "rndm", "rndi", "trn", "trnz")
OVERFLOW = ("sat", "satz", "sats", "wrap")


@dataclass(frozen=True)
class Family:
    """What a bare name stands for, before suffixes.

    Attributes:
        bits: Of one code.
        group: Inputs that share a scale, where no suffix says so.
        scale_bits: Stored once for each scale.
        tensor_bits: Stored once for each tensor.
    """

    kind: Kind
    bits: int
    group: int | None = None
    scale_bits: int = 16
    tensor_bits: int = 0

    @property
    def suffixed(self) -> bool:
        """Whether names go on with what shares a scale and whether it is symmetric."""
        return self.kind not in ("block", "fixed", "full", "log", "partial", "salient")

    @property
    def mixable(self) -> bool:
        """Whether names go on with outliers or a branch of low rank."""
        return self.suffixed or self.kind == "block"


FAMILIES: dict[str, Family] = {
    **{f"int{b}": Family("int", b) for b in range(1, 9)},
    "fp8_e4m3": Family("float", 8),
    "fp8_e5m2": Family("float", 8),
    "fp6_e3m2": Family("float", 6),
    "fp6_e2m3": Family("float", 6),
    "fp4_e2m1": Family("float", 4),
    **{f"fp{b}_exmx": Family("float", b, tensor_bits=8) for b in (4, 6, 8)},
    "mxfp4": Family("block", 4, group=32, scale_bits=8),
    "mxfp6_e2m3": Family("block", 6, group=32, scale_bits=8),
    "mxfp6_e3m2": Family("block", 6, group=32, scale_bits=8),
    "mxfp8_e4m3": Family("block", 8, group=32, scale_bits=8),
    "mxfp8_e5m2": Family("block", 8, group=32, scale_bits=8),
    "mxint8": Family("block", 8, group=32, scale_bits=8),
    "nvfp4": Family("block", 4, group=16, scale_bits=8, tensor_bits=32),
    "nf4": Family("lookup", 4, group=64),
    "ternary": Family("ternary", 2),
    "ternarym": Family("ternary", 2),
    "binary": Family("binary", 1),
    "binary2": Family("binary", 2, scale_bits=48),
    **{f"pot{b}": Family("power", b) for b in range(2, 9)},
    **{f"power{b}": Family("exponent", b, tensor_bits=8) for b in range(2, 9)},
    **{f"log{b}": Family("log", b, tensor_bits=8) for b in range(2, 9)},
    **{f"logr{b}": Family("log", b) for b in range(2, 8)},
    "fp16": Family("full", 16, scale_bits=0),
    "bf16": Family("full", 16, scale_bits=0),
    "fp32": Family("full", 32, scale_bits=0),
}
PERCENT = r"(?:0|[1-9]\d?)(?:\.\d?[1-9])?"  # above 0, below 100, no zeros at the end
FLOAT = re.compile(r"fp(\d{1,2})_e([1-5])m([0-7])([if]?)", re.ASCII)
_FIXED = re.compile(
    r"fx(?P<bits>[1-9]\d?)\.(?P<fraction>0|[1-9]\d?)"
    rf"(?:_(?P<rounding>{'|'.join(ROUNDING)})_(?P<overflow>{'|'.join(OVERFLOW)}))?",
    re.ASCII,
)
_PART = re.compile(rf"(?P<kind>pb|sc)(?P<percent>{PERCENT})", re.ASCII)
_PARTS: dict[str, Kind] = {"pb": "partial", "sc": "salient"}


def family(base: str) -> Family | None:
    """What a name without suffixes stands for; ``None`` where there is no such format.

    >>> family("fp5_e3m1"), family("fp5_e3m2")
    (Family(kind='float', bits=5, group=None, scale_bits=16, tensor_bits=0), None)
    """
    if base in FAMILIES:
        return FAMILIES[base]
    if match := FLOAT.fullmatch(base):
        bits, exponent, fraction = (int(part) for part in match.groups()[:3])
        empty = exponent + fraction == 1 and match[4] == "i"  # nothing finite but zero
        return Family("float", bits) if bits == 1 + exponent + fraction and not empty else None
    if _FIXED.fullmatch(base):
        bits, fraction, _, _ = fixed(base)
        return Family("fixed", bits, scale_bits=0) if fraction <= bits <= 32 else None
    match = _PART.fullmatch(base)
    return Family(_PARTS[match["kind"]], 1) if match and float(match["percent"]) > 0 else None


def fixed(base: str) -> tuple[int, int, str, str]:
    """Bits, bits of fraction, rounding and overflow of a fixed-point format.

    >>> fixed("fx8.4")
    (8, 4, 'conv', 'sat')
    """
    match = _FIXED.fullmatch(base)
    if match is None:
        raise ValueError(f"{base!r} is no fixed point; write it as in fx8.4 or fx8.4_rnd_sat")
    modes = match["rounding"] or ROUNDING[0], match["overflow"] or OVERFLOW[0]
    return int(match["bits"]), int(match["fraction"]), *modes


def kept_of(count: int, percent: Fraction) -> int:
    """How many of so many have more bits: the share, rounded up.

    >>> kept_of(50, Fraction(1))
    1
    """
    return math.ceil(count * percent / 100)


def parts(
    kind: Kind, share: Fraction, shape: Sequence[int], scales: int
) -> dict[str, tuple[int, int]]:
    """The streams of a weight of which a part has more bits."""
    rows, count = shape[0] if shape else 1, math.prod(shape)
    if kind == "partial":
        kept = kept_of(count, share)
        mask, wide, signs = count, 8, {"scale": (2 * scales, 16)}
    else:
        mask, wide = (shape[1] if len(shape) > 1 else 1), 4
        channels, each = kept_of(mask, share), count // mask if mask else 0
        kept = channels * each
        others = (mask - channels) * (each // rows if rows else 0)
        signs = {"scale": (rows, 16), "column_scale": (others, 16)}
    return {
        "codes": (count - kept, 1),
        **signs,
        "mask": (mask, 1),
        "salient": (kept, wide),
        "salient_scale": (rows, 16),
    }
