from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.integers import encode, round_trip
from mpsearch.quant.packing import pack
from mpsearch.quant.recipe import Ranges
from tests.references import rounding

WEIGHTS = arrays.arrays(
    "float32",
    st.tuples(st.integers(1, 5), st.integers(1, 11)),
    elements=st.floats(-4, 4, width=32).map(lambda v: v if abs(v) > 1 / 64 else 0.0),
).map(torch.from_numpy)
NAMES = st.builds(
    lambda bits, suffix: f"int{bits}{suffix}",
    st.integers(2, 8),
    st.sampled_from(["", "t", "g3", "g4", "a", "g5a", "ta"]),
)
RANGES = st.sampled_from(["minmax", "mse"])


@given(WEIGHTS, NAMES.filter(lambda name: not name.endswith("a")), RANGES)
def test_rounding_twice_is_rounding_once(w: Tensor, name: str, ranges: Ranges) -> None:
    once = round_trip(w, Format.parse(name), ranges)
    assert torch.equal(round_trip(once, Format.parse(name), ranges), once)


@given(WEIGHTS, NAMES)
def test_within_the_range_the_error_is_half_a_step(w: Tensor, name: str) -> None:
    form = Format.parse(name)
    found = encode(w, form, "minmax")
    assert found.scale is not None
    # The scale is rounded to 11 bits, which may clip the largest value by that much.
    step = float(found.scale.max())
    slack = 2.0**form.bits * step * 2**-11
    assert float((found.dequantize() - w).abs().max()) <= step / 2 + slack


@given(WEIGHTS, NAMES, RANGES, st.integers(-3, 5))
def test_scaling_by_powers_of_two_commutes(w: Tensor, name: str, ranges: Ranges, k: int) -> None:
    form = Format.parse(name)
    assert torch.equal(round_trip(w * 2.0**k, form, ranges), round_trip(w, form, ranges) * 2.0**k)


@given(WEIGHTS, NAMES)
def test_clipping_never_loses_to_the_whole_range(w: Tensor, name: str) -> None:
    form = Format.parse(name)
    clipped, whole = ((round_trip(w, form, r) - w).square().sum() for r in ("mse", "minmax"))
    assert clipped <= whole * (1 + 1e-5) + 1e-12


@given(WEIGHTS, NAMES, RANGES)
def test_every_stream_has_the_bytes_the_format_counts(w: Tensor, name: str, ranges: Ranges) -> None:
    form = Format.parse(name)
    found = encode(w, form, ranges)
    assert found.scale is not None
    assert found.scale.element_size() == 2
    size = len(pack(found.codes, form.bits)) + 2 * len(found.scale)
    size += 0 if found.zero is None else len(pack(found.zero, form.bits))
    assert size == form.bytes(tuple(w.shape))


@given(WEIGHTS, st.integers(2, 8), st.booleans())
def test_rows_are_rounded_as_the_reference_does(w: Tensor, bits: int, even: bool) -> None:
    reference = rounding.symmetric if even else rounding.asymmetric
    got = round_trip(w, Format.parse(f"int{bits}{'s' if even else 'a'}"), "minmax")
    _agree(got, w, [reference(row, bits) for row in w.tolist()], bits)


@given(WEIGHTS, st.integers(2, 8), st.integers(1, 6))
def test_groups_are_rounded_as_the_reference_does(w: Tensor, bits: int, group: int) -> None:
    got = round_trip(w, Format.parse(f"int{bits}g{group}"), "minmax")
    _agree(got, w, [rounding.grouped(row, group, bits) for row in w.tolist()], bits)


def _agree(got: Tensor, w: Tensor, wanted: list[list[float]], bits: int) -> None:
    """Equal, but where float32 puts a value on the other side of the middle of a step."""
    expected = torch.tensor(wanted)
    differs = (got - expected).abs() > 1e-4 * w.abs().max()
    between = ((got + expected) / 2 - w).abs() <= 2e-3 * w.abs().max().clamp_min(1)
    assert bool((~differs | between).all()), (got, expected, bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_on_the_grid_are_kept_exactly(bits: int) -> None:
    top = 2 ** (bits - 1) - 1
    w = torch.arange(-top, top + 1).float()[None] * 0.375
    assert torch.equal(round_trip(w, Format.parse(f"int{bits}"), "minmax"), w)
    assert torch.equal(round_trip(w, Format.parse(f"int{bits}"), "mse"), w)
    a = torch.arange(2**bits).float()[None] * 0.375 - 0.375
    assert torch.equal(round_trip(a, Format.parse(f"int{bits}a"), "minmax"), a)


def test_two_bits_are_minus_one_zero_and_one() -> None:
    found = encode(
        torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), Format.parse("int2")
    )
    assert sorted(set(found.codes.flatten().tolist())) == [-1, 0, 1]


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_codes_are_those_of_the_scale_that_is_stored(ranges: Ranges) -> None:
    w = torch.randn(8, 4000, generator=torch.Generator().manual_seed(0))
    found = encode(w, Format.parse("int8"), ranges)
    assert found.scale is not None
    wanted = (w / found.scale.float()[:, None]).round().clamp(-127, 127)
    assert torch.equal(found.codes.float(), wanted)


def test_a_row_of_zeros_has_scale_one() -> None:
    found = encode(torch.tensor([[0.0, 0.0], [1.0, 0.5]]), Format.parse("int4"))
    assert found.scale is not None
    assert found.scale[0] == 1
    assert found.dequantize()[0].tolist() == [0, 0]


def test_scales_outside_half_precision_are_bfloat16() -> None:
    tiny, large = torch.tensor([[1e-9, -5e-10]]), torch.tensor([[3e38, 1e38]])
    for w in (tiny, large):
        found = encode(w, Format.parse("int8"))
        assert found.scale is not None
        assert found.scale.dtype == torch.bfloat16
        assert torch.allclose(found.dequantize(), w, rtol=0.02, atol=0)


def test_16_bit_weights_are_rounded_and_32_bit_ones_kept() -> None:
    w = torch.tensor([[1 / 3, 1e-3]])
    assert torch.equal(round_trip(w, Format.parse("fp16")), w.half().float())
    assert torch.equal(round_trip(w, Format.parse("bf16")), w.bfloat16().float())
    assert torch.equal(round_trip(w, Format.parse("fp32")), w)


def test_half_precision_weights_keep_their_type() -> None:
    w = torch.tensor([[0.875, -0.25]], dtype=torch.bfloat16)
    assert torch.equal(round_trip(w, Format.parse("int4")), w)
    assert round_trip(w, Format.parse("int4")).dtype == torch.bfloat16


def test_one_bit_with_a_zero_point_is_zero_or_a_step() -> None:
    found = round_trip(torch.tensor([[0.0, 3.0], [-2.0, 0.0]]), Format.parse("int1a"), "minmax")
    assert found.tolist() == [[0, 3], [-2, 0]]


def test_says_what_is_no_integer() -> None:
    w = torch.ones(1, 1)
    for name in ("int1", "nf4", "int4o1"):
        with pytest.raises(ValueError, match=f"'{name}' is no integer of 2 to 8 bits"):
            round_trip(w, Format.parse(name))
    with pytest.raises(ValueError, match="NaN or infinity"):
        round_trip(w * torch.inf, Format.parse("int4"))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "key", "name", "others"),
    [
        ("bitmod", "int4", "int4g128", 0),
        ("bitmod", "int3_asym", "int3g128a", 0),
        ("mcmoe_rtn", "q2", "int2g128a", 1),
        ("mcmoe_rtn", "q3", "int3g128a", 2),
    ],
)
def test_groups_are_rounded_as_others_do(
    shared: Path, file: str, key: str, name: str, others: int
) -> None:
    """All of 2048 or 4096 weights but those that 16-bit scales put beyond the middle of a step."""
    golden = np.load(shared / "oracles" / "golden" / f"{file}.npz")
    w, wanted = (torch.from_numpy(golden[part]).float() for part in ("W", key))
    differs = (round_trip(w, Format.parse(name), "minmax") - wanted).abs() > 1e-3 * w.abs().max()
    assert int(differs.sum()) == others
