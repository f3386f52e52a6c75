"""Inputs in formats that are no integers: tables, blocks and fixed point.

A table's scale, and the parameter its format leaves to a tensor (LLM-FP4's split, NUPES' exponent,
AdaLog's base), are chosen once on what calibration saw. Blocks take theirs from every input as it
comes; fixed point has none. Gradients pass straight through what is not clipped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mpsearch.families import fixed
from mpsearch.formats import Format
from mpsearch.quant import blocks, fixed_point, lookup, powers
from mpsearch.quant.clipping import clip
from mpsearch.quant.lookup import Table, table
from mpsearch.quant.recipe import ActivationRanges

KINDS = ("float", "lookup", "power", "exponent", "log", "ternary", "binary", "fixed", "block")
_TRIED = 4  # tables whose range is searched: the best of all at the whole range


class Rounding(Protocol):
    """Rounds inputs."""

    def rounded(self, x: Tensor) -> Tensor:
        """What the input's codes stand for, in its type."""
        ...

    def buffers(self) -> dict[str, Tensor]:
        """What calibration found, by field."""
        ...


@dataclass(frozen=True, eq=False)
class Levels:
    """Values a tensor may take, from the least up, and the largest input of each but the last."""

    values: Tensor
    bounds: Tensor

    def rounded(self, x: Tensor) -> Tensor:
        """The values of the intervals that inputs lie in."""
        return _straight(x, self.values[self.codes(x).long()], self.values[0], self.values[-1])

    def codes(self, x: Tensor) -> Tensor:
        """Places of the values, as int16."""
        return torch.bucketize(x.detach().float().contiguous(), self.bounds).to(torch.int16)

    def buffers(self) -> dict[str, Tensor]:
        """Both."""
        return {"values": self.values, "bounds": self.bounds}


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks along an axis, each with a scale of its own."""

    base: str
    axis: int
    size: int
    whole: Tensor

    def rounded(self, x: Tensor) -> Tensor:
        """What codes and scales of the blocks stand for."""
        last = x.detach().float().movedim(self.axis, -1)
        padded = torch.nn.functional.pad(last, (0, -last.shape[-1] % self.size))
        rows = padded.reshape(-1, self.size)
        whole = self.whole if self.base == "nvfp4" else None
        codes, scale = blocks.quantized(rows, self.base, "minmax", whole)
        found = blocks.element(self.base).value(codes)
        found = found * blocks.scales(scale, whole)[:, None]
        found = found.reshape(padded.shape)[..., : last.shape[-1]].movedim(-1, self.axis)
        return _straight(x, found, found.new_tensor(-torch.inf), found.new_tensor(torch.inf))

    def buffers(self) -> dict[str, Tensor]:
        """The scale of the tensor."""
        return {"whole": self.whole}


@dataclass(frozen=True)
class Fixed:
    """Fixed point, which knows no range."""

    base: str

    def rounded(self, x: Tensor) -> Tensor:
        """What the codes stand for."""
        bits, fraction, _, _ = fixed(self.base)
        step, top = 2.0**-fraction, float(1 << (bits - 1))
        found = fixed_point.integers(x.detach(), self.base).double() * step
        return _straight(x, found, found.new_tensor(-top * step), found.new_tensor(top * step))

    def buffers(self) -> dict[str, Tensor]:
        """None."""
        return {}


def supported(form: Format) -> bool:
    """Whether inputs are rounded to a format here."""
    this = form.as_activation()
    known = this.kind in KINDS and this.base != "binary2"
    return known and (this.kind == "block" or this.per == "tensor")


def calibrated(
    form: Format,
    values: Tensor,
    counts: Tensor,
    *,
    ranges: ActivationRanges = "mse",
    percent: float = 99.9,
    axis: int = -1,
) -> Rounding:
    """How inputs like these ``values``, each seen ``counts`` times, are rounded to a format.

    Blocks run along ``axis``.
    """
    size = values.abs()
    peak = size.max() if values.numel() else torch.tensor(0.0)
    if form.kind == "fixed":
        return Fixed(form.base)
    if form.kind == "block":
        whole = blocks.whole_of(peak, form.base)
        return Blocks(form.base, axis, form.group or 1, torch.ones(()) if whole is None else whole)
    low = values.min().clamp_max(0) if form.kind == "log" and values.numel() else torch.zeros(())
    if ranges == "percentile" and values.numel():
        peak = torch.quantile(size if form.kind != "log" else values - low, percent / 100)
    elif form.kind == "log":
        peak = (values.max() if values.numel() else peak) - low
    if peak <= 0:
        return _scaled(next(iter(tables(form).values())), torch.tensor(1.0), low)
    return _searched(form, values, counts, low, peak, search=ranges == "mse")


def made(rounding: Rounding, buffers: Mapping[str, Tensor]) -> Rounding:
    """The same with what its buffers hold."""
    fields: Any = dict(buffers)
    same: Any = rounding
    return replace(same, **fields)  # type: ignore[no-any-return]


def channel_axis(module: nn.Module) -> int:
    """The axis of a module's input that its weight sums over."""
    convolution = isinstance(module, nn.modules.conv._ConvNd)  # noqa: SLF001
    return -1 - len(module.kernel_size) if convolution else -1  # type: ignore[arg-type]


@cache
def tables(form: Format) -> Mapping[int, Table]:
    """The tables a format may choose between."""
    if form.kind == "log":
        bits = form.bits
        if form.base.startswith("logr"):
            root = powers.ROOT
            return {0: table(powers.of_base(bits, root), powers.base_bounds(bits, root))}
        known = powers.bases(bits)
        return {q: table(powers.of_base(bits, q), powers.base_bounds(bits, q)) for q in known}
    if form.kind == "binary":
        below = torch.nextafter(torch.zeros(1), torch.tensor(-1.0))
        return {0: table(torch.tensor([-1.0, 1.0]), below)}
    if form.kind == "ternary":
        return {0: table(torch.tensor([0.0, 1.0, torch.nan, -1.0]))}
    return lookup.tables(form)


def _searched(
    form: Format, values: Tensor, counts: Tensor, low: Tensor, peak: Tensor, *, search: bool
) -> Levels:
    """The table and the range of the least squared error."""

    def error(by: Table, most: Tensor) -> Tensor:
        found = _scaled(by, most / by.top, low).rounded(values)
        return ((found - values).double().square() * counts).sum()[None].float()

    known = list(tables(form).values())
    if len(known) > 1:
        known = sorted(known, key=lambda by: float(error(by, peak)))[: _TRIED if search else 1]
    shares = [torch.ones(1)] * len(known)
    if search:
        shares = [clip(lambda s, by=by: error(by, peak * s[0]), 1, 1, values)[0] for by in known]  # type: ignore[misc]
    ranked = zip(known, shares, strict=True)
    by, share = min(ranked, key=lambda pair: float(error(pair[0], peak * pair[1])))
    return _scaled(by, (peak * share).squeeze() / by.top, low)


def _scaled(by: Table, scale: Tensor, low: Tensor) -> Levels:
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    device = scale.device
    values = by.values.to(device)[by.codes.long().to(device)]
    return Levels(values * scale + low, by.bounds.to(device) * scale + low)


class _Straight(torch.autograd.Function):
    """Values in the forward pass; the gradient where inputs are within the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: Tensor, within: Tensor) -> Tensor:
        """The values."""
        ctx.save_for_backward(within)
        return found.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient where nothing was clipped."""
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None, None


def _straight(x: Tensor, found: Tensor, low: Tensor, high: Tensor) -> Tensor:
    made: Tensor = _Straight.apply(x, found, (x >= low) & (x <= high))  # type: ignore[no-untyped-call]
    return made
