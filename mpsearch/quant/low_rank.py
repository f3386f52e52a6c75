"""A branch of low rank in 16 bits beside the codes of what it leaves (SVDQuant).

``W = L R + Q``: the branch is fitted to what the codes miss, and the codes to what the branch
leaves, in turns; the best turn is kept, no branch at all being one of them. Where ranges are those
of the least error, turns are taken with whole ranges too: what clips less leaves the branch more.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, matrix
from mpsearch.quant.recipe import Ranges

_TURNS = 6
_MORE, _POWERS = 16, 8  # directions and products beyond those asked for


def encode(
    weight: Tensor,
    form: Format,
    tried: Sequence[Ranges],
    inner: Callable[[Tensor, Ranges], Codes],
) -> Codes:
    """The codes and the branch of the least squared error, with the best of the ranges tried."""
    found = [_turned(weight, form, ranges, inner) for ranges in tried]
    return min(found, key=lambda each: each[0])[1]


def _turned(
    weight: Tensor, form: Format, ranges: Ranges, inner: Callable[[Tensor, Ranges], Codes]
) -> tuple[float, Codes]:
    values, shape = matrix(weight)
    wide, limit = values.double(), torch.finfo(torch.float32).max
    rank = min(form.rank, *values.shape)
    left, right = values.new_zeros(len(values), rank), values.new_zeros(rank, values.shape[1])
    turns, rest = [], wide
    for turn in range(_TURNS):
        if turn:
            left, right = factors(rest, rank)
        left, right = _sixteen(left), _sixteen(right)
        branch = left.double() @ right.double()
        codes = inner((wide - branch).clamp(-limit, limit).float().reshape(shape), ranges)
        found = codes.dequantize().reshape(values.shape).double()
        more = {**codes.more, "left": left, "right": right}
        error = float((found + branch - wide).square().sum())
        turns.append((error, turn, replace(codes, format=form, more=more)))
        rest = wide - found if turn else wide
    error, _, best = min(turns, key=lambda turn: turn[:2])
    return error, best


def added(values: Tensor, codes: Codes) -> Tensor:
    """The weight with its branch."""
    rows = values.reshape(codes.shape[0] if codes.shape else 1, -1)
    left = codes.more["left"].float().reshape(len(rows), -1)
    right = codes.more["right"].float().reshape(-1, rows.shape[1])
    return (rows + left @ right).reshape(codes.shape)


def factors(values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(out, rank) and (rank, in) whose product is nearly the nearest of such a rank."""
    width = min(rank + _MORE, *values.shape)
    seeded = torch.Generator().manual_seed(0)
    size = values.double().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    scaled = (values / size).float()  # the factors are rounded to 16 bits
    start = torch.randn(scaled.shape[1], width, generator=seeded)
    basis = torch.linalg.qr(scaled @ start.to(scaled.device)).Q
    for _ in range(_POWERS if width < min(values.shape) else 0):
        basis = torch.linalg.qr(scaled @ (scaled.T @ basis)).Q
    u, s, v = torch.linalg.svd(basis.T @ scaled, full_matrices=False)
    root = s[:rank].sqrt()
    half = torch.exp2((torch.frexp(size).exponent // 2).double())  # changes no digit of a factor
    left = (basis @ u[:, :rank]) * root * half
    return left.float(), (root[:, None] * v[:rank] * (size / half)).float()


def _sixteen(factor: Tensor) -> Tensor:
    limit = torch.finfo(torch.float16)
    small = float(factor.abs().max()) <= limit.max if factor.numel() else True
    return factor.to(torch.float16 if small else torch.bfloat16)
