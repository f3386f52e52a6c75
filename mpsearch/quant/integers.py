"""Weights as integers: one scale for each tensor, output channel or group of inputs.

A weight ``w`` is stored as ``q = clamp(round(w / scale) + zero)``, read as ``(q - zero) * scale``.
Symmetric codes run from -(2^(b-1) - 1) to 2^(b-1) - 1, so -1, 0, 1 at 2 bits: the one more code on
the negative side lowers the squared error, but moves the mean, and ResNet-20 at 2 and 3 bits is
the worse for it. Scales are rounded to 16 bits before the codes are taken.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.clipping import clip
from mpsearch.quant.recipe import Ranges

_FULL = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_SUPPORTED = "int2 to int8 (with suffixes such as g128, t, a, s), fp16, bf16, fp32"
_CHUNK = 1 << 18  # weights searched at once: what the arithmetic touches stays in the cache


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight as it is stored.

    Attributes:
        codes: (out, in * kernel) int8 where symmetric, else uint8; for 16 bits and more the values.
        scale: (scales,) fp16, or bf16 where a scale is outside fp16's normal range.
        zero: (scales,) uint8, or ``None`` where symmetric.
        format: With role and defaults resolved.
        shape: Of the weight, outputs first.
    """

    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    format: Format
    shape: tuple[int, ...]

    def dequantize(self) -> Tensor:
        """The weight the codes stand for, in float32, in its shape."""
        if self.scale is None:
            return self.codes.float().reshape(self.shape)
        rows = _rows(self.codes, self.format)
        zero = 0 if self.zero is None else self.zero.float()[:, None]
        values = (rows.float() - zero) * self.scale.float()[:, None]
        return _unrows(values, self.format, self.shape)


def supported(form: Format) -> Format:
    """The format as a weight's, if it can be rounded to here; ``ValueError`` if not."""
    this = form.as_weight()
    if this.kind == "full" or (this.kind == "int" and 2 <= this.bits <= 8):
        return this
    raise ValueError(f"cannot quantize to {str(form)!r} yet; supported are {_SUPPORTED}")


def encode(weight: Tensor, form: Format, ranges: Ranges = "mse") -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float32.

    Raises:
        ValueError: A format that is not supported, or a weight that is not finite.
    """
    this = supported(form)
    if not torch.isfinite(weight).all():
        raise ValueError("it holds NaN or infinity; quantize a network whose weights are finite")
    shape = tuple(weight.shape)
    values = weight.detach().float().reshape(shape[0] if shape else 1, -1)
    if this.kind == "full":
        return Codes(values.to(_FULL[this.base]), None, None, this, shape)
    rows = _rows(values, this)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    stored = _stored(_spread(rows, this)[1] / _levels(this))
    chunks = [_scale(part, this, ranges, stored) for part in rows.split(step)]
    scale, zero = (torch.cat(part) for part in zip(*chunks, strict=True))
    kind = torch.int8 if this.symmetric else torch.uint8
    codes = _unrows(_round(rows, scale, zero, this).to(kind), this, tuple(values.shape))
    zeros = None if this.symmetric else zero.to(torch.uint8)
    return Codes(codes, scale.to(stored), zeros, this, shape)


def round_trip(weight: Tensor, form: Format, ranges: Ranges = "mse") -> Tensor:
    """The nearest weight the format can hold, in the weight's own type; outputs first."""
    return encode(weight, form, ranges).dequantize().to(weight.dtype)


def _rows(values: Tensor, form: Format) -> Tensor:
    """(scales, values that share one): what lies beyond a short last group is zero."""
    if form.per == "tensor":
        return values.reshape(1, -1)
    if form.per == "channel":
        return values
    group = form.group or 1
    short = -values.shape[1] % group
    return torch.nn.functional.pad(values, (0, short)).reshape(-1, group)


def _unrows(rows: Tensor, form: Format, shape: tuple[int, ...]) -> Tensor:
    if form.per != "group":
        return rows.reshape(shape)
    columns = math.prod(shape[1:])
    return rows.reshape(shape[0] if shape else 1, -1)[:, :columns].reshape(shape)


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
            return _sixteen(spread * shares[0] / levels, stored), torch.zeros_like(low)
        bottom, top = low * shares[0], (low + spread) * shares[1]
        scale = _sixteen((top - bottom) / levels, stored)
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


def _stored(scale: Tensor) -> torch.dtype:
    """The 16-bit type that holds every scale as a normal number."""
    half = torch.finfo(torch.float16)
    used = scale[scale > 0]
    fits = len(used) == 0 or (half.tiny <= float(used.min()) and float(used.max()) <= half.max)
    return torch.float16 if fits else torch.bfloat16


def _sixteen(scale: Tensor, stored: torch.dtype) -> Tensor:
    """Scales rounded to the type they are stored in; 1 for rows of zeros."""
    kept = scale.clamp_min(torch.finfo(stored).tiny)
    return torch.where(scale > 0, kept, 1.0).to(stored).float()
