"""Linear layers of 16-bit inputs and packed integer weights, on the Triton kernels.

Weights are read once as stored, exactly their bits, and multiplied on tensor cores with sums in
32-bit floats, in which a subnormal scale may count as zero. A call is one launch and repeats to the
bit. Above 64 tokens the weight is written out in 16 bits first, and torch multiplies. One module
serves one stream at a time: its programs count one another.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.kernels.cuda_inputs import flattened
from mpsearch.kernels.triton_fields import instructions
from mpsearch.kernels.triton_layout import ROWS, Layout, shifts
from mpsearch.kernels.weight_codes import unsigned
from mpsearch.quant.modules import Stored

TOKENS, MOST = 16, 64  # of a program; of a launch
_SPLIT = 16  # programs that share outputs, at most
_STAGES = {1: 4, 2: 4, 4: 4}  # loops of a pipeline, by bits; else 3
_REGISTERS = 128  # of a thread: with these, 4 programs fit on a multiprocessor


class Linear(nn.Module):
    """A linear layer.

    Attributes:
        words: The codes, as :class:`~mpsearch.kernels.triton_layout.Layout` orders them.
        scales: (row blocks, scales, 128) fp16 or bf16.
        zeros: The same of int8; empty where symmetric.
        bias: (out,) in float32, or ``None``.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None
    arrived: Tensor

    def __init__(self, module: Stored, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        codes = module.stored()
        self.name, self.dtype, self.layout = name, dtype, Layout.of(codes)
        if codes.scale is None:
            raise ValueError(f"layer {name!r} has no scales, so no integers to multiply")
        away = shifts(codes)
        self.register_buffer("words", self.layout.words(unsigned(codes)))
        self.register_buffer("scales", self.layout.by_group(codes.scale))
        none = torch.empty(0, dtype=torch.int8, device=codes.codes.device)
        self.register_buffer("zeros", none if away is None else self.layout.by_group(away))
        given: Any = getattr(module, "bias", None)
        self.register_buffer("bias", None if given is None else given.detach().float().clone())
        count = len(self.words) * (MOST // TOKENS)
        arrived = torch.zeros(count, dtype=torch.int32, device=codes.codes.device)
        self.register_buffer("arrived", arrived, persistent=False)
        option = f"{module.option.weight}/{module.option.activation}"
        self.runs_as = f"{option} by Triton, dequantized above {MOST} tokens"

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., in), in the type of the input."""
        of = self.layout
        flat = flattened(x, of.columns, self.name, self.words.device).to(self.dtype).contiguous()
        if len(flat) > MOST:
            bias = None if self.bias is None else self.bias.to(self.dtype)
            y = F.linear(flat, self.dequantized(), bias)
        else:
            y = self.decoded(flat)
        return y.reshape(*x.shape[:-1], of.rows).to(x.dtype)

    def decoded(self, x: Tensor) -> Tensor:
        """(tokens, out) of at most 64 tokens, read where they lie."""
        of, tokens = self.layout, len(x)
        y = torch.empty(tokens, of.rows, dtype=self.dtype, device=x.device)
        if not tokens:
            return y
        split = shares(of.blocks, len(self.words), processors(x.device))
        each = -(-of.blocks // split)
        split = -(-of.blocks // each)
        parts = torch.empty(split * tokens * of.rows * (split > 1), device=x.device)
        with torch.cuda.device_of(x):
            kernels().decode[(len(self.words), split, -(-tokens // TOKENS))](
                *(x, self.words, self.scales, self.zeros, self.bias, y, parts, self.arrived),
                *(tokens, of.rows, of.columns, of.scales, of.blocks, each),
                **self._constants(),
                TOKENS=TOKENS,
                SPLIT=split,
                EVEN=of.padded == of.group and of.columns == of.blocks * of.block,
                BIAS=self.bias is not None,
                STAGES=_STAGES.get(of.bits, 3),
                maxnreg=_REGISTERS,
                num_warps=4,
                enable_fp_fusion=True,
            )
        return y

    def dequantized(self) -> Tensor:
        """(out, in) what the codes stand for, rounded to 16 bits once."""
        of = self.layout
        found = torch.empty(of.rows, of.columns, dtype=self.dtype, device=self.words.device)
        with torch.cuda.device_of(found):
            kernels().dequantize[(len(self.words), of.blocks)](
                *(self.words, self.scales, self.zeros, found),
                *(of.rows, of.columns, of.scales, of.blocks),
                **self._constants(),
                num_warps=4,
                enable_fp_fusion=True,
            )
        return found

    def _constants(self) -> Mapping[str, Any]:
        return constants(
            self.layout, self.dtype if self.words.is_cuda else None, self.zeros.numel()
        )


@cache
def constants(of: Layout, dtype: torch.dtype | None, zeros: int) -> Mapping[str, Any]:
    """What both kernels are compiled for; without a type, without instructions of a GPU."""
    lines = [
        (f"{p.bits}|{p.tile}|{p.offset:g}|{p.factor:g}", *(instructions(p, dtype) if dtype else ()))
        for p in of.planes
    ]
    return {
        "GROUP": of.group,
        "PADDED": of.padded,
        "WIDTH": of.width,
        "SLICES": of.slices,
        "TILES": of.tiles,
        "PLANES": "\n".join(map("|".join, lines)),
        "ROWS": ROWS,
        "ZEROS": zeros > 0,
    }


def shares(blocks: int, row_blocks: int, count: int) -> int:
    """In how many parts the inputs are shared out: 4 programs a processor, 2 blocks each."""
    return max(1, min(_SPLIT, 4 * count // row_blocks, blocks // 2))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; of Triton's interpreter, which has none, 1."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def kernels() -> Any:
    """The module of kernels, which imports Triton.

    Raises:
        RuntimeError: Triton is not installed.
    """
    try:
        from mpsearch.kernels import triton_decode
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RuntimeError(
            "weights of few bits run on Triton kernels here, and triton is not installed; install"
            " mpsearch[cuda]"
        ) from None
    return triton_decode
