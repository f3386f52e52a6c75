"""Inputs as integers: one static grid for each tensor, calibrated once.

Calibration keeps a sample of what each layer reads, with the extremes of every input, so that the
grid of any format follows without another run. Zero is always on the grid: what a ReLU wrote gets
its zero point at the end of the codes.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant import inputs
from mpsearch.quant.clipping import clip
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.tails import Tails

_SAMPLE = 1 << 15  # values kept for each layer
_UNTOUCHED = "16 and 32 bits leave inputs as they are"


@dataclass(frozen=True)
class Grid:
    """Codes ``clamp(round(x / scale) + zero, low, high)``, read as ``(code - zero) * scale``.

    ``other`` is what rounds instead where the format is of no integers.
    """

    scale: float
    zero: int
    low: int
    high: int
    other: inputs.Rounding | None = None

    @property
    def inverse(self) -> float:
        """Steps in 1, in float32: what kernels multiply by."""
        return float(torch.tensor(1.0) / torch.tensor(self.scale))

    @property
    def unsigned(self) -> "Grid":
        """The same values with codes that fit in an unsigned byte."""
        return self._moved(128 if self.low < 0 else 0)

    @property
    def signed(self) -> "Grid":
        """The same values with codes that fit in a signed byte."""
        return self._moved(-128 if self.low >= 0 else 0)

    def _moved(self, up: int) -> "Grid":
        return Grid(self.scale, self.zero + up, self.low + up, self.high + up)

    def code_of(self, end: float) -> int:
        """The code of the least or largest float there can be, which may be infinite."""
        if math.isinf(end):
            return self.low if end < 0 else self.high
        exact = round(float(torch.tensor(end) / torch.tensor(self.scale))) + self.zero
        return min(max(exact, self.low), self.high)


def fake_quantize(x: Tensor, grid: Grid) -> Tensor:
    """The nearest values on the grid; the gradient passes straight through what is not clipped."""
    if grid.other is not None:
        return grid.other.rounded(x)
    quantized: Tensor = torch.fake_quantize_per_tensor_affine(
        x.float(), grid.scale, grid.zero, grid.low, grid.high
    )
    return quantized.to(x.dtype)


def codes(x: Tensor, grid: Grid) -> Tensor:
    """The integers an input becomes, as int16; ``ValueError`` where the grid is of none."""
    if grid.other is not None:
        raise ValueError("inputs in this format become no integers; give int2 to int8")
    return (
        ((x.float() * grid.inverse).round() + grid.zero).clamp(grid.low, grid.high).to(torch.int16)
    )


def supported(form: Format) -> Format:
    """The format as an input's, if it can be rounded to here; ``ValueError`` if not."""
    this = form.as_activation()
    integer = this.kind == "int" and this.bits > 1 and this.per == "tensor"
    if this.kind == "full" or integer or inputs.supported(form):
        return this
    raise ValueError(
        f"cannot quantize inputs to {str(form)!r}; supported are int2 to int8 (with suffix a or s),"
        " floats, log4, pot4, power4, nf4t and their like per tensor, blocks, fixed point, and"
        f" {_UNTOUCHED}: fp16, bf16, fp32"
    )


@dataclass(eq=False)
class Seen:
    """What one layer read during calibration.

    Attributes:
        low: Least value.
        high: Largest value.
        count: Values seen.
        body: Evenly spaced samples of them.
        tails: Least and largest value of every sample, or of runs of them.
    """

    low: float = 0.0
    high: float = 0.0
    count: int = 0
    body: list[Tensor] = field(default_factory=list)
    tails: Tails = field(default_factory=Tails)

    def add(self, x: Tensor, batches: float) -> None:
        """Look at one input, of which as many as ``batches`` of its size come; NaN is an error.

        However a calibration set is split into batches, the same values are kept.
        """
        if x.numel() == 0:
            return
        flat = x.detach().float().flatten()
        ends = torch.stack(x.detach().float().reshape(len(x) if x.dim() else 1, -1).aminmax(dim=1))
        low, high = float(ends[0].min()), float(ends[1].max())
        if not torch.isfinite(ends).all():
            raise ValueError("its input holds NaN or infinity on the calibration batches")
        self.low, self.high = min(self.low, low), max(self.high, high)
        step = max(1, -(-round(len(flat) * batches) // _SAMPLE))
        self.body.append(flat[(step // 2 - self.count) % step :: step].clone())
        self.count += len(flat)
        self.tails.add(ends)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Values that were seen, and how often each stands for one."""
        if not self.body:
            return torch.empty(0), torch.empty(0)
        values = torch.cat([*self.body, self.tails.values()])
        counts = torch.ones_like(values)
        sampled = max(1, sum(map(len, self.body)))
        counts[:sampled] = self.count / sampled
        return values, counts

    def grid(self, form: Format, recipe: Recipe, axis: int = -1) -> Grid | None:
        """The grid a format gets, or ``None`` where it leaves inputs as they are.

        Blocks run along ``axis``.
        """
        this = supported(form)
        if this.kind == "full":
            return None
        if this.kind != "int":
            ranges, percent = recipe.activation_ranges, recipe.percentile
            other = inputs.calibrated(
                this, *self.sample(), ranges=ranges, percent=percent, axis=axis
            )
            return Grid(1.0, 0, 0, 0, other)
        top = (1 << (this.bits - 1)) - 1 if this.symmetric else (1 << this.bits) - 1
        if this.symmetric:
            low, high = -max(-self.low, self.high), max(-self.low, self.high)
        else:
            low, high = self.low, self.high
        if recipe.activation_ranges == "percentile":
            low, high = self._percentile(recipe.percentile, symmetric=bool(this.symmetric))
        elif recipe.activation_ranges == "mse":
            low, high = self._clipped(low, high, top, symmetric=bool(this.symmetric))
        return _grid(low, high, top, symmetric=bool(this.symmetric))

    def _percentile(self, percent: float, *, symmetric: bool) -> tuple[float, float]:
        """Both ends where outside them lie ``100 - percent`` percent, of one tail or the other."""
        if not self.body:
            return 0.0, 0.0
        body = torch.cat(self.body)
        if symmetric:
            high = float(torch.quantile(body.abs(), percent / 100))
            return -high, high
        ends = torch.tensor([1 - percent / 100, percent / 100], device=body.device)
        low, high = torch.quantile(body, ends).tolist()
        return min(low, 0.0), max(high, 0.0)

    def _clipped(
        self, low: float, high: float, top: int, *, symmetric: bool
    ) -> tuple[float, float]:
        """Both ends of the least squared error."""
        if not self.body or low == high:
            return low, high
        values, weights = self.sample()

        def error(shares: Tensor) -> Tensor:
            ends = low * float(shares[0, 0]), high * float(shares[-1, 0])
            rounded = fake_quantize(values, _grid(*ends, top, symmetric=symmetric))
            return ((rounded - values).square_() * weights).sum(dtype=torch.float64)[None].float()

        shares = clip(error, 1 if symmetric or low == 0 or high == 0 else 2, 1, values)
        return low * float(shares[0, 0]), high * float(shares[-1, 0])


def _grid(low: float, high: float, top: int, *, symmetric: bool) -> Grid:
    """The grid that covers low to high, zero among its points."""
    least = torch.finfo(torch.float32).tiny
    if symmetric:
        scale = max(high / top, least) if high > 0 else 1.0
        return Grid(_single(scale), 0, -top, top)
    scale = _single(max((high - low) / top, least) if high > low else 1.0)
    return Grid(scale, min(max(round(-low / scale), 0), top), 0, top)


def _single(value: float) -> float:
    """Rounded to float32, as it is stored."""
    return float(torch.tensor(value, dtype=torch.float32))
