import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.families import OVERFLOW, ROUNDING, fixed
from mpsearch.formats import Format
from mpsearch.quant.encoding import encode, round_trip
from tests.quant.weights import MATRICES
from tests.references import fixed_point as reference

MODES = st.tuples(st.sampled_from(ROUNDING), st.sampled_from(OVERFLOW))
SIZES = st.tuples(st.integers(1, 32), st.integers(0, 32)).filter(lambda s: s[1] <= s[0])


@given(
    st.one_of(st.floats(-40, 40, width=32), st.integers(-400, 400).map(lambda k: k / 32)),
    SIZES,
    MODES,
)
def test_codes_are_the_reference_s(x: float, size: tuple[int, int], modes: tuple[str, str]) -> None:
    bits, fraction = size
    form = Format.parse(f"fx{bits}.{fraction}_{modes[0]}_{modes[1]}")
    found = encode(torch.tensor([[x]]), form)
    assert found.codes.item() == reference.code(x, bits, fraction, *modes)


@pytest.mark.parametrize("overflow", OVERFLOW)
@pytest.mark.parametrize("x", [3e38, -3e38, 2.0**40 + 2.0**20, -(2.0**33) - 2.0**12, 1e-40])
def test_what_is_far_outside_or_next_to_zero_overflows_as_it_should(
    x: float, overflow: str
) -> None:
    weight = torch.tensor([[x]])
    found = encode(weight, Format.parse(f"fx16.4_trn_{overflow}"))
    assert found.codes.item() == reference.code(float(weight), 16, 4, "trn", overflow)


@given(MATRICES, SIZES)
def test_a_name_without_modes_is_nearest_and_saturates(w: Tensor, size: tuple[int, int]) -> None:
    bare = f"fx{size[0]}.{size[1]}"
    assert fixed(bare) == (*size, "conv", "sat")
    said = round_trip(w, Format.parse(f"{bare}_conv_sat"))
    assert torch.equal(round_trip(w, Format.parse(bare)), said)


@given(MATRICES, SIZES, MODES)
def test_rounding_twice_is_rounding_once(
    w: Tensor, size: tuple[int, int], modes: tuple[str, str]
) -> None:
    form = Format.parse(f"fx{size[0]}.{size[1]}_{modes[0]}_{modes[1]}")
    once = round_trip(w, form)
    if size[0] <= 24:  # a float32 holds every code
        assert torch.equal(round_trip(once, form), once)


def test_says_what_is_no_fixed_point() -> None:
    with pytest.raises(ValueError, match=r"'int8' is no fixed point; write it as in fx8.4"):
        fixed("int8")


def test_float64_is_rounded_once() -> None:
    w = torch.tensor([[0.5 + 2.0**-40, 0.25 + 3 * 2.0**-31]], dtype=torch.float64)
    assert encode(w, Format.parse("fx2.0_rndz_sat")).codes.tolist() == [[1, 0]]
    assert encode(w, Format.parse("fx32.31")).codes[0, 1].item() == 2**29 + 3
