"""Plain torch: 32-bit floats, and bfloat16 where both weight and input may be.

What is narrower is multiplied as floats: integer weights are dequantized once, and 16-bit floats
other than bfloat16, for which few CPUs have instructions, are computed in 32 bits. A quantized
input has no kernel here.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpsearch.formats import Format, Option
from mpsearch.network import Layer
from mpsearch.protocols import Backend
from mpsearch.quant.modules import Stored, class_of
from mpsearch.tracing.sites import is_conv1d_of_transformers


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes a linear layer, and no more: Hugging Face's ``Conv1D`` does."""
    of = class_of(module)
    if of.forward is nn.Linear.forward:
        return True
    if not isinstance(module, Stored):
        return is_conv1d_of_transformers(module)
    return of.__name__ == "Conv1D" and getattr(module, "nf", None) == module.stored_shape[0]


def check_threads(threads: int) -> None:
    """Refuse a negative number of threads by ``ValueError``."""
    if threads < 0:
        raise ValueError(f"threads is {threads}; give 1 or more, or 0 for torch's number")


def checked(x: Tensor, axis: int, wanted: int, layer: str) -> None:
    """Refuse an input that a layer on a CPU's kernel does not read.

    Raises:
        ValueError: Another size along the axis, counted from the last, or another device.
    """
    got = x.shape[axis] if x.dim() >= -axis else None
    if got != wanted:
        raise ValueError(
            f"layer {layer!r} reads {wanted} values along axis {axis}, got an input of shape"
            f" {tuple(x.shape)}"
        )
    if x.device.type != "cpu":
        raise ValueError(
            f"layer {layer!r} runs on a CPU's kernel, got an input on {x.device}; move it with"
            " .cpu(), or quantize for another backend"
        )


def in_place_of(module: nn.Module, kernel: nn.Module) -> nn.Module:
    """The kernel, with what models read of the module it stands for without calling it.

    These are its numbers (``out_features``, ``stride``), and a weight of its shape, type and device
    that is NaN throughout: it is there to be looked at, not to be computed with.
    """
    if getattr(kernel, "weight", None) is None:
        given: Any = module.weight
        kernel.weight = given.new_full((), torch.nan, requires_grad=False).expand(given.shape)
    for name, value in vars(module).items():
        if isinstance(value, int | str | tuple) and not name.startswith("_"):
            vars(kernel).setdefault(name, value)
    return kernel


@dataclass(frozen=True)
class Plain:
    """torch's own float kernels, images with their channels last."""

    def kernel(self, layer: Layer, option: Option, module: Any) -> "Floats | None":
        """The module in floats, its weights those the option's codes stand for."""
        weight, inputs = option.weight, option.activation
        if inputs.quantized:
            return None
        narrow = inputs.base == "bf16" and (weight.quantized or weight.base == "bf16")
        return Floats(floated(module), torch.bfloat16 if narrow else torch.float32)


class Floats(nn.Module):
    """A float module computed in one type, between inputs and outputs of any."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype
        if isinstance(module, nn.Conv2d):
            self.module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        base = "bf16" if dtype is torch.bfloat16 else "fp32"
        self.runs_as = f"{base}/{base}"

    def forward(self, x: Tensor) -> Tensor:
        """What the module computes, in the type of the input; of indices, in its own."""
        if not x.is_floating_point():
            found: Tensor = self.module(x)
            return found
        found = self.module(x.to(self.dtype))
        return found.to(x.dtype)


def floated(module: nn.Module) -> nn.Module:
    """A copy of a module; of a quantized one, with the weight its codes stand for."""
    new = copy.deepcopy(module)
    if not isinstance(new, Stored):
        return new
    made: Any = new
    weight = made.weight
    for name in set(Stored.__annotations__) & set(made._buffers):  # noqa: SLF001  (what it added)
        delattr(made, name)
    made.__class__ = class_of(new)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return cast("nn.Module", made)


def running(backend: Backend, layer: Layer, option: Option, module: nn.Module) -> nn.Module:
    """What a layer really runs on: the backend's kernel, or where it has none, plain torch's.

    Where an input is quantized and there is no kernel, it is read as it is, in 32-bit floats.
    """
    wide = Option({"weight": option.weight, "activation": Format.parse("fp32")})
    for each, given in ((backend, option), (Plain(), option), (Plain(), wide)):
        found: nn.Module | None = each.kernel(layer, given, module)
        if found is not None:
            break
    return cast("nn.Module", found)


def runs_as(kernel: nn.Module, option: Option) -> str:
    """What a kernel says that it multiplies, weight and input; the option where it does not say."""
    return str(getattr(kernel, "runs_as", replace(option, method=None)))
