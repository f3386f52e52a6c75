import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.quant.packing import pack, unpack
from tests.references import rounding


@st.composite
def _codes(draw: st.DrawFn) -> tuple[list[int], int, bool]:
    bits, signed = draw(st.integers(1, 32)), draw(st.booleans())
    low = -(1 << (bits - 1)) if signed else 0
    return draw(st.lists(st.integers(low, low + (1 << bits) - 1), max_size=40)), bits, signed


@given(_codes())
def test_unpacks_exactly_what_was_packed(case: tuple[list[int], int, bool]) -> None:
    codes, bits, signed = case
    stream = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert len(stream) == -(-len(codes) * bits // 8)
    assert unpack(stream, bits, len(codes), signed=signed).tolist() == codes


@given(_codes())
def test_the_stream_is_the_reference_s(case: tuple[list[int], int, bool]) -> None:
    codes, bits, _ = case
    stream = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert bytes(stream.tolist()) == rounding.packed(codes, bits)


def test_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="codes from 0 to 4 do not fit in 2 bits"):
        pack(torch.tensor([0, 4]), 2)
    with pytest.raises(ValueError, match="codes have 1 to 32 bits, got 33"):
        pack(torch.tensor([0]), 33)
    with pytest.raises(ValueError, match="3 codes of 4 bits are 2 bytes, got 1"):
        unpack(torch.zeros(1, dtype=torch.uint8), 4, 3)


@pytest.mark.parametrize("bits", [1, 3, 8, 13, 32])
def test_streams_longer_than_what_is_worked_on_at_once(bits: int) -> None:
    seeded = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, ((1 << 16) + 5,), generator=seeded)
    stream = pack(codes, bits)
    assert bytes(stream.tolist()) == rounding.packed(codes.tolist(), bits)
    assert torch.equal(unpack(stream, bits, len(codes)).long(), codes)
    assert stream.untyped_storage().nbytes() == len(stream)
