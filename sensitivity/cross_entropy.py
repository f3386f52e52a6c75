"""Whether a loss is bent in the output as softmax cross-entropy is, whatever its targets.

The Hessian of cross-entropy in the logits, ``diag(p) - p p^T``, holds no target: it is that of KL.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def bends_as_kl(loss: Callable[[Any, Any], Any], output: Any, batch: Any) -> bool:
    """Whether ``loss(logits, batch)`` has the Hessian of a mean over samples and tokens of KL.

    It is tried on random logits and a random direction, in the shape of the output; cross-entropy
    with class weights, or that leaves tokens out, is told apart.
    """
    if not isinstance(output, Tensor) or output.dim() not in (2, 3):
        return False
    generator = torch.Generator().manual_seed(0)
    logits, v = (
        torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        for _ in range(2)
    )
    with torch.enable_grad():
        value = loss(logits.requires_grad_(), batch)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        (slope,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
        if not slope.requires_grad:
            return False
        (found,) = torch.autograd.grad(slope, logits, v)
    p = logits.detach().softmax(-1)
    wanted = p * (v - (p * v).sum(-1, keepdim=True)) * (p.shape[-1] / p.numel())
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
