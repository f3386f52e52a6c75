"""Linear layers of bfloat16 inputs and 4-bit weights by group, through torch's tinygemm.

It reads scales and offsets in bfloat16 and computes each weight in bfloat16: weights are within a
32nd of a step of what their codes stand for, and within a 16th where asymmetric. It is made for few
tokens; at hundreds torch's own bfloat16 product is faster.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.kernels.cuda_inputs import flattened
from mpsearch.kernels.weight_codes import unsigned
from mpsearch.quant.modules import Stored

GROUPS = (32, 64, 128, 256)
_HALF = 8  # the code that stands for the offset
_ROWS, _TILE = 8, 16  # what rows are a multiple of; inputs of an inner tile


def takes(option: Option, module: nn.Module) -> bool:
    """Whether it has a kernel for the weight of a quantized linear module, as it is."""
    form = option.weight.as_weight()
    if not isinstance(module, Stored) or form.base != "int4" or form.group not in GROUPS:
        return False
    rows, columns = module.stored_shape
    whole = columns % form.group == 0 and rows % _ROWS == 0
    return whole and form.plain == form and option.activation.base == "bf16"


class Linear(nn.Module):
    """A linear layer.

    Attributes:
        codes: As the product orders them.
        scales: (groups, out, 2) bfloat16: a scale, and what code 8 stands for.
        bias: (out,) bfloat16, or ``None``.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, module: Stored, name: str) -> None:
        super().__init__()
        codes = module.stored()
        self.name, self.group = name, codes.format.group or 0
        self.rows, self.columns = codes.codes.shape
        step = codes.steps
        offset = (
            torch.zeros_like(step) if codes.zero is None else (_HALF - codes.zero.float()) * step
        )
        both = torch.stack([step, offset], -1).reshape(self.rows, -1, 2)
        self.register_buffer("scales", both.transpose(0, 1).contiguous().bfloat16())
        self.register_buffer("codes", _packed(unsigned(codes)))
        given: Any = getattr(module, "bias", None)
        self.register_buffer("bias", None if given is None else given.detach().bfloat16())
        self.runs_as = f"{module.option.weight}/bf16 by tinygemm"

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., in), in the type of the input."""
        flat = flattened(x, self.columns, self.name, self.codes.device).bfloat16().contiguous()
        given = (flat, self.codes, self.group, self.scales)
        if not len(flat):
            y = flat.new_empty(0, self.rows)
        elif flat.is_cuda:
            y = torch.ops.aten._weight_int4pack_mm(*given)  # noqa: SLF001  (it has no other name)
        else:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(*given)  # noqa: SLF001
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.rows).to(x.dtype)


def _packed(codes: Tensor) -> Tensor:
    """(out, in) codes as the product of their device orders them."""
    if not codes.is_cuda:  # torch has one of CPUs, too, by which the rest can be tested
        plain: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 2)  # noqa: SLF001
        return plain
    inner = next(n for n in (8, 4, 2) if codes.shape[1] % (n * _TILE) == 0)
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    found: Tensor = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), inner)  # noqa: SLF001
    return found
