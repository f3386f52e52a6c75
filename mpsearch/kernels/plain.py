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
from mpsearch.quant.modules import Stored
from mpsearch.tracing.sites import is_conv1d_of_transformers


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes a linear layer, and no more."""
    of: Any = type(module).__bases__[1] if isinstance(module, Stored) else type(module)
    return of.forward is nn.Linear.forward or is_conv1d_of_transformers(module)


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
    made.__class__ = type(new).__bases__[1]
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
