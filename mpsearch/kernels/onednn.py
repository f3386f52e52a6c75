"""8-bit integers on CPUs: oneDNN through the operators that torch itself brings.

Codes of an input times codes of a weight are summed in int32, exactly, and scaled to float32. Codes
of fewer bits are held in 8, and take the time of 8: no CPU library measured has kernels below.
"""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Option
from mpsearch.kernels.code_steps import Output
from mpsearch.kernels.plain import checked, is_linear
from mpsearch.network import Layer
from mpsearch.quant.activations import Grid
from mpsearch.quant.modules import Stored, class_of

_OPS = torch.ops.onednn
_FLOATS = Output()


@dataclass(frozen=True)
class OneDnn:
    """Linear layers and 2D convolutions whose weight and input are both integers."""

    def kernel(self, layer: Layer, option: Option, module: Any) -> "Integers | None":
        """A quantized module (of :func:`mpsearch.quant.quantize`) on integers.

        There is none for asymmetric or grouped weights, for what is neither linear nor a 2D
        convolution padded with zeros, nor where this CPU's sums are not exact. ``ValueError`` where
        there is one, but the module holds no codes.
        """
        weight, inputs = option.weight.as_weight(), option.activation.as_activation()
        bits = [form.bits for form in (weight, inputs) if form.kind == "int"]
        plain = weight.symmetric and weight.per != "group" and inputs.per == "tensor"
        made = _class(module)
        if len(bits) < 2 or min(bits) < 2 or not plain or made is None or not exact():
            return None
        if not isinstance(module, Stored) or module.grid is None:
            raise ValueError(
                f"layer {layer.name!r} at {str(option)!r}: its module is a"
                f" {type(module).__name__} that holds no codes; give one of mpsearch.quant.quantize"
            )
        return made(module, layer.name)


def _class(module: nn.Module) -> "type[Integers] | None":
    """The kernel of a module's operator; none of a class whose forward does more."""
    if is_linear(module):
        return Linear
    if class_of(module).forward is not nn.Conv2d.forward or module.padding_mode != "zeros":
        return None
    return None if isinstance(module.padding, str) else Conv2d


class Integers(nn.Module):
    """What both kinds share: the codes of the input, and scales of the sum.

    Attributes:
        laid: (out, in, ...) int8 codes of the weight, packed for the operator.
        scale: (out,) float32 scales of the weight.
        bias: (out,) in float32, or ``None``.
    """

    runs_as = "int8/int8"
    reads: tuple[int, int]  # the axis of the inputs, and how many there are

    def __init__(self, module: Stored, name: str) -> None:
        super().__init__()
        self.name = name
        codes, grid = module.stored(), module.grid
        if codes.scale is None or grid is None:
            raise ValueError(f"a module at {str(module.option)!r} has no integers to multiply")
        rows = codes.shape[0]
        self.grid = grid.unsigned  # as the operators read codes
        self.read = Output(self.grid)
        self.scale = codes.scale.float().expand(rows).contiguous()
        self.zeros = torch.zeros(rows, dtype=torch.int64)
        given: Any = getattr(module, "bias", None)
        self.bias: Tensor | None = None if given is None else given.detach().float()
        self.plain = codes.codes.reshape(codes.shape).contiguous()

    def __getstate__(self) -> dict[str, Any]:
        """All but what is packed: that cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "laid"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pack again."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.laid = self.packed()

    def packed(self) -> Tensor:
        """The codes of the weight, as the operator reads them."""
        raise NotImplementedError

    def codes(self, x: Tensor) -> Tensor:
        """The integers an input becomes, as uint8: those of a symmetric grid, moved up by 128."""
        return self.read.of(x.float())

    def forward(self, x: Tensor) -> Tensor:
        """What the quantized module computes, in the type of the input."""
        checked(x, *self.reads, self.name)
        return self.product(self.codes(x)).to(x.dtype)

    def product(self, codes: Tensor, out: Output = _FLOATS) -> Tensor:
        """The scaled sums of codes, and the bias."""
        raise NotImplementedError

    def behind(self, gain: Any, shift: Any) -> "Integers":
        """A kernel of the layer and a gain and a shift for each output behind it."""
        new = copy.copy(self)
        scale, gain, shift = self.scale.double(), torch.as_tensor(gain), torch.as_tensor(shift)
        sign = torch.where(gain < 0, -1, 1).expand(scale.shape)
        new.plain = self.plain * sign.to(torch.int8).reshape(-1, *(1,) * (self.plain.dim() - 1))
        new.scale = (scale * gain.abs()).float()
        own = 0.0 if self.bias is None else self.bias.double()
        new.bias = (own * gain + shift).expand(scale.shape).float().contiguous()
        new.laid = new.packed()
        return new

    def reference(self, codes: Tensor) -> Tensor:
        """What :meth:`product` must be, from the exact sums, in float64."""
        axes = (-1, *(1,) * (self.plain.dim() - 2))
        found = self.sums(codes.double() - self.grid.zero)
        found = found * (self.scale.double() * self.grid.scale).reshape(axes)
        return found if self.bias is None else found + self.bias.double().reshape(axes)

    def sums(self, values: Tensor) -> Tensor:
        """Sums of products, in float64, where integers up to 2^53 are exact."""
        raise NotImplementedError


class Linear(Integers):
    """A linear layer."""

    def __init__(self, module: Stored, name: str) -> None:
        super().__init__(module, name)
        self.reads, self.laid = (-1, self.plain.shape[1]), self.packed()

    def packed(self) -> Tensor:
        """As linear layers read it."""
        made: Tensor = _OPS.qlinear_prepack(self.plain, None)
        return made

    def product(self, codes: Tensor, out: Output = _FLOATS) -> Tensor:
        """(..., out) from (..., in)."""
        grid = self.grid
        if not codes.numel():  # the operator forgets axes of these
            return out.of(self.reference(codes).float())
        found: Tensor = _OPS.qlinear_pointwise(
            codes, grid.scale, grid.zero, self.laid, self.scale, self.zeros, self.bias,
            *out.words,
        )  # fmt: skip
        return found

    def sums(self, values: Tensor) -> Tensor:
        """(..., out) from (..., in)."""
        return F.linear(values, self.plain.double())


class Conv2d(Integers):
    """A convolution of images."""

    def __init__(self, module: Stored, name: str) -> None:
        super().__init__(module, name)
        of: Any = module
        self.moves = [list(of.stride), list(of.padding), list(of.dilation), of.groups]
        self.reads, self.laid = (-3, of.in_channels), self.packed()

    def packed(self) -> Tensor:
        """As convolutions read it."""
        grid = self.grid
        made: Tensor = _OPS.qconv_prepack(
            self.plain, self.scale, grid.scale, grid.zero, *self.moves, None
        )
        return made

    def product(self, codes: Tensor, out: Output = _FLOATS) -> Tensor:
        """(N, out, height, width) from (N, in, height, width)."""
        if codes.dim() == 3:  # one image, alone
            return self.product(codes[None], out)[0]
        grid = self.grid
        found: Tensor = _OPS.qconv2d_pointwise(
            codes, grid.scale, grid.zero, self.laid, self.scale, self.zeros, self.bias,
            *self.moves, *out.words,
        )  # fmt: skip
        return found

    def added(self, codes: Tensor, other: Tensor, of: Grid, out: Output) -> Tensor:
        """Codes of the product and what other codes stand for, written over these."""
        grid, to = self.grid, out.grid
        if to is None:
            raise ValueError("a sum is written over codes; give the grid of its own codes")
        other = other.contiguous(memory_format=torch.channels_last)
        _OPS.qconv2d_pointwise.binary(
            codes, grid.scale, grid.zero, self.laid, self.scale, self.zeros, other, self.bias,
            *self.moves, to.scale, to.zero, torch.uint8, of.scale, of.zero, "sum", 1.0, "none", [],
            "",
        )  # fmt: skip
        return other if out.ends == (0, 255) else other.clamp_(*out.ends)

    def sums(self, values: Tensor) -> Tensor:
        """(N, out, height, width) from (N, in, height, width)."""
        return F.conv2d(values, self.plain.double(), None, *self.moves)


class Fused(nn.Module):
    """A layer that reads codes, and may add other codes, before it writes in its form.

    Attributes:
        over: Whether the sum may be written over the other codes: nothing reads them later.
    """

    def __init__(self, kernel: Integers, out: Output, other: Grid | None = None) -> None:
        super().__init__()
        self.kernel, self.out, self.other, self.over = kernel, out, other, False
        self.runs_as = kernel.runs_as + " + codes" * (other is not None)
        self.runs_as += " to codes" * (out.grid is not None)

    def forward(self, codes: Tensor, other: Tensor | None = None) -> Tensor:
        """What the layer computes of codes."""
        if other is None or self.other is None or not isinstance(self.kernel, Conv2d):
            return self.kernel.product(codes, self.out)
        return self.kernel.added(codes, other if self.over else other.clone(), self.other, self.out)


@cache
def exact() -> bool:
    """Whether this CPU sums products of 8-bit codes exactly: those without VNNI saturate."""
    weight = torch.full((16, 64), -127, dtype=torch.int8)
    one, zero = torch.ones(16), torch.zeros(16, dtype=torch.int64)
    try:
        packed = _OPS.qlinear_prepack(weight, None)
        found = _OPS.qlinear_pointwise(
            torch.full((4, 64), 255, dtype=torch.uint8), 1.0, 0, packed, one, zero, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
    except (AttributeError, RuntimeError):  # a torch without the operators
        return False
    return bool((found == -127.0 * 255 * 64).all())
