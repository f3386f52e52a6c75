"""QuantEase: one column after another set to its best integers, over and over.

From Behdin et al. 2023, QuantEase: Optimization-based Quantization for Language Models (arXiv
2309.01885). With the others as they are, the best value of column j of Q is
``Q_j + ((W - Q) H)_j / H_jj``; in every third of the first sweeps it is taken as it is, so that
the descent leaves its first basin.
"""

import torch
from torch import Tensor

from mpsearch.quant.lattice import Lattice

_FREE = 26  # sweeps after which all values are integers


def quantease(weight: Tensor, lattice: Lattice, hessian: Tensor, *, sweeps: int = 30) -> Tensor:
    """(groups, rows, p) the integers of a weight of that shape, scales being given.

    Args:
        weight: In float64.
        lattice: What each weight may become.
        hessian: (groups, p, p); a column that is always read as zero is rounded to nearest.
        sweeps: Over all columns.
    """
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    diagonal = torch.where(diagonal > 0, diagonal, 1.0)
    values, codes = weight.clone(), lattice.codes(weight)
    slope = torch.zeros_like(weight)  # (W - Q) H
    for sweep in range(sweeps):
        free = sweep % 3 == 1 and sweep < min(_FREE, sweeps - 1)
        for j in range(weight.shape[-1]):
            best = values[..., j] + slope[..., j] / diagonal[:, None, j]
            if not free:
                at = lattice.map(lambda x, j=j: x[..., j])  # type: ignore[misc]
                codes[..., j] = at.codes(best)
                best = at.values(codes[..., j])
            change = best - values[..., j]
            slope -= change[..., None] * hessian[:, None, j]
            values[..., j] = best
    return codes
