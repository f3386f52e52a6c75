"""GPTQ: columns rounded one after another, the error of each made up for by those that follow.

From Frantar et al. 2023, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers (arXiv 2210.17323). With ``H^-1 = U^T U``, U upper triangular, rounding column j by an
error e moves the columns k after it by ``-e U_jk / U_jj``: what then is the least squared error of
the layer's output.
"""

import torch
from torch import Tensor

from mpsearch.quant.lattice import Lattice

_BLOCK = 128  # columns after which those beyond are moved, all at once


def gptq(
    weight: Tensor, lattice: Lattice, hessian: Tensor, *, damp: float = 0.01, ordered: bool = True
) -> Tensor:
    """(groups, rows, p) the integers of a weight of that shape, scales being given.

    Args:
        weight: In float64.
        lattice: What each weight may become.
        hessian: (groups, p, p).
        damp: Added to the diagonal, times its mean.
        ordered: Whether columns are taken from the largest of the diagonal down, else as they are.

    Raises:
        ValueError: A Hessian that is not positive definite once it is damped.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    order = torch.arange(weight.shape[-1], device=weight.device).expand_as(diagonal)
    if ordered:
        order = diagonal.argsort(dim=-1, descending=True, stable=True)
    columns = order[:, None, :].expand(weight.shape)

    def taken(x: Tensor) -> Tensor:
        return x.expand(weight.shape).gather(-1, columns)

    square = order[:, None, :].expand(hessian.shape)
    both = hessian.gather(-1, square).gather(-2, square.mT)
    codes = _in_order(taken(weight), lattice.map(taken), inverse_factor(both, damp))
    return torch.empty_like(codes).scatter_(-1, columns, codes)


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """(groups, p, p) the upper triangular U of ``H^-1 = U^T U``.

    What was read as zero at all times takes part in nothing: its diagonal is set to the mean.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(-1, keepdim=True)
    mean = torch.where(mean > 0, mean, 1.0)
    damped = hessian + torch.diag_embed(damp * mean + torch.where(diagonal > 0, 0.0, mean))
    lower, wrong = torch.linalg.cholesky_ex(damped.flip(-1, -2))
    if wrong.any() or not torch.isfinite(lower).all():
        raise ValueError(
            f"the Hessian of its input is not positive definite with {damp:.3g} of its mean added"
            " to the diagonal; give the recipe a larger damp or more samples"
        )
    upper = lower.flip(-1, -2)  # H = R R^T with R upper triangular, so that U is its inverse
    eye = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device)
    factor: Tensor = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
    return factor


def _in_order(weight: Tensor, lattice: Lattice, factor: Tensor) -> Tensor:
    left, codes = weight.clone(), torch.empty_like(weight)
    width = weight.shape[-1]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors = torch.zeros_like(left[..., start:stop])
        for j in range(start, stop):
            at = lattice.map(lambda x, j=j: x[..., j])  # type: ignore[misc]
            codes[..., j] = at.codes(left[..., j])
            error = (left[..., j] - at.values(codes[..., j])) / factor[:, None, j, j]
            errors[..., j - start] = error
            left[..., j:stop] -= error[..., None] * factor[:, None, j, j:stop]
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return codes
