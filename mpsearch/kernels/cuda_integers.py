"""Linear layers of 8-bit integer inputs and weights, through ``torch._int_mm``.

Codes are multiplied and summed in int32, exactly; codes of fewer bits are held in 8. cuBLAS takes
17 rows and more, and sides that are multiples of 8: what is missing is filled up with zeros.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mpsearch.kernels.cuda_inputs import flattened
from mpsearch.quant.modules import Stored

MOST = 1 << 16  # inputs: 255 * 127 times that is an int32
_LEAST, _SIDE = 17, 8  # rows, and what both sides of a weight are multiples of


class Linear(nn.Module):
    """A linear layer.

    Attributes:
        codes: (out, in) int8, both filled up.
        sums: (out,) int32 of the codes, times the zero point of the input.
        scale: (out,) float32, of the weight times that of the input.
        bias: (out,) float32, or ``None``.
    """

    runs_as = "int8/int8 by _int_mm"
    codes: Tensor
    sums: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, module: Stored, name: str) -> None:
        super().__init__()
        codes, grid = module.stored(), module.grid
        if codes.scale is None or grid is None:
            raise ValueError(f"a module at {str(module.option)!r} has no integers to multiply")
        self.rows, self.columns = codes.codes.shape
        if self.columns > MOST:
            raise ValueError(
                f"layer {name!r} reads {self.columns} inputs, of which int32 holds the sums of"
                f" {MOST} at most; give it 16-bit inputs"
            )
        signed = grid.signed
        self.name, self.zero, self.inverse = name, signed.zero, signed.inverse
        self.low, self.high = signed.low, signed.high
        whole = pad(codes.codes, (0, -self.columns % _SIDE, 0, -self.rows % _SIDE))
        self.register_buffer("codes", whole.contiguous())
        sums = codes.codes.sum(1, dtype=torch.int64) * self.zero
        self.register_buffer("sums", sums.to(torch.int32))
        scale = codes.steps.expand(self.rows) * grid.scale
        self.register_buffer("scale", scale.contiguous())
        given: Any = getattr(module, "bias", None)
        self.register_buffer("bias", None if given is None else given.detach().float().clone())

    def forward(self, x: Tensor) -> Tensor:
        """What the quantized module computes, in the type of the input; NaN for tokens with NaN."""
        flat = flattened(x, self.columns, self.name, self.codes.device).float()
        y = self.products(self.read(flat)).float() * self.scale
        if self.bias is not None:
            y += self.bias
        y.masked_fill_(flat.isnan().any(1, keepdim=True), torch.nan)
        return y.reshape(*x.shape[:-1], self.rows).to(x.dtype)

    def read(self, flat: Tensor) -> Tensor:
        """(tokens, in) int8 codes of an input."""
        scaled = torch.mul(flat, self.inverse).round_()
        return scaled.add_(self.zero).clamp_(self.low, self.high).to(torch.int8)

    def products(self, codes: Tensor) -> Tensor:
        """(tokens, out) int32: codes of the input, less their zero point, times codes."""
        tokens = len(codes)
        filled = pad(codes, (0, -self.columns % _SIDE, 0, max(0, _LEAST - tokens)))
        found: Tensor = torch.ops.aten._int_mm(filled, self.codes.T)  # noqa: SLF001
        return found[:tokens, : self.rows] - self.sums
