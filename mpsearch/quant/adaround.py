"""AdaRound: each weight up or down, by descent on a relaxation of the layer's output error.

From Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization (arXiv
2004.10568). A weight is ``floor(w / scale) + h(v)`` with h a stretched sigmoid; a penalty
``1 - |2 h - 1|^beta``, beta falling, drives h to 0 or 1. The error is taken from the Hessian of the
layer's input, which holds all calibration samples: no draws, so there is no seed. What follows the
layer (its activation) is not looked at.
"""

import math

import torch
from torch import Tensor

from mpsearch.quant.lattice import Lattice

_LOW, _HIGH = -0.1, 1.1  # the sigmoid's ends, stretched
_RATE, _WEIGHT = 1e-2, 1e-2  # of descent, and of the penalty
_WARM = 0.2  # share of the steps without the penalty
_BETA = 20.0, 2.0


def adaround(weight: Tensor, lattice: Lattice, hessian: Tensor, *, steps: int = 500) -> Tensor:
    """(groups, rows, p) the integers of a weight of that shape, scales being given.

    Args:
        weight: Of any floating type; the descent is in float32.
        lattice: What each weight may become.
        hessian: (groups, p, p).
        steps: Of Adam.
    """
    at = lattice.map(lambda x: x.float())
    exact = (weight.float() / at.scale).expand(weight.shape)
    below = exact.floor()
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    unit = (hessian / torch.where(mean > 0, mean, 1.0)).float()
    size = at.scale.expand(weight.shape)
    size = size / size.amax(-1, keepdim=True)  # a row's own unit: rows are apart
    share = ((exact - below - _LOW) / (_HIGH - _LOW)).clamp(1e-4, 1 - 1e-4)
    place = torch.logit(share).requires_grad_()
    descent = torch.optim.Adam([place], lr=_RATE)
    for step in range(steps):
        with torch.enable_grad():
            up = _up(place)
            error = (at.clamped(below + up + at.zero) - at.zero - exact) * size
            loss = ((error @ unit) * error).sum()
            if step >= _WARM * steps:
                loss = loss + _WEIGHT * (1 - (2 * up - 1).abs().pow(_beta(step, steps))).sum()
            (place.grad,) = torch.autograd.grad(loss, place)
        descent.step()
    up = (_up(place.detach()) >= 0.5).float()
    return lattice.clamped((below + up).to(weight.dtype) + lattice.zero)


def _up(place: Tensor) -> Tensor:
    return (place.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _beta(step: int, steps: int) -> float:
    """From the first to the last along a cosine."""
    done = (step - _WARM * steps) / max(1.0, (1 - _WARM) * steps)
    first, last = _BETA
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
