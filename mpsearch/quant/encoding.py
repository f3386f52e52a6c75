"""The one door to every family of formats: a weight to codes, and codes to the weight.

Each family has a module named for it; outliers and branches of low rank are around them.
"""

from typing import Any

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant import (
    binary,
    blocks,
    fixed_point,
    integers,
    lookup,
    low_rank,
    outliers,
    partial,
    salient,
    ternary,
)
from mpsearch.quant.codes import Codes
from mpsearch.quant.recipe import Ranges

_SEARCHED: dict[str, Any] = {  # by a recipe's ranges
    "full": integers,
    "int": integers,
    "float": lookup,
    "lookup": lookup,
    "power": lookup,
    "exponent": lookup,
    "block": blocks,
}
_RULED: dict[str, Any] = {
    "ternary": ternary,
    "binary": binary,
    "fixed": fixed_point,
}  # by their own rule
_MIXED: dict[str, Any] = {"partial": partial, "salient": salient}
_DECODE: dict[str, Any] = {**_SEARCHED, **_RULED, **_MIXED, "ternary": integers}


def supported(form: Format) -> Format:
    """The format as a weight's, if it can be rounded to here; ``ValueError`` if not."""
    this = form.as_weight()
    if this.kind == "log":
        raise ValueError(
            f"cannot quantize weights to {str(form)!r}, which holds no negative numbers; for"
            f" weights write pot{this.bits}, and keep {str(form)!r} for inputs"
        )
    return this


def encode(
    weight: Tensor, form: Format, ranges: Ranges = "mse", salience: Tensor | None = None
) -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float32.

    ``salience`` says what is kept where a part has more bits than the rest: one number for each
    weight (for ``sc20`` for each input channel); without it what is largest is.

    Raises:
        ValueError: A format for inputs only, or a weight that is empty or not finite.
    """
    this = supported(form)
    if this.outliers:
        others, stored = outliers.split(weight, this, salience)
        return outliers.joined(encode(others, this.plain, ranges), this, stored)
    if this.rank:
        tried: list[Ranges] = ["minmax"] if ranges == "minmax" else [ranges, "minmax"]
        return low_rank.encode(weight, this, tried, lambda w, r: encode(w, this.plain, r))
    if this.kind in _MIXED:
        codes: Codes = _MIXED[this.kind].encode(weight, this, salience)
    elif this.kind in _RULED or _is_sign(this):
        codes = _RULED.get(this.kind, binary).encode(weight, this)
    else:
        codes = _SEARCHED[this.kind].encode(weight, this, ranges)
    return codes


def decode(codes: Codes) -> Tensor:
    """The weight that codes stand for, in float32, in its shape."""
    limit = torch.finfo(torch.float32).max  # a scale rounded up takes the largest beyond
    return _decoded(codes).clamp(-limit, limit)


def _decoded(codes: Codes) -> Tensor:
    this = codes.format
    if this.outliers:
        return outliers.put(_decoded(codes.of(this.plain)), codes)
    if this.rank:
        return low_rank.added(_decoded(codes.of(this.plain)), codes)
    family = binary if _is_sign(this) else _DECODE[this.kind]
    values: Tensor = family.decode(codes)
    return values


def round_trip(weight: Tensor, form: Format, ranges: Ranges = "mse") -> Tensor:
    """The nearest weight the format can hold, in the weight's own type; outputs first."""
    return encode(weight, form, ranges).dequantize().to(weight.dtype)


def _is_sign(form: Format) -> bool:
    return form.base == "int1" and bool(form.symmetric)
