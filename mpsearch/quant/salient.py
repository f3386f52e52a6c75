"""A share of the input channels at 4 bits, and of the others the sign (PTQ1.61).

Signs are times a scale of the row and one of the column, fitted in turns by least squares. Which
channel is which costs one bit a channel, next to nothing.
"""

import math

import torch
from torch import Tensor

from mpsearch.families import kept_of
from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, half_of, matrix, rows_of, sixteen
from mpsearch.quant.outliers import chosen

_TOP, _TURNS = 7, 20


def encode(weight: Tensor, form: Format, salience: Tensor | None = None) -> Codes:
    """The codes of a weight, outputs first.

    ``salience`` is of each input channel (the largest inputs, in the paper); without it the
    channels of the largest weights, in squares, have 4 bits.
    """
    this = form.as_weight()
    values, shape = matrix(weight)
    channels = shape[1] if len(shape) > 1 else 1
    if salience is None:
        salience = values.reshape(len(values), channels, -1).square().sum((0, 2))
    if salience.numel() != channels:
        raise ValueError(f"salience is one number a channel, {channels}, got {salience.numel()}")
    mask = chosen(salience.reshape(-1).float(), kept_of(channels, this.share))
    columns = mask.repeat_interleave(values.shape[1] // channels)
    wide, others = values[:, columns], values[:, ~columns]
    peak = wide.abs().amax(1) / _TOP
    kind = half_of(peak)
    step = sixteen(peak, kind)
    salient = (wide / step[:, None]).round_().clamp_(-_TOP, _TOP).to(torch.int16) & 0xF
    row, column = _fitted(others.abs())
    more = {"mask": mask.to(torch.uint8), "salient": salient, "salient_scale": step.to(kind)}
    codes = (others >= 0).to(torch.uint8)
    return Codes(codes, row, None, this, shape, {**more, "column_scale": column})


def decode(codes: Codes) -> Tensor:
    """The weight that codes stand for."""
    shape = codes.shape
    rows, count = rows_of(shape), math.prod(shape[1:])
    mask = codes.more["mask"].bool()
    columns = mask.repeat_interleave(count // len(mask))
    found = torch.empty(rows, count, device=mask.device)
    wide = codes.more["salient"].to(torch.int16).reshape(rows, -1)
    salient = torch.where(wide > _TOP, wide - 16, wide).float()
    found[:, columns] = salient * codes.more["salient_scale"].float()[:, None]
    if not columns.all():
        signs = 2.0 * codes.codes.reshape(rows, -1) - 1
        across = codes.more["column_scale"].float()
        found[:, ~columns] = signs * (codes.steps[:, None] * across)
    return found.reshape(shape)


def _fitted(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) and (columns,) scales, as stored, whose products are nearest to the sizes."""
    wide = sizes.double()
    row, column = wide.mean(1) if wide.shape[1] else wide.sum(1), wide.new_ones(wide.shape[1])
    for _ in range(_TURNS):
        column = _over(wide.T @ row, row.square().sum())
        row = _over(wide @ column, column.square().sum()) if len(column) else row
    mean = column.mean() if len(column) and column.any() else wide.new_ones(())
    row, column = (row * mean).float(), (column / mean).float()  # columns around one
    return tuple(sixteen(part, half_of(part), 0.0).to(half_of(part)) for part in (row, column))  # type: ignore[return-value]


def _over(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 0.0)
