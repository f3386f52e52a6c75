"""AdaQuant: weights and scales together, by descent on the layer's output error.

From Hubara et al. 2020, Improving Post Training Neural Quantization: Layer-wise Calibration and
Integer Programming (CalibTIP, arXiv 2006.10518). Gradients pass straight through rounding: weights
and scales have those of ``(q - zero) scale`` with ``q = clamp(weight / scale + zero)``, so a weight
that is clipped has none. The error is taken from the Hessian of the layer's input, which holds all
calibration samples: the paper draws some for each step, here there are no draws and no seed. Biases
are a recipe's corrections, and what follows the layer (its activation) is not looked at.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mpsearch.quant.decoupleq import Shared
from mpsearch.quant.lattice import Lattice

RATES = 3e-3, 1e-3
"""Of descent: of weights in steps, and of the logarithms of scales."""


def adaquant(
    weight: Tensor, lattice: Lattice, hessian: Tensor, shared: Shared, *, steps: int = 500
) -> tuple[Tensor, Tensor]:
    """(groups, rows, p) integers, and scales in the type they are stored in.

    Rows that share a scale have both from the step at which they err least.

    Args:
        weight: Of any floating type; the descent is in float32.
        lattice: What each weight may become, with the scales to begin with.
        hessian: (groups, p, p).
        shared: These scales.
        steps: Of Adam.
    """
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean()
    metric = (hessian / torch.where(mean > 0, mean, 1.0)).float()
    start, limits = shared.scale.double(), torch.finfo(shared.scale.dtype)
    size = start[shared.place].amax(-1, keepdim=True)  # a row's own unit: rows are apart
    exact, base = (weight / size).float(), (start[shared.place] / size).float()
    at, rows = lattice.map(lambda x: x.float()), shared.place[..., 0] // shared.parts
    place, growth = exact / base, torch.zeros_like(start, dtype=torch.float32)
    descent = _descent(place, growth)

    def kept(times: Tensor) -> Tensor:
        return (times * start).clamp(limits.tiny, limits.max).to(shared.scale.dtype)

    least = torch.full((len(start) // shared.parts,), torch.inf, device=weight.device)
    codes, scale = torch.zeros_like(exact), shared.scale
    for _ in range(steps):
        with torch.enable_grad():
            grown = _straight(growth.exp(), lambda x: kept(x).double() / start)
            ratio = grown.float()[shared.place]
            found = at.clamped(_straight(place / ratio + at.zero, torch.round))
            error = (found - at.zero) * ratio * base - exact
            each = ((error @ metric) * error).sum(-1)
            place.grad, growth.grad = torch.autograd.grad(each.sum(), [place, growth])
        errors = torch.zeros_like(least).index_add(0, rows.flatten(), each.detach().flatten())
        better = errors < least
        least = torch.where(better, errors, least)
        codes = torch.where(better[rows][..., None], found.detach(), codes)
        scale = torch.where(better.repeat_interleave(shared.parts), kept(grown.detach()), scale)
        descent.step()
    return codes.to(weight.dtype), scale


def _descent(place: Tensor, growth: Tensor) -> torch.optim.Adam:
    moving = zip((place, growth), RATES, strict=True)
    given = [{"params": [x.requires_grad_()], "lr": rate} for x, rate in moving]
    return torch.optim.Adam(given, eps=1e-15)  # errors of rows may be far apart


def _straight(x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """The rounded tensor, with the gradient of the tensor itself."""
    return rounded(x.detach()) + (x - x.detach())
