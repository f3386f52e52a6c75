"""A share of the weights at 8 bits, and of the others the sign (PB-LLM).

The others are ``m + a * sign(w - m)`` for each group, ``m`` and ``a`` over the weights that are
stored so. Which weight is which costs one bit each.
"""

import torch
from torch import Tensor

from mpsearch.families import kept_of
from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, grouped, half_of, matrix, sixteen, ungrouped
from mpsearch.quant.outliers import chosen, importance

_TOP = 127


def encode(weight: Tensor, form: Format, salience: Tensor | None = None) -> Codes:
    """The codes of a weight, outputs first; the salient weights are the largest, or as said."""
    this = form.as_weight()
    values, shape = matrix(weight)
    mask = chosen(importance(values, shape, salience), kept_of(values.numel(), this.share))
    peak = torch.where(mask, values.abs(), 0).amax(1)
    kind = half_of(peak / _TOP)
    wide = sixteen(peak / _TOP, kind)
    salient = (values / wide[:, None]).round_().clamp_(-_TOP, _TOP)[mask]
    scale = _fitted(values.masked_fill(mask, torch.nan), this)
    middle = _spread(scale[:, 0], this, values)
    return Codes(
        (values >= middle)[~mask].to(torch.uint8),
        scale,
        None,
        this,
        shape,
        {
            "mask": mask.to(torch.uint8),
            "salient": salient.to(torch.int16) & 0xFF,
            "salient_scale": wide.to(kind),
        },
    )


def decode(codes: Codes) -> Tensor:
    """The weight that codes stand for."""
    this = codes.format
    rows = codes.shape[0] if codes.shape else 1
    mask = codes.more["mask"].reshape(rows, -1).bool()
    found = torch.empty(mask.shape, device=mask.device)
    middle, size = (_spread(part, this, found) for part in codes.steps.reshape(-1, 2).unbind(1))
    signs = torch.zeros_like(found)
    signs[~mask] = 2.0 * codes.codes.reshape(-1) - 1
    wide = codes.more["salient"].to(torch.int16)
    salient = torch.where(wide > _TOP, wide - 256, wide).float()
    found = middle + signs * size
    found[mask] = salient * codes.more["salient_scale"].float().repeat_interleave(mask.sum(1))
    return found.reshape(codes.shape)


def _fitted(others: Tensor, form: Format) -> Tensor:
    """(scales, 2) mean and mean distance from it, as stored, of what is not NaN."""
    rows = grouped(others.double(), form, torch.nan)
    middle = rows.nanmean(1).nan_to_num().float()
    stored = half_of(middle)
    limit = torch.finfo(torch.bfloat16).max
    kept = middle.clamp(-limit, limit).to(stored)
    size = (rows - kept.double()[:, None]).abs().nanmean(1).nan_to_num().float()
    stored = stored if stored == half_of(size) else torch.bfloat16
    return torch.stack([kept.to(stored), sixteen(size, stored, zero=0.0).to(stored)], 1)


def _spread(scale: Tensor, form: Format, like: Tensor) -> Tensor:
    """(like) what each weight's group has."""
    rows = grouped(torch.zeros_like(like), form)
    return ungrouped(scale.float()[:, None].expand(rows.shape), form, tuple(like.shape))
