"""What one forward did with some weights, and each sample's weight gradient from it.

Where ``z = W a`` the gradient of one sample is the sum over positions of ``g a^T``, with ``g`` the
gradient at ``z``. Its squared norm follows from ``a`` and ``g``, so that autograd never has to make
a gradient for each sample (Goodfellow 2015, Efficient Per-Example Gradient Computations).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mpsearch.quant.reads import Read, Reads


@dataclass(frozen=True, eq=False)
class Use(Read):
    """One time a weight met a tensor.

    Attributes:
        edge: Where in the graph the output is, also when that is changed in place later.
    """

    edge: GradientEdge


class Uses(Reads):
    """Collects, while it is entered, the uses of some weights in the order they are made.

    Attributes:
        found: For each weight its uses.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        found: tuple[list[Use], ...] = tuple([] for _ in weights)
        names = {id(weight): number for number, weight in enumerate(weights)}
        super().__init__(names, partial(_add, found))  # a method would be a cycle, around graphs
        self.found = found


def _add(found: Sequence[list[Use]], number: int, read: Read, output: Tensor) -> Tensor:
    if not output.requires_grad:
        raise ValueError(
            "the model reads a layer's weight under torch.no_grad, so its Hessian cannot be"
            " had; let gradients flow, or use 'kl', which needs none"
        )
    found[number].append(Use(read.func, read.given, get_gradient_edge(output)))
    return output


def squared_norms(uses: Sequence[tuple[Use, Sequence[Tensor]]], samples: int) -> Tensor:
    """(samples,) squared norm of each sample's gradient of one weight, summed over columns.

    Args:
        uses: Every use of the weight, whose shares add up before they are squared, with the
            gradient at its output for each of several columns.
        samples: They lie one after another along the first axis of what is read and written.
    """
    pairs = [
        (use.inputs(samples), torch.stack([use.gradients(g, samples) for g in columns], dim=2))
        for use, columns in uses
    ]
    p, (columns, q, positions) = pairs[0][0].shape[2], pairs[0][1].shape[2:]
    if len(pairs) == 1 and positions * (p + columns * q) < p * columns * q:
        inputs, outputs = pairs[0][0], pairs[0][1].flatten(2, 3)
        return ((inputs.mT @ inputs) * (outputs.mT @ outputs)).sum((1, 2, 3))
    total: Any = 0
    for (use, _), (inputs, outputs) in zip(uses, pairs, strict=True):
        each = (outputs.flatten(2, 3) @ inputs.mT).unflatten(2, (columns, -1))
        total = total + (each.mT if use.lookup else each)
    squared: Tensor = total.square().sum((1, 2, 3, 4))
    return squared
