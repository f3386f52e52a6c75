"""Fixed point as high-level synthesis has it: ``fx8.4`` holds multiples of 1/16 in 8 bits.

Rounding: ``conv`` to nearest, ties to even; ``rnd``, ``rndz``, ``rndm``, ``rndi`` ties up, to zero,
down and away from zero; ``trn`` down, ``trnz`` to zero. Overflow: ``sat`` to the ends, ``sats`` to
ends of equal size, ``satz`` to zero, ``wrap`` drops the upper bits. Without modes in its name a
format is ``conv`` and ``sat``; HLS's own defaults are ``trn`` and ``wrap``.
"""

import torch
from torch import Tensor

from mpsearch.families import fixed
from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, matrix


def encode(weight: Tensor, form: Format) -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float64."""
    this = form.as_weight()
    values, shape = matrix(weight)
    kind = next(t for t in (torch.int8, torch.int16, torch.int32) if this.bits <= t.itemsize * 8)
    whole = integers(weight.detach(), this.base).reshape(values.shape)
    return Codes(whole.to(kind), None, None, this, shape)


def decode(codes: Codes) -> Tensor:
    """The weight that codes stand for; of more than 24 bits rounded to float32."""
    fraction = fixed(codes.format.base)[1]
    return (codes.codes.double() * 2.0**-fraction).float().reshape(codes.shape)


def integers(x: Tensor, base: str) -> Tensor:
    """(like x) int64 codes of values."""
    bits, fraction, rounding, overflow = fixed(base)
    top = (1 << (bits - 1)) - 1
    limit = 2.0**62  # beyond it the bits that a wrap would keep are all zero
    whole = _rounded(x.double() * 2.0**fraction, rounding)
    if overflow == "wrap":
        kept = torch.where(whole.abs() < limit, whole, torch.fmod(whole, 2.0**32)).long()
        return torch.remainder(kept + top + 1, 1 << bits) - top - 1
    least = -top if overflow == "sats" else -top - 1
    if overflow == "satz":
        return torch.where((whole < least) | (whole > top), 0.0, whole).long()
    return whole.clamp(least, top).long()


def _rounded(x: Tensor, rounding: str) -> Tensor:
    if rounding == "conv":
        return x.round()
    if rounding in ("trn", "trnz"):
        return x.floor() if rounding == "trn" else x.trunc()
    down = x.floor()
    over = x - down
    up = {"rnd": over >= 0, "rndm": over < 0, "rndz": x < 0, "rndi": x > 0}[rounding]
    rounded: Tensor = down + ((over > 0.5) | ((over == 0.5) & up))
    return rounded
