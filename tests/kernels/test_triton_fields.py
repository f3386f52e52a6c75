"""Instructions of GPUs, run one by one in Python."""

import re

import pytest
import torch

from mpsearch.kernels.triton_fields import bits_of, instructions, steps
from mpsearch.kernels.triton_layout import Layout, Plane
from tests.references import triton_words

PLANES = {
    plane
    for bits in range(1, 9)
    for sign in (False, True)[: 1 + (bits == 1)]
    for plane in Layout(1, 1, bits, 1, sign=sign).planes
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("plane", sorted(PLANES, key=repr), ids=lambda p: f"{p.bits}x{p.factor:g}")
def test_every_field_becomes_exactly_what_it_stands_for(plane: Plane, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    words = [*(0, 0xFFFFFFFF, 0xFFFF, 0xFFFF0000), *torch.randint(0, 1 << 32, (60,), generator=rng)]
    programs = instructions(plane, dtype)
    assert len(programs) == 16 // plane.bits
    for field, program in enumerate(programs):
        for word in map(int, words):
            found = triton_words.run(program, word, brain=dtype is torch.bfloat16)
            for half, value in zip((word & 0xFFFF, word >> 16), found, strict=True):
                code = half >> (field * plane.bits) & ((1 << plane.bits) - 1)
                assert value == (code - plane.offset) * plane.factor


@pytest.mark.parametrize(("bits", "half", "brain"), [(1, 2, 3), (2, 2, 3), (4, 2, 4)])
def test_fields_share_shifts(bits: int, half: int, brain: int) -> None:
    plane = Plane(bits, 0, 0.0, 1.0)
    for dtype, most in ((torch.float16, half), (torch.bfloat16, brain)):
        assert len({steps(plane, field, dtype).shift for field in range(16 // bits)}) == most


def test_a_number_a_type_does_not_hold_is_refused() -> None:
    assert bits_of(1.0, torch.float16) == 0x3C00
    assert bits_of(1.0, torch.bfloat16) == 0x3F80
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=re.escape(f"{dtype} does not hold 2049.0 exactly")):
            bits_of(2049.0, dtype)
