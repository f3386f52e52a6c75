"""Words beside a literal reading of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.kernels import triton_layout, weight_codes
from mpsearch.kernels.triton_layout import ROWS, Layout
from mpsearch.quant.encoding import encode
from tests.references import triton_words


@given(
    bits=st.integers(1, 8),
    rows=st.integers(1, 140),
    columns=st.integers(1, 300),
    group=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_every_code_is_where_the_layout_says(
    bits: int, rows: int, columns: int, group: int, seed: int
) -> None:
    of = Layout(rows, columns, bits, min(group, columns))
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8, generator=rng)
    words = of.words(codes)
    assert words.shape == (-(-rows // ROWS), of.blocks, of.tiles, ROWS, of.width)
    read = words.numpy().view(np.uint16)
    for _ in range(20):
        row, column = (int(torch.randint(0, n, (), generator=rng)) for n in (rows, columns))
        place = triton_words.place(column, of.group, of.padded)
        assert triton_words.code(read, bits, row, place) == codes[row, column]


@given(bits=st.integers(1, 8), group=st.integers(1, 5000), groups=st.integers(1, 3))
def test_slices_lie_in_one_group_and_blocks_are_full(bits: int, group: int, groups: int) -> None:
    of = Layout(128, group * groups, bits, group)
    assert of.padded >= group
    assert of.padded % of.width == 0
    assert of.padded % of.block == 0 or of.block % of.padded == 0
    assert of.scales * of.padded == of.blocks * of.block
    assert of.scales >= of.groups
    assert (of.blocks - 1) * of.block < of.groups * of.padded


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", [128, 256, 4096])
def test_no_bit_is_read_that_is_not_stored(bits: int, group: int) -> None:
    of = Layout(256, 4096, bits, group)
    words = of.words(torch.zeros(256, 4096, dtype=torch.uint8))
    assert words.nbytes == 256 * 4096 * bits // 8


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_add_up_to_the_code(bits: int) -> None:
    planes = Layout(1, 1, bits, 1).planes
    for code in range(1 << bits):
        total, shift = 0.0, 0
        for plane in planes:
            field = code >> shift & ((1 << plane.bits) - 1)
            total += (field - plane.offset) * plane.factor
            shift += plane.bits
        assert total == code - (1 << (bits - 1))
    signs = [
        (f - p.offset) * p.factor for p in Layout(1, 1, 1, 1, sign=True).planes for f in (0, 1)
    ]
    assert signs == [-1, 1]


@pytest.mark.parametrize(
    "name", "int1 int1a int2 int3g5 int4a int5t int6g7a int8 ternaryg3 ternarym binary".split()
)
def test_codes_zero_points_and_scales_are_those_of_the_format(name: str) -> None:
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    codes = encode(weight, mp.Format.parse(name), "minmax")
    of = Layout.of(codes)
    shifts = triton_layout.shifts(codes)
    size = 2.0 if of.sign else 1.0
    middle = 0.5 if of.sign else float(1 << (of.bits - 1))
    value = (weight_codes.unsigned(codes).double() - middle) * size
    steps, zeros = (
        torch.zeros_like(value)
        if each is None
        else of.by_group(each)[0].T[:5].double().repeat_interleave(of.group, 1)[:, :12]
        for each in (codes.scale, shifts)
    )
    torch.testing.assert_close(((value - zeros) * steps).float(), codes.dequantize())


@pytest.mark.parametrize("name", ["int4", "binaryg64", "ternary", "int8g7a"])
def test_integers_alone_are_taken(name: str) -> None:
    assert weight_codes.of_integers(mp.Format.parse(name).as_weight())


@pytest.mark.parametrize("name", ["nf4", "binary2", "int4o1", "int4r2", "fp8_e4m3", "pot4", "fp16"])
def test_others_are_not(name: str) -> None:
    assert not weight_codes.of_integers(mp.Format.parse(name).as_weight())
