"""Weights as signs times a scale, the mean of their magnitudes (XNOR-Net): none is better.

``binary2`` also stores the signs of what is left, and a mean: ``m + a * B + b * C``. They are
fitted in turns (ARB-LLM's alternating refinement): the codes to the numbers, then each number to
the codes.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, grouped, half_of, matrix, sixteen, ungrouped

_TURNS = 15


def encode(weight: Tensor, form: Format) -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float32."""
    this = form.as_weight()
    values, shape = matrix(weight)
    there = ~grouped(values, this, torch.nan).isnan()
    rows = grouped(values, this)
    if this.base == "binary2":
        codes, scale = _residual(rows, there)
    else:
        codes = (rows >= 0).to(torch.uint8)
        size = (rows.abs().double().sum(1) / there.sum(1)).float()
        stored = half_of(size)
        scale = sixteen(size, stored, zero=0.0).to(stored)
    return Codes(ungrouped(codes, this, tuple(values.shape)), scale, None, this, shape)


def decode(codes: Codes) -> Tensor:
    """The weight that bits and scales stand for."""
    this = codes.format
    rows = grouped(codes.codes, this).long()
    if this.base == "binary2":
        found = _four(codes.steps.reshape(len(rows), 3)).gather(1, rows)
    else:
        found = (2 * rows - 1) * codes.steps[:, None]
    return ungrouped(found.float(), this, codes.shape)


def _residual(rows: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Codes 0 to 3 and (rows, 3) of mean, first and second scale, as they are stored.

    A turn needs how many values have each code, and their sum: in ascending order these are runs.
    """
    wide, count = torch.where(there, rows, 0).double(), there.sum(1)

    def mean(values: Tensor) -> Tensor:
        return (values * there).sum(1) / count

    middle = mean(wide)
    away = (wide - middle[:, None]).abs()
    first = mean(away)
    second = mean((away - first[:, None]).abs())
    ascending = torch.where(there, wide, torch.inf).sort(1).values
    sums = pad(torch.where(ascending < torch.inf, ascending, 0).cumsum(1), (1, 0))
    for _ in range(_TURNS):
        order, bounds = _between(_four(torch.stack([middle, first, second], 1)))
        ends = torch.searchsorted(ascending, bounds, right=True)
        ends = torch.cat([torch.zeros_like(ends[:, :1]), ends, count[:, None]], 1)
        number, total = ends.diff(), sums.gather(1, ends).diff()
        one, two = 2.0 * (order & 1) - 1, 2.0 * (order >> 1) - 1
        middle = (total - number * (first[:, None] * one + second[:, None] * two)).sum(1) / count
        left = total - number * middle[:, None]
        first = (one * left - one * two * number * second[:, None]).sum(1) / count
        second = (two * left - one * two * number * first[:, None]).sum(1) / count
    fitted = torch.stack([middle, first, second], 1).float()
    limit = torch.finfo(torch.bfloat16).max
    kept = fitted.clamp(-limit, limit).to(half_of(fitted[:, 1]))
    order, bounds = _between(_four(kept.double()))
    return order.gather(1, torch.searchsorted(bounds, wide)).to(torch.uint8), kept


def _four(scale: Tensor) -> Tensor:
    """(rows, 4) what codes stand for: bit 0 is the first sign, bit 1 the second."""
    code = torch.arange(4, device=scale.device)
    signs = torch.stack([torch.ones(4), 2.0 * (code & 1) - 1, 2.0 * (code >> 1) - 1])
    return scale @ signs.to(scale)


def _between(points: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, 4) codes by what they stand for, ascending; (rows, 3) the largest value of each.

    A value in the middle of two has the lower code.
    """
    ascending, order = points.sort(stable=True, dim=1)
    middle = (ascending[:, 1:] + ascending[:, :-1]) / 2
    below = torch.nextafter(middle, middle.new_tensor(-torch.inf))
    return order, torch.where(order[:, 1:] < order[:, :-1], below, middle)
