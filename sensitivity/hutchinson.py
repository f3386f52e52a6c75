"""The trace of each weight's Hessian block from random signs and Hessian-vector products.

``z^T H z`` has the trace as its mean where z is random signs (Hutchinson 1990, A Stochastic
Estimator of the Trace). One z over all weights serves every block: what other blocks add to
``z_l^T (H z)_l`` vanishes on average only, and is most of the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.batches import call


@dataclass(frozen=True, eq=False)
class Curvature:
    """The Hessian of a loss on one batch, in some weights.

    Attributes:
        weights: What the loss was differentiated by.
        slopes: Its gradient by each of them, with the graph that made it.
    """

    weights: Sequence[nn.Parameter]
    slopes: Sequence[Tensor]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        weights: Sequence[nn.Parameter],
        batch: Any,
        loss: Callable[[Any, Any], Any],
    ) -> "Curvature":
        """Run the model and differentiate ``loss(output, batch)`` once.

        Raises:
            ValueError: A loss that is not one finite number, or cannot be differentiated.
        """
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # the others have no second derivative
            value = loss(call(model, batch), batch)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                raise ValueError(
                    f"the loss returned {_said(value)}; wanted a tensor of one number that can be"
                    " differentiated by the weights: use another loss, or method 'kl'"
                )
            if not torch.isfinite(value):
                raise ValueError(
                    f"the loss is {value.item()} on the float model; wanted a finite number"
                )
            slopes = torch.autograd.grad(
                value.sum(), weights, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return cls(weights, slopes)

    def products(self, z: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """H z, one tensor a weight."""
        bent = [
            (slope, one) for slope, one in zip(self.slopes, z, strict=True) if slope.requires_grad
        ]
        if not bent:
            return tuple(torch.zeros_like(one) for one in z)
        slopes, given = zip(*bent, strict=True)
        return torch.autograd.grad(
            slopes,
            self.weights,
            given,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def probe(self, generator: torch.Generator) -> list[float]:
        """``z_l^T (H z)_l`` of every weight l, for one z of random signs."""
        z = [signs(weight, generator) for weight in self.weights]
        products = self.products(z)
        return [float((a * b).sum(dtype=torch.float64)) for a, b in zip(z, products, strict=True)]


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random -1 and 1 of a tensor's shape and type."""
    drawn = torch.randint(2, like.shape, generator=generator, dtype=torch.int8)
    return drawn.to(like.device, like.dtype) * 2 - 1


def _said(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    graph = "" if value.requires_grad else " without a gradient"
    return f"a tensor of shape {tuple(value.shape)}{graph}"
