"""The trace of each weight's Hessian block from random signs and Hessian-vector products.

``z^T H z`` has the trace as its mean where z is random signs (Hutchinson 1990). One z over all
weights serves every block, but what the other blocks add to ``z_l^T (H z)_l`` vanishes on average
only, and is most of the noise. Few directions carry most of H, so they are found first, their share
of every block is taken as it is, and signs estimate what is left (Meyer et al. 2021, Hutch++).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.batches import call

Loss = Callable[[Any, Any], Any]
"""``loss(output, batch) -> one number``."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """The Hessian H of a loss on one batch, in some weights laid end to end.

    Attributes:
        weights: What the loss was differentiated by.
        slopes: Its gradient in each of them, with the graph it came from.
    """

    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: nn.Module, weights: Sequence[Tensor], batch: Any, loss: Loss) -> "Curvature":
        """Run the model and differentiate the loss once.

        Raises:
            ValueError: A loss that is not one finite number, or has no gradient.
        """
        # Only attention that is written out has second derivatives.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = loss(call(model, batch), batch)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                raise ValueError(
                    f"the loss returned {_said(value)}; wanted a tensor of one number that can be"
                    " differentiated by the weights: give such a loss, or use 'kl'"
                )
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"the loss of the float model is {value.item()}; wanted a finite number"
                )
            slopes = torch.autograd.grad(
                value.sum(), weights, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return cls(tuple(weights), slopes)

    @property
    def size(self) -> int:
        """Elements of all weights."""
        return sum(weight.numel() for weight in self.weights)

    def product(self, v: Tensor) -> Tensor:
        """(size,) H v."""
        pieces = [
            p.reshape(w.shape).to(w.dtype) for p, w in zip(self.split(v), self.weights, strict=True)
        ]
        bent = [(s, p) for s, p in zip(self.slopes, pieces, strict=True) if s.requires_grad]
        if not bent:
            return torch.zeros_like(v)
        slopes, given = zip(*bent, strict=True)
        found = torch.autograd.grad(
            slopes,
            self.weights,
            given,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([one.flatten().to(v.dtype) for one in found])

    def split(self, v: Tensor) -> tuple[Tensor, ...]:
        """The part of each weight, along the first axis."""
        parts: tuple[Tensor, ...] = v.split([weight.numel() for weight in self.weights])
        return parts

    def signs(self, generator: torch.Generator) -> Tensor:
        """(size,) random -1 and 1."""
        drawn = torch.randint(2, (self.size,), generator=generator, dtype=torch.int8) * 2 - 1
        return drawn.to(self.weights[0])


@dataclass(frozen=True, eq=False)
class Deflated:
    """Estimates of every block's trace, with the main directions of H taken out.

    With Q the directions and P = Q Q^T, ``H = P H + H P - P H P + (1 - P) H (1 - P)``, whose last
    term alone is left to chance.

    Attributes:
        curvature: H.
        directions: (size, k) Q, orthonormal.
        images: (size, k) H Q.
    """

    curvature: Curvature
    directions: Tensor
    images: Tensor

    @classmethod
    def of(cls, curvature: Curvature, rank: int, generator: torch.Generator) -> "Deflated":
        """From ``2 rank`` products."""
        if rank < 1:
            none = curvature.weights[0].new_zeros(curvature.size, 0)
            return cls(curvature, none, none)
        drawn = [curvature.product(curvature.signs(generator)) for _ in range(rank)]
        directions = torch.linalg.qr(torch.stack(drawn, dim=1)).Q
        del drawn
        images = [curvature.product(direction) for direction in directions.unbind(dim=1)]
        return cls(curvature, directions, torch.stack(images, dim=1))

    @cached_property
    def _known(self) -> Tensor:
        """(W,) traces of all terms but the last."""
        core = self.directions.mT @ self.images
        left = 2 * self.images - self.directions @ core
        return self._dots(self.directions, left)

    def probe(self, generator: torch.Generator) -> list[float]:
        """One unbiased estimate of every weight's trace."""
        z = self.curvature.signs(generator)
        rest = self._without(self.curvature.product(self._without(z)))
        found: list[float] = (self._known + self._dots(z, rest)).tolist()
        return found

    def _without(self, v: Tensor) -> Tensor:
        return v - self.directions @ (self.directions.mT @ v)

    def _dots(self, one: Tensor, other: Tensor) -> Tensor:
        """(W,) inner product of each weight's parts."""
        pairs = zip(self.curvature.split(one), self.curvature.split(other), strict=True)
        return torch.stack([(a * b).sum(dtype=torch.float64) for a, b in pairs])


def _said(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    graph = "" if value.requires_grad else " without a gradient"
    return f"a tensor of shape {tuple(value.shape)}{graph}"
