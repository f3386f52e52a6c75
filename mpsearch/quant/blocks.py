"""Blocks of floats or integers that share a scale of 8 bits: OCP's MX formats and ``nvfp4``.

MX: 32 values and a power of two, 8 bits of exponent; the rule of OCP puts the leading bit of the
largest value in the largest exponent of an element, which clips what lies beyond. ``nvfp4``: 16
values of ``fp4_e2m1``, a scale in ``fp8_e4m3`` and one 32-bit scale for the tensor. By least
squared error, the scales next to the rule's are tried as well.
"""

from functools import cache

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant import floats
from mpsearch.quant.codes import Codes, grouped, matrix, ungrouped
from mpsearch.quant.lookup import Table, table
from mpsearch.quant.recipe import Ranges

_BIAS, _ONE = 127, 127  # of a scale's exponent, and the code of scale 1
_LAST = 254  # 255 is NaN
_NEAR_MX, _NEAR_NV = (0, 1, -1), (0, *range(1, 7), -1, -2, -3)


@cache
def element(base: str) -> Table:
    """The table of one value of a block; codes of ``mxint8`` are integers of 1/64, from -127."""
    if base == "mxint8":
        code = torch.arange(256)
        whole = torch.where(code < 128, code, code - 256).float()
        return table(torch.where(code == 128, torch.nan, whole / 64))
    name = "fp4_e2m1" if base.endswith("fp4") else base.removeprefix("mx")
    return table(floats.values(name))


@cache
def _scales() -> Table:
    return table(floats.values("fp8_e4m3").abs())


def encode(weight: Tensor, form: Format, ranges: Ranges = "mse") -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float32."""
    this = form.as_weight()
    values, shape = matrix(weight)
    whole = whole_of(values.abs().max(), this.base)
    codes, scale = quantized(grouped(values, this), this.base, ranges, whole)
    flat = ungrouped(codes, this, tuple(values.shape))
    more = {} if whole is None else {"tensor": whole.reshape(1)}
    kind = torch.int8 if this.base == "mxint8" else torch.uint8
    return Codes(flat.to(torch.uint8).view(kind), scale, None, this, shape, more)


def whole_of(peak: Tensor, base: str) -> Tensor | None:
    """() the 32-bit scale of a tensor of such a largest magnitude, where the format has one."""
    if base != "nvfp4":
        return None
    scale = peak / (element(base).top * _scales().top)
    return torch.where(peak > 0, scale.clamp_min(torch.finfo(torch.float32).tiny), 1.0)


def quantized(
    rows: Tensor, base: str, ranges: Ranges, whole: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes and scale codes of (blocks, size) values, under the scale of the tensor."""
    by, peak = element(base), rows.abs().amax(1)
    if whole is not None:
        first, tried, last = _scales().code(peak / by.top / whole).long(), _NEAR_NV, 126
    else:
        largest = torch.frexp(torch.tensor(by.top)).exponent
        first, tried, last = torch.frexp(peak).exponent - largest + _BIAS, _NEAR_MX, _LAST
        first = torch.where(peak > 0, first.clamp(0, _LAST), _ONE)
    best = first
    least = torch.full_like(peak, torch.inf)
    for step in tried if ranges == "mse" else (0,):
        code = (first + step).clamp(0, last)
        scale = scales(code, whole)[:, None]
        error = (_values(rows, scale, by) - rows).square_().sum(1)
        best = torch.where(error < least, code, best)
        least = torch.minimum(error, least)
    found = by.code(_divided(rows, scales(best, whole)[:, None]))
    return found, best.to(torch.uint8)


def scales(code: Tensor, whole: Tensor | None) -> Tensor:
    """What codes of scales stand for, in float32."""
    if whole is None:
        return torch.ldexp(torch.ones_like(code, dtype=torch.float32), code.int() - _BIAS)
    return _scales().value(code) * whole


def decode(codes: Codes) -> Tensor:
    """The weight that codes and scales stand for."""
    this = codes.format
    if codes.scale is None:
        raise ValueError(f"a weight in {str(this)!r} has scales")
    scale = scales(codes.scale, codes.more.get("tensor"))
    found = element(this.base).value(grouped(codes.codes.view(torch.uint8), this))
    return ungrouped(found * scale[:, None], this, codes.shape)


def _values(rows: Tensor, scale: Tensor, by: Table) -> Tensor:
    return by.rounded(_divided(rows, scale)) * scale


def _divided(rows: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, rows / scale, 0.0)
