"""What one forward did with some weights, and each sample's weight gradient from it.

Where ``z = W a`` the gradient of one sample is the sum over positions of ``g a^T``, with ``g`` the
gradient at ``z``. Its squared norm follows from ``a`` and ``g``, so that autograd never has to make
a gradient for each sample (Goodfellow 2015, Efficient Per-Example Gradient Computations).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CONVOLUTION = "input weight bias stride padding dilation groups".split()
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation".split()
_ARGUMENTS: dict[Any, Sequence[str]] = {
    F.linear: ("input", "weight", "bias"),
    torch.addmm: ("bias", "input", "weight"),
    F.embedding: ("input", "weight"),
    **dict.fromkeys([F.conv1d, F.conv2d, F.conv3d], _CONVOLUTION),
    **dict.fromkeys([F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d], _TRANSPOSED),
}
_TRANSPOSING = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True, eq=False)
class Use:
    """One time a weight met a tensor.

    Attributes:
        func: The operation.
        given: Its arguments by name.
        edge: Where in the graph its output is, also when that is changed in place later.
    """

    func: Any
    given: Mapping[str, Any]
    edge: GradientEdge

    @property
    def lookup(self) -> bool:
        """Whether the weight is a table that rows are taken from."""
        return self.func is F.embedding

    def inputs(self, samples: int) -> Tensor:
        """(samples, groups, p, positions) what is read at each position; it may be a patch."""
        x, weight = self.given["input"].detach(), self.given["weight"]
        if self.lookup:
            x = F.one_hot(x, len(weight)).to(weight.dtype)
        if self.func in (F.linear, torch.addmm, F.embedding):
            flat: Tensor = x.reshape(samples, 1, -1, x.shape[-1])
            return flat.mT
        return self._grouped(x if self.func in _TRANSPOSING else self._patches(x), samples)

    def gradients(self, gradient: Tensor, samples: int) -> Tensor:
        """(samples, groups, q, positions) a gradient at the output, for the same positions."""
        if self.func in (F.linear, torch.addmm, F.embedding):
            return gradient.reshape(samples, 1, -1, gradient.shape[-1]).mT
        if self.func not in _TRANSPOSING:
            return self._grouped(gradient, samples)
        read = self.given["input"].shape[2:]  # what it wrote is to a convolution what it reads
        return self._grouped(self._patches(gradient, read), samples)

    def _grouped(self, x: Tensor, samples: int) -> Tensor:
        """(n * samples, groups * rows, ...) to (samples, groups, rows, n * positions)."""
        each = x.reshape(
            samples, len(x) // samples, self.given.get("groups", 1), -1, x[0, 0].numel()
        )
        return each.permute(0, 2, 3, 1, 4).flatten(3)

    def _patches(self, x: Tensor, positions: Sequence[int] | None = None) -> Tensor:
        """(N, channels * kernel, *positions) what the kernel sees at each position."""
        kernel = self.given["weight"].shape[2:]
        axes = len(kernel)
        stride, dilation = (_each(self.given.get(n, 1), axes) for n in ("stride", "dilation"))
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        sides = _sides(self.given.get("padding", 0), spans)
        x = F.pad(x, [side for pair in reversed(sides) for side in pair])
        for axis in range(axes):
            x = x.unfold(axis + 2, spans[axis], stride[axis])[..., :: dilation[axis]]
        if positions is not None:
            for axis, size in enumerate(positions):
                x = x.narrow(axis + 2, 0, size)
        seen = x.shape[2 : 2 + axes]
        x = x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
        return x.reshape(len(x), -1, *seen)


def _each(value: int | Sequence[int], axes: int) -> Sequence[int]:
    if isinstance(value, int):
        return [value] * axes
    return list(value) * (axes if len(value) == 1 else 1)


def _sides(padding: str | int | Sequence[int], spans: Sequence[int]) -> list[tuple[int, int]]:
    """What is padded before and after, by axis."""
    if padding == "same":
        return [((span - 1) // 2, span // 2) for span in spans]
    if isinstance(padding, str):
        return [(0, 0)] * len(spans)
    return [(p, p) for p in _each(padding, len(spans))]


class Uses(TorchFunctionMode):
    """Collects, while it is entered, the uses of some weights in the order they are made.

    Attributes:
        found: For each weight its uses.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.found: tuple[list[Use], ...] = tuple([] for _ in weights)
        self._uses = {id(w): uses for w, uses in zip(weights, self.found, strict=True)}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and remember it where it reads one of the weights."""
        output = func(*args, **(kwargs or {}))
        names = _ARGUMENTS.get(func)
        if names is not None:
            given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
            uses = self._uses.get(id(given.get("weight")))
            if uses is not None and not output.requires_grad:
                raise ValueError(
                    "the model reads a layer's weight under torch.no_grad, so its Hessian cannot be"
                    " had; let gradients flow, or use 'kl', which needs none"
                )
            if uses is not None:
                uses.append(Use(func, given, get_gradient_edge(output)))
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
