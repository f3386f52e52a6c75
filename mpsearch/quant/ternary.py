"""Weights as -1, 0 and 1 times the mean of their magnitudes (BitNet b1.58), or the median.

A weight is rounded to the nearest of these; the scale is what the rule says whatever a recipe's
ranges are (``int2`` is the same three values, with a scale that is searched). A median of zero,
where most weights are zero, gives way to the mean.
"""

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, grouped, half_of, matrix, sixteen, ungrouped


def encode(weight: Tensor, form: Format) -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float32."""
    this = form.as_weight()
    values, shape = matrix(weight)
    sizes = grouped(values.abs().double(), this, torch.nan)
    scale = sizes.nanmean(1)
    if this.base == "ternarym":
        median = sizes.nanmedian(1).values
        scale = torch.where(median > 0, median, scale)
    stored = half_of(scale)
    kept = sixteen(scale.float(), stored)
    codes = (grouped(values, this) / kept[:, None]).round_().clamp_(-1, 1).to(torch.int8)
    flat = ungrouped(codes, this, tuple(values.shape))
    return Codes(flat, kept.to(stored), None, this, shape)
