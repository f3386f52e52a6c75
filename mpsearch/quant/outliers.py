"""A share of the weights kept in 16 bits beside the codes of the others (SpQR, GWQ).

Where they lie is stored as in a compressed sparse row: how many there are in each row, and the
column of each. The format counts all of it: at 1 % of a 4096 x 4096 matrix 0.28 bits a weight.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mpsearch.families import kept_of
from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, half_of, matrix


def chosen(salience: Tensor, count: int) -> Tensor:
    """(like salience) whether a value is among the ``count`` largest; of equal ones the first.

    Raises:
        ValueError: NaN among them.
    """
    flat = salience.reshape(-1)
    least = flat.kthvalue(len(flat) - count + 1).values
    if flat.isnan().any():
        raise ValueError("salience holds NaN; give numbers, the largest for what is to be kept")
    mask = flat > least
    mask[(flat == least).nonzero().flatten()[: count - int(mask.sum())]] = True
    return mask.reshape(salience.shape)


def importance(values: Tensor, shape: tuple[int, ...], salience: Tensor | None) -> Tensor:
    """(out, in * kernel) what is kept by: magnitudes, or those of what is said of each weight.

    Raises:
        ValueError: A salience of another shape.
    """
    if salience is None:
        return values.abs()
    if tuple(salience.shape) != shape:
        raise ValueError(
            f"salience is one number a weight, of shape {shape}, got {tuple(salience.shape)}"
        )
    return salience.abs().float().reshape(values.shape)


def split(
    weight: Tensor, form: Format, salience: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weight with its outliers at zero, and what is stored of them."""
    values, shape = matrix(weight)
    by = importance(values, shape, salience)
    mask = chosen(by, kept_of(values.numel(), form.outliers))
    kept = values[mask]
    limit = torch.finfo(torch.bfloat16).max
    stored = {
        "counts": mask.sum(1),
        "columns": mask.nonzero()[:, 1],
        "kept": kept.clamp(-limit, limit).to(half_of(kept)),
    }
    return values.masked_fill(mask, 0).reshape(weight.shape), stored


def put(values: Tensor, codes: Codes) -> Tensor:
    """The weight with its outliers in their places."""
    counts, columns, kept = (codes.more[name] for name in ("counts", "columns", "kept"))
    found = values.reshape(len(counts), -1).clone()
    rows = torch.arange(len(counts), device=found.device).repeat_interleave(counts.long())
    found[rows, columns.long()] = kept.float()
    return found.reshape(codes.shape)


def joined(codes: Codes, form: Format, stored: dict[str, Tensor]) -> Codes:
    """The codes of the others with what is stored of the outliers."""
    return replace(codes, format=form, more={**codes.more, **stored})
