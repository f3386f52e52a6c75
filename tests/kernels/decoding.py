"""Packed weights on the Triton kernels, beside what their codes stand for."""

from typing import Any

import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.kernels.cuda_decode import Linear
from mpsearch.quant.encoding import encode
from mpsearch.quant.modules import store

WEIGHTS = [
    *(f"int{bits}" for bits in range(1, 9)),
    *(f"int{bits}g128" for bits in (1, 2, 3, 4, 8)),
    *"int1a int2ag32 int3g32 int4g64a int5t int6g7 int8g96a ternary ternarymg48 binaryg32".split(),
]
WEIGHTS = [name.replace("ag32", "g32a") for name in WEIGHTS]
LAST_BITS = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-23}


def stored(name: str, rows: int, columns: int, *, bias: bool = True, size: float = 1.0) -> Any:
    """A quantized linear layer of random weights."""
    torch.manual_seed(rows + columns)
    module = nn.Linear(columns, rows, bias=bias)
    option = mp.Option.parse(f"{name}/fp16")
    codes = encode(module.weight * size, option.weight, "minmax")
    store(module, option, codes, None, torch.float32)
    return module


def check(name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu") -> None:
    """Outputs and weights of (tokens, in, out) are within a rounding of the exact ones.

    Of 16 bits in the output, and of 32-bit floats in sums of products; twice give the same bits.
    """
    tokens, columns, rows = shape
    module = stored(name, rows, columns).to(device)
    made = Linear(module, "fc", dtype)
    x = torch.randn(tokens, columns, device=device).to(dtype)
    weight, bias = module.stored().dequantize().double(), module.bias.detach().double()
    exact = x.double() @ weight.T + bias
    size = x.double().abs() @ (weight.abs() + taken_off(module)).T + bias.abs()
    found = made(x)
    assert found.dtype is dtype
    assert found.shape == (tokens, rows)
    rounded = made.dequantized().double() if tokens > 64 else weight
    off = (found.double() - (x.double() @ rounded.T + bias)).abs()
    last = LAST_BITS[dtype]
    sums = 2.0**-18 if device == "cpu" else 2.0**-16  # tensor cores cut off where CPUs round
    summed = (last if tokens > 64 else sums) * size
    assert bool((off <= last * exact.abs() + summed).all()), f"{name} {shape} off by {off.max()}"
    assert torch.equal(made(x), found)
    assert not made.arrived.any()
    assert within(made.dequantized(), weight, last)


def taken_off(module: Any) -> float:
    """The most that is summed for a weight beside it, where zero points are taken off at the end."""
    codes = module.stored()
    return 0.0 if codes.zero is None else float(codes.steps.max()) * (1 << codes.format.bits)


def within(found: Tensor, exact: Tensor, last: float) -> bool:
    """Whether each is within half its last bit, or half the least number of fp16."""
    return bool(((found.double() - exact).abs() <= last * exact.abs() + 2.0**-25).all())
