"""Weights as integers: one scale for each tensor, output channel or group of inputs.

A weight ``w`` is stored as ``q = clamp(round(w / scale) + zero)``, read as ``(q - zero) * scale``.
Symmetric codes run from -(2^(b-1) - 1) to 2^(b-1) - 1, so -1, 0, 1 at 2 bits: the one more code on
the negative side lowers the squared error, but moves the mean, and ResNet-20 at 2 and 3 bits is
the worse for it. Scales are rounded to 16 bits before the codes are taken.
"""

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.clipping import clip
from mpsearch.quant.codes import Codes, grouped, half_of, matrix, sixteen, ungrouped
from mpsearch.quant.recipe import Ranges

__all__ = ["Codes", "decode", "encode", "round_trip", "supported"]

_FULL = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_CHUNK = 1 << 18  # weights searched at once: what the arithmetic touches stays in the cache


def supported(form: Format) -> Format:
    """The format as a weight's, if it is one of these; ``ValueError`` if not."""
    this = form.as_weight()
    if this.kind == "full" or (this.kind == "int" and (this.bits > 1 or not this.symmetric)):
        return this
    raise ValueError(
        f"{str(form)!r} is no integer of 2 to 8 bits, nor 16 or 32 bits; encode it with"
        " mpsearch.quant.encode"
    )


def encode(weight: Tensor, form: Format, ranges: Ranges = "mse") -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float32.

    Raises:
        ValueError: A format of another family, or a weight that is empty or not finite.
    """
    this = supported(form)
    values, shape = matrix(weight)
    if this.kind == "full":
        limit = torch.finfo(_FULL[this.base]).max
        return Codes(values.clamp(-limit, limit).to(_FULL[this.base]), None, None, this, shape)
    rows = grouped(values, this)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    stored = half_of(_spread(rows, this)[1] / _levels(this))
    chunks = [_scale(part, this, ranges, stored) for part in rows.split(step)]
    scale, zero = (torch.cat(part) for part in zip(*chunks, strict=True))
    kind = torch.int8 if this.symmetric else torch.uint8
    codes = ungrouped(_round(rows, scale, zero, this).to(kind), this, tuple(values.shape))
    zeros = None if this.symmetric else zero.to(torch.uint8)
    return Codes(codes, scale.to(stored), zeros, this, shape)


def decode(codes: Codes) -> Tensor:
    """The weight that integers and scales stand for, or values of 16 bits and more."""
    if codes.scale is None:
        return codes.codes.float().reshape(codes.shape)
    rows = grouped(codes.codes, codes.format)
    zero = 0 if codes.zero is None else codes.zero.float()[:, None]
    return ungrouped((rows.float() - zero) * codes.steps[:, None], codes.format, codes.shape)


def round_trip(weight: Tensor, form: Format, ranges: Ranges = "mse") -> Tensor:
    """The nearest weight the format can hold, in the weight's own type; outputs first."""
    return encode(weight, form, ranges).dequantize().to(weight.dtype)


def _levels(form: Format) -> int:
    """Steps from the least value covered, or from zero where symmetric, to the largest."""
    return (1 << (form.bits - 1)) - 1 if form.symmetric else (1 << form.bits) - 1


def _spread(rows: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """(rows,) the least value covered, and how far from it, or from zero, the largest is."""
    if form.symmetric:
        peak = rows.abs().amax(1)
        return -peak, peak
    low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)
    return low, high - low


def _scale(
    rows: Tensor, form: Format, ranges: Ranges, stored: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(rows,) scales as they will be stored, and zero points, both in float32."""
    low, spread = _spread(rows, form)
    levels = _levels(form)

    def grid(shares: Tensor) -> tuple[Tensor, Tensor]:
        if form.symmetric:
            return sixteen(spread * shares[0] / levels, stored), torch.zeros_like(low)
        bottom, top = low * shares[0], (low + spread) * shares[1]
        scale = sixteen((top - bottom) / levels, stored)
        return scale, (-bottom / scale).round_().clamp_(0, levels)

    def error(shares: Tensor) -> Tensor:
        scale, zero = grid(shares)
        codes = _round(rows, scale, zero, form)
        return codes.sub_(zero[:, None]).mul_(scale[:, None]).sub_(rows).square_().sum(1)

    ends = 1 if form.symmetric else 2
    if ranges == "minmax":
        return grid(torch.ones(ends, len(rows), device=rows.device))
    return grid(clip(error, ends, len(rows), rows))


def _round(rows: Tensor, scale: Tensor, zero: Tensor, form: Format) -> Tensor:
    least = -_levels(form) if form.symmetric else 0
    codes = (rows / scale[:, None]).round_().add_(zero[:, None])
    return codes.clamp_(least, _levels(form))
