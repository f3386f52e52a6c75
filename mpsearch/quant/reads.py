"""Operations that read a weight, as they happen, and what the weight meets in each.

A convolution is a matrix product with patches of what it reads (im2col); one with groups is one
product for each. A transposed one is a convolution of what it reads with zeros in between.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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
_FLAT = (F.linear, torch.addmm, F.embedding)


@dataclass(frozen=True, eq=False)
class Read:
    """One time a weight met a tensor.

    Attributes:
        func: The operation.
        given: Its arguments by name.
    """

    func: Any
    given: Mapping[str, Any]

    @property
    def lookup(self) -> bool:
        """Whether the weight is a table that rows are taken from."""
        return self.func is F.embedding

    @property
    def channels(self) -> int:
        """The axis of the output that has a channel for each row of the weight, from the end."""
        return -1 if self.func in _FLAT else 1 - self.given["weight"].dim()

    def again(self, **changed: Any) -> Tensor:
        """What the operation returns by now, with some arguments changed."""
        given = {"bias": None, **self.given, **changed}
        first = [given.pop(name) for name in _ARGUMENTS[self.func][:3]]  # some know other names
        output: Tensor = self.func(*first, **given)
        return output

    def inputs(self, samples: int) -> Tensor:
        """(samples, groups, p, positions) what is read at each position; it may be a patch."""
        x, weight = self.given["input"].detach(), self.given["weight"]
        if self.lookup:
            x = F.one_hot(x, len(weight)).to(weight.dtype)
        if self.func in _FLAT:
            flat: Tensor = x.reshape(samples, 1, -1, x.shape[-1])
            return flat.mT
        return self._grouped(self._patches(x), samples)

    def gradients(self, gradient: Tensor, samples: int) -> Tensor:
        """(samples, groups, q, positions) a gradient at the output, for the same positions."""
        if self.func in _FLAT:
            return gradient.reshape(samples, 1, -1, gradient.shape[-1]).mT
        return self._grouped(gradient, samples)

    def _grouped(self, x: Tensor, samples: int) -> Tensor:
        """(n * samples, groups * rows, ...) to (samples, groups, rows, n * positions)."""
        each = x.reshape(
            samples, len(x) // samples, self.given.get("groups", 1), -1, x[0, 0].numel()
        )
        return each.permute(0, 2, 3, 1, 4).flatten(3)

    def _patches(self, x: Tensor) -> Tensor:
        """(N, channels * kernel, *positions) what the kernel sees at each position."""
        kernel = self.given["weight"].shape[2:]
        axes = len(kernel)
        stride, dilation, more = (
            _each(self.given.get(name, least), axes)
            for name, least in (("stride", 1), ("dilation", 1), ("output_padding", 0))
        )
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        sides = _sides(self.given.get("padding", 0), spans)
        transposed = self.func in _TRANSPOSING
        if transposed:
            x, stride = _apart(x, stride), [1] * axes
            pairs = zip(spans, sides, more, strict=True)
            sides = [(span - 1 - a, span - 1 - b + out) for span, (a, b), out in pairs]
        x = F.pad(x, [side for pair in reversed(sides) for side in pair])
        for axis in range(axes):
            x = x.unfold(axis + 2, spans[axis], stride[axis])[..., :: dilation[axis]]
        if transposed:  # its kernel is met from the other end
            x = x.flip([*range(2 + axes, 2 + 2 * axes)])
        seen = x.shape[2 : 2 + axes]
        x = x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
        return x.reshape(len(x), -1, *seen)


def _apart(x: Tensor, stride: Sequence[int]) -> Tensor:
    """With zeros between its positions."""
    wide = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    found = x.new_zeros(*x.shape[:2], *wide)
    every: Any = [slice(None, None, step) for step in stride]
    found[(..., *every)] = x
    return found


def read_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Read | None:
    """What an operation reads by a weight, if it is of a kind that does."""
    names = _ARGUMENTS.get(func)
    if names is None:
        return None
    return Read(func, dict(zip(names, args, strict=False)) | dict(kwargs or {}))


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


class Reads(TorchFunctionMode):
    """Hands on, while it is entered, each operation that reads one of some weights.

    That is the layer's own operation, also where a subclass pads before or activates after. What
    is returned for its output is what the model goes on with.
    """

    def __init__(
        self, weights: Mapping[int, Any], seen: Callable[[Any, Read, Tensor], Tensor]
    ) -> None:
        """``weights`` are names by the id of a weight; ``seen`` is called with one of them."""
        super().__init__()
        self._weights, self._seen = weights, seen

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, and hand it on where it reads one of the weights."""
        output = func(*args, **(kwargs or {}))
        read = read_of(func, args, kwargs)
        name = None if read is None else self._weights.get(id(read.given.get("weight")))
        return output if read is None or name is None else self._seen(name, read, output)
