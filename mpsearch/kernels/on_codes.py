"""A network that runs as a list of steps, most of them on codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule


@dataclass(frozen=True)
class Input:
    """What a network was captured for: a type, and the sides of a shape, ``None`` where free."""

    sides: tuple[int | None, ...]
    dtype: torch.dtype

    def takes(self, x: Any) -> bool:
        """Whether a tensor is such an input."""
        return (
            isinstance(x, Tensor)
            and (x.dtype, x.dim()) == (self.dtype, len(self.sides))
            and all(want in (None, side) for side, want in zip(x.shape, self.sides, strict=True))
        )

    def __str__(self) -> str:
        sides = ", ".join("samples" if side is None else str(side) for side in self.sides)
        return f"({sides}) in {self.dtype}"


class OnCodes(nn.Module):
    """A network whose tensors stay codes where they can.

    Attributes:
        steps: What runs.
        inputs: By name, in order.
        layers: Module name to what its kernel multiplies, and whether it writes codes.
        others: What runs beside the layers, and how often.
    """

    def __init__(
        self,
        steps: GraphModule,
        inputs: Mapping[str, Input],
        layers: Mapping[str, str],
        others: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.steps, self.inputs = steps, dict(inputs)
        self.layers, self.others = dict(layers), dict(others)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network computes; ``ValueError`` for inputs it was not captured for."""
        given = dict(zip(self.inputs, args, strict=False)) | kwargs
        if len(args) + len(kwargs) != len(self.inputs) or given.keys() != self.inputs.keys():
            raise ValueError(
                f"the network was captured for the inputs {', '.join(self.inputs)}; got"
                f" {len(args)} by position, and {', '.join(kwargs) or 'none'} by name"
            )
        for name, wanted in self.inputs.items():
            x = given[name]
            if not wanted.takes(x):
                got = Input(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x)
                raise ValueError(
                    f"input {name!r} is {got}; the network was captured for {wanted}: give it that,"
                    " or run it layer by layer, on 'torch-cpu'"
                )
        return self.steps(*(given[name] for name in self.inputs))
