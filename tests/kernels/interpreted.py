"""Triton's kernels in its interpreter: pytest runs this file where TRITON_INTERPRET=1 is set.

The interpreter has no product of bfloat16: inputs have 16 or 32 bits of the IEEE's.
"""

import os

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mpsearch.kernels import cuda_decode
from mpsearch.kernels.cuda_decode import Linear
from tests.kernels.decoding import WEIGHTS, check, stored


def test_it_is_interpreted() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"


@pytest.mark.parametrize("name", WEIGHTS)
def test_outputs_are_within_a_rounding(name: str) -> None:
    check(name, (3, 150, 37), torch.float32)


@settings(max_examples=12, phases=[Phase.generate])  # to shrink takes minutes here
@given(
    name=st.sampled_from(WEIGHTS),
    tokens=st.integers(0, 20),
    columns=st.integers(1, 400),
    rows=st.integers(1, 150),
)
def test_odd_shapes(name: str, tokens: int, columns: int, rows: int) -> None:
    check(name, (tokens, columns, rows), torch.float16)


@pytest.mark.parametrize("shape", [(1, 256, 128), (16, 512, 128), (65, 256, 5)])
@pytest.mark.parametrize("name", ["int2g128", "int3", "int8g32a"])
def test_whole_blocks_and_many_tokens(name: str, shape: tuple[int, int, int]) -> None:
    check(name, shape, torch.float16)


@pytest.mark.parametrize("processors", [1, 2, 8])
def test_shares_of_the_inputs_are_summed(processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_decode, "processors", lambda _: processors)
    check("int4g32", (17, 600, 5), torch.float16)
    check("int3g128a", (2, 1024, 130), torch.float32)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy, of infinity
def test_a_token_does_not_touch_another() -> None:
    made, x = Linear(stored("int4g32", 9, 96), "fc", torch.float16), torch.randn(3, 96).half()
    x[1, 5] = torch.nan
    x[2, 7] = torch.inf
    found = made(x)
    assert bool(found[1].isnan().all())
    assert not bool(found[2].isfinite().any())
    assert torch.equal(found[0], made(x[:1])[0])


def test_what_is_read_and_written_is_of_the_inputs_type() -> None:
    made = Linear(stored("int4g32", 9, 96, bias=False), "fc", torch.float16)
    x = torch.randn(2, 3, 96)
    assert made(x).dtype is torch.float32
    torch.testing.assert_close(made(x), made(x.half()).float(), rtol=0, atol=0)
    assert torch.equal(made(x.mT.contiguous().mT), made(x))


@pytest.mark.parametrize("size", [1e-39, 1e-30, 1e30])
@pytest.mark.parametrize("name", ["int4g32a", "binary"])
def test_denormal_and_huge_weights_are_as_exact_as_others(name: str, size: float) -> None:
    module, x = stored(name, 9, 96, bias=False, size=size), torch.randn(2, 96)
    exact = x.double() @ module.stored().dequantize().double().T
    off = (Linear(module, "fc", torch.float32)(x).double() - exact).abs().max()
    subnormal = name == "binary" and size < torch.finfo(torch.float32).tiny  # may count as zero
    allowed = (1.0 if subnormal else 1e-5) * float(exact.abs().max())
    assert float(off) <= allowed + 1e-42  # a denormal float32
