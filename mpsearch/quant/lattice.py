"""Integers and what they stand for, weight by weight: where a method of rounding chooses."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, rows_of
from mpsearch.quant.encoding import supported
from mpsearch.quant.input_hessian import as_rows, from_rows
from mpsearch.tracing import output_first


@dataclass(frozen=True, eq=False)
class Lattice:
    """Integers ``low <= q <= high`` that stand for ``(q - zero) scale``.

    Attributes:
        scale: As wide as the weights, or 1 along an axis on which it is the same.
        zero: The same.
        low: A number, or as wide as the weights.
        high: The same.
    """

    scale: Tensor
    zero: Tensor
    low: int | Tensor
    high: int | Tensor

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest integers, in the weight's own type."""
        return self.clamped((weight / self.scale + self.zero).round())

    def clamped(self, codes: Tensor) -> Tensor:
        """The codes between the ends."""
        low, high = (torch.as_tensor(end).to(codes) for end in (self.low, self.high))
        return codes.clamp(low, high)

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for."""
        return (codes - self.zero) * self.scale

    def map(self, change: Callable[[Tensor], Tensor]) -> "Lattice":
        """Each tensor changed: taken apart, or put in another order."""
        low, high = (change(x) if isinstance(x, Tensor) else x for x in (self.low, self.high))
        return Lattice(change(self.scale), change(self.zero), low, high)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a weight and its codes are, and where each row of it meets an input.

    Attributes:
        module: What multiplies by the weight.
        shape: Of the weight as the module stores it.
        first: The same, outputs first.
    """

    module: nn.Module
    shape: tuple[int, ...]
    first: tuple[int, ...]

    @classmethod
    def of(cls, weight: Tensor, module: nn.Module) -> "Layout":
        """Of the weight that a module stores."""
        return cls(module, tuple(weight.shape), tuple(output_first(weight, module).shape))

    def rows(self, codes: Tensor) -> Tensor:
        """(groups, rows, columns) from (out, in * kernel), float64."""
        return as_rows(output_first(codes.reshape(self.first), self.module), self.module)

    def codes(self, rows: Tensor) -> Tensor:
        """(out, in * kernel) from (groups, rows, columns)."""
        back = output_first(from_rows(rows, self.module, self.shape), self.module)
        return back.reshape(rows_of(self.first), -1)


def is_integer(form: Format) -> bool:
    """Whether weights in a format are plain integers with a scale."""
    this = supported(form)
    return this.kind == "int" and this.plain == this and this.base != "int1"


def lattice_of(codes: Codes) -> Lattice:
    """(out, in * kernel) what each code of a weight may be, and stands for.

    Raises:
        ValueError: Codes that are no integers with a scale.
    """
    form = codes.format
    if not is_integer(form):
        raise ValueError(
            f"weights in {str(form)!r} are no plain integers of 2 to 8 bits; round them to nearest"
        )
    zero = torch.zeros_like(codes.steps) if codes.zero is None else codes.zero.float()
    top = (1 << (form.bits - 1)) - 1 if form.symmetric else (1 << form.bits) - 1
    scale, zero = (spread(each, codes) for each in (codes.steps, zero))
    return Lattice(scale, zero, -top if form.symmetric else 0, top)


def with_codes(codes: Codes, chosen: Tensor) -> Codes:
    """The same scales with other integers, (out, in * kernel)."""
    return replace(codes, codes=chosen.to(codes.codes.dtype).contiguous())


def spread(each: Tensor, codes: Codes) -> Tensor:
    """(out, in * kernel) a number for each weight, from one for each scale."""
    shape = tuple(codes.codes.shape)
    if codes.format.per == "tensor":
        return each.expand(shape)
    if codes.format.per == "channel":
        return each[:, None].expand(shape)
    group = min(codes.format.group or 1, shape[1])
    wide = each.reshape(shape[0], -1).repeat_interleave(group, 1)
    return wide[:, : shape[1]]
