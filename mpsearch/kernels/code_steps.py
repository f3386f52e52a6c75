"""What integer layers write, and the steps between them: on uint8 codes of a grid, or on floats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from mpsearch.quant.activations import Grid, fake_quantize

_BYTES = Grid(1.0, 0, 0, 255)
Words = tuple[float, int, torch.dtype, str, list[float], str]


@dataclass(frozen=True)
class Output:
    """What a step writes: float32 after a clamp, or the nearest codes.

    Attributes:
        grid: Of codes from 0 to 255; ``None`` for floats.
        least: What floats are first raised to.
        most: What they are then lowered to.
    """

    grid: Grid | None = None
    least: float = -math.inf
    most: float = math.inf

    def clamped(self, least: float, most: float) -> "Output":
        """The same, of floats raised to one bound and then lowered to the other."""
        return replace(
            self,
            least=min(max(self.least, least), most),
            most=min(max(self.most, least), most),
        )

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The least and the largest code: rounding keeps the order, so the clamp may follow it."""
        grid = self.grid or _BYTES
        return grid.code_of(self.least), grid.code_of(self.most)

    @cached_property
    def inverse(self) -> float:
        """That of the grid, computed once."""
        return (self.grid or _BYTES).inverse

    @cached_property
    def words(self) -> Words:
        """What oneDNN is told: scale, zero point, type, and the clamp before them."""
        grid, low, high = self.grid, self.least, self.most
        if grid is not None:
            least, most = self.ends
            low = (least - grid.zero) * grid.scale if least > 0 else -math.inf
            high = (most - grid.zero) * grid.scale if most < 255 else math.inf
        said, bounds = "hardtanh", [low, high]
        if (low, high) in ((-math.inf, math.inf), (0, math.inf)):
            said, bounds = "relu" if low == 0 else "none", []
        finite = torch.finfo(torch.float32).max
        bounds = [min(max(end, -finite), finite) for end in bounds]
        if grid is None:
            return 1.0, 0, torch.float32, said, bounds, ""
        return grid.scale, grid.zero, torch.uint8, said, bounds, ""

    def of(self, values: Tensor) -> Tensor:
        """Floats as they are written."""
        grid = self.grid
        if grid is None:
            free = (self.least, self.most) == (-math.inf, math.inf)
            return values if free else values.clamp(self.least, self.most)
        codes = torch.mul(values, self.inverse).round_()
        if grid.zero:
            codes.add_(grid.zero)
        codes.clamp_(*self.ends)
        return codes.to(torch.int16).to(torch.uint8)  # in one step torch is three times slower


class Sum(nn.Module):
    """The sum of tensors, rounded once: of one alone, the same in another form.

    Attributes:
        grids: Of each tensor's codes; ``None`` where it holds floats.
        out: What is written.
    """

    def __init__(self, grids: Sequence[Grid | None], out: Output) -> None:
        super().__init__()
        self.grids, self.out = tuple(grids), out

    def forward(self, *tensors: Tensor) -> Tensor:
        """The sum."""
        first, *others = (
            x.float() if grid is None else x.float().sub_(grid.zero).mul_(grid.scale)
            for x, grid in zip(tensors, self.grids, strict=True)
        )
        for other in others:
            first = first + other
        found = self.out.of(first)
        if self.out.grid is not None and found.dim() == 4:  # as convolutions read them
            found = found.contiguous(memory_format=torch.channels_last)
        return found


class Rounded(nn.Module):
    """Floats rounded to what a layer without a kernel would have read."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """The nearest values of the grid."""
        return fake_quantize(x, self.grid)
