"""Which weights keep more bits than the rest, by what a layer's output would lose with them.

A change ``d`` of a weight counts ``d^2 / (H^-1)_jj``, twice the least squared error it leaves in
the output, all others free to make up for it; H is that of :mod:`mpsearch.quant.input_hessian`.
An outlier is one whose rounding counts most (SpQR: Dettmers et al. 2023, arXiv 2306.03078, eq. 2),
among signs the weight itself counts (PB-LLM: Shang et al. 2023, arXiv 2310.00034). An input channel
counts the mean square of what is read there: PTQ1.61 (arXiv 2502.13179) keeps the largest inputs.
"""

import math

import torch
from torch import Tensor, nn

from mpsearch.formats import Format
from mpsearch.quant.codes import Codes
from mpsearch.quant.gptq import inverse_factor
from mpsearch.quant.lattice import Layout


def keeps(form: Format) -> bool:
    """Whether a format keeps some weights at more bits than the rest."""
    return bool(form.outliers) or form.kind in {"partial", "salient"}


def salience(
    lost: Tensor, layout: Layout, hessian: Tensor, form: Format, damp: float
) -> Tensor | None:
    """What :func:`~mpsearch.quant.encoding.encode` is to keep by: of weights, or of channels.

    ``None`` for the channels of an embedding, which are all read alike.

    Args:
        lost: What each weight changes by if it is not kept, outputs first.
        layout: Where its rows meet an input.
        hessian: (groups, p, p); of an embedding (1, p), its diagonal.
        form: A format that :func:`keeps` some.
        damp: Added to the diagonal, times its mean.
    """
    table = isinstance(layout.module, nn.Embedding)
    if form.kind == "salient":
        if table:
            return None
        read = hessian.diagonal(dim1=-2, dim2=-1).sum(0)
        return read.reshape(lost.shape[1] if lost.dim() > 1 else 1, -1).sum(1)
    inverse = 1 / hessian if table else inverse_factor(hessian, damp).square().sum(-2)  # U^T U
    rows = layout.rows(lost)
    return layout.codes(rows.square() / inverse[:, None, :]).reshape(lost.shape)


def kept(codes: Codes) -> Tensor | None:
    """A salience by which the same weights are kept again; ``None`` where none are."""
    more = codes.more
    if not keeps(codes.format):
        return None
    if "mask" in more:
        mask: Tensor = more["mask"].float()
        return mask if codes.format.kind == "salient" else mask.reshape(codes.shape)
    counts, shape = more["counts"].long(), codes.shape
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    found = torch.zeros(len(counts), math.prod(shape) // len(counts), device=counts.device)
    found[rows, more["columns"].long()] = 1
    return found.reshape(shape)
