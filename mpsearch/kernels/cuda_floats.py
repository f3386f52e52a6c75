"""Linear layers of ``fp8_e4m3`` inputs and weights, through ``torch._scaled_mm``.

Products are summed in 32-bit floats, then scaled. An input is put on its scale and rounded by the
hardware's own conversion: one that lies within a rounding of the middle between two codes may get
the other of the two. Sides are filled up with zeros to multiples of 16, which the product wants.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mpsearch.kernels.cuda_inputs import flattened
from mpsearch.quant.floats import values
from mpsearch.quant.inputs import Levels
from mpsearch.quant.modules import Stored

_TYPE, _SIDE = torch.float8_e4m3fn, 16
_TOP = float(torch.finfo(_TYPE).max)


class Linear(nn.Module):
    """A linear layer.

    Attributes:
        codes: (out, in) fp8, both filled up.
        scale: (out,) float32, of the weight times that of the input.
        one: A scale of 1, which the product wants.
        bias: (out,) float32, or ``None``.
    """

    runs_as = "fp8_e4m3/fp8_e4m3 by _scaled_mm"
    codes: Tensor
    scale: Tensor
    one: Tensor
    bias: Tensor | None

    def __init__(self, module: Stored, name: str) -> None:
        super().__init__()
        codes, levels = module.stored(), module.grid and module.grid.other
        if codes.scale is None or not isinstance(levels, Levels):
            raise ValueError(f"a module at {str(module.option)!r} has no fp8 inputs to multiply")
        self.name, (self.rows, self.columns) = name, codes.codes.shape
        whole = pad(codes.codes, (0, -self.columns % _SIDE, 0, -self.rows % _SIDE))
        self.register_buffer("codes", whole.contiguous().view(_TYPE))
        step = float(levels.values[-1]) / _TOP
        self.inverse = _TOP / float(levels.values[-1])
        shared = 2.0 ** -int(torch.log2(values("fp8_e4m3").nan_to_num().max()))
        scale = codes.steps.expand(self.rows) * (shared * step)
        self.register_buffer("scale", scale.contiguous())
        self.register_buffer("one", torch.ones((), device=whole.device))
        given: Any = getattr(module, "bias", None)
        self.register_buffer("bias", None if given is None else given.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """What the quantized module computes, in the type of the input."""
        flat = flattened(x, self.columns, self.name, self.codes.device)
        y = self.products(self.read(flat)) * self.scale
        if self.bias is not None:
            y += self.bias
        return y.reshape(*x.shape[:-1], self.rows).to(x.dtype)

    def read(self, flat: Tensor) -> Tensor:
        """(tokens, in) fp8 of an input; NaN stays NaN, what is beyond the range is clipped."""
        return torch.mul(flat.float(), self.inverse).clamp_(-_TOP, _TOP).to(_TYPE)

    def products(self, codes: Tensor) -> Tensor:
        """(tokens, out) in float32, before any scale."""
        tokens = len(codes)
        if not tokens:
            return self.scale.new_empty(0, self.rows)
        filled = codes.new_zeros(tokens + -tokens % _SIDE, self.codes.shape[1])
        filled[:tokens, : self.columns] = codes
        found: Tensor = torch.ops.aten._scaled_mm(  # noqa: SLF001  (it has no other name)
            filled, self.codes.T, self.one, self.one, out_dtype=torch.float32
        )
        return found[:tokens, : self.rows]
