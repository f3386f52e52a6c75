import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant import powers
from mpsearch.quant.encoding import encode, round_trip
from mpsearch.quant.lookup import table
from tests.quant.weights import MATRICES, error, normal
from tests.references import powers as reference


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_powers_of_two_are_the_reference_s(bits: int) -> None:
    values = powers.of_two(bits)
    assert sorted(values[values.isfinite()].tolist()) == reference.of_two(bits)


@given(st.floats(-1, 1, width=32), st.integers(2, 8))
def test_a_value_becomes_the_nearest_power_of_two(x: float, bits: int) -> None:
    by = table(powers.of_two(bits))
    found, wanted = float(by.value(by.code(torch.tensor(x)))), reference.of_two(bits)
    assert abs(found - x) == pytest.approx(abs(reference.nearest(x, wanted) - x), abs=1e-12)


@given(
    st.floats(-1, 1, width=32), st.integers(2, 8), st.sampled_from(powers.EXPONENTS)
)  # fmt: skip
def test_a_value_is_rounded_after_its_power_is_taken(x: float, bits: int, power: float) -> None:
    by = table(powers.exponents(bits, power), powers.exponent_bounds(bits, power))
    found = float(by.value(by.code(torch.tensor(x))))
    top = 2 ** (bits - 1) - 1
    middle = abs(abs(x) ** power * top % 1 - 0.5) < 1e-4
    assert middle or found == pytest.approx(reference.exponent(x, bits, power, 1.0), rel=1e-5)


BASES = [(bits, q) for bits in range(2, 9) for q in powers.bases(bits)]


@given(st.floats(0, 1, width=32), st.sampled_from(BASES))
def test_a_value_is_rounded_after_its_logarithm_is_taken(x: float, case: tuple[int, int]) -> None:
    bits, q = case
    by = table(powers.of_base(bits, q), powers.base_bounds(bits, q))
    found = float(by.value(by.code(torch.tensor(x))))
    middle = x > 0 and abs(-math.log2(x) / (q / 37) % 1 - 0.5) < 1e-3
    assert middle or found == pytest.approx(reference.log(x, bits, q, 1.0), rel=1e-5)


@given(st.floats(0, 1, width=32), st.integers(2, 8))
def test_the_root_of_two_is_a_base_of_its_own(x: float, bits: int) -> None:
    by = table(powers.of_base(bits, powers.ROOT), powers.base_bounds(bits, powers.ROOT))
    found = float(by.value(by.code(torch.tensor(x))))
    middle = x > 0 and abs(-2 * math.log2(x) % 1 - 0.5) < 1e-3
    assert middle or found == pytest.approx(reference.root(x, bits, 1.0), rel=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_its_powers_are_shifts_of_two_scales_to_the_last_bit(bits: int) -> None:
    code = torch.arange((1 << bits) - 1)
    scale = torch.where(code % 2 == 1, torch.tensor(2.0).sqrt(), torch.tensor(1.0))
    wanted = scale * torch.exp2(-((code + 1) // 2).float())
    assert torch.equal(powers.of_base(bits, powers.ROOT)[:-1], wanted)


@pytest.mark.parametrize("bits", range(3, 9))
def test_the_searched_exponent_never_loses_to_uniform_steps(bits: int) -> None:
    for w in (normal(8, 64), normal(8, 64) ** 3):
        searched = error(round_trip(w, Format.parse(f"power{bits}")), w)
        uniform = error(round_trip(w, Format.parse(f"int{bits}")), w)
        assert searched <= uniform * (1 + 1e-6)
    assert searched < 0.7 * uniform  # with long tails it is much the better


def test_the_exponent_is_stored_in_a_byte() -> None:
    found = encode(normal(8, 64) ** 3, Format.parse("power4"))
    place = int(found.more["tensor"])
    assert powers.EXPONENTS[place] < 0.7
    assert found.stored()["tensor"].tolist() == [place]


@given(MATRICES, st.sampled_from(["pot4", "pot2t", "power4", "power3g2", "nf4", "nf4g3"]))
def test_rounding_twice_is_rounding_once(w: Tensor, name: str) -> None:
    once = round_trip(w, Format.parse(name), "minmax")
    assert torch.allclose(round_trip(once, Format.parse(name), "minmax"), once, rtol=1e-6)


def test_nf4_beats_integers_on_normal_weights() -> None:
    w = normal(16, 256)
    nf4 = error(round_trip(w, Format.parse("nf4"), "minmax"), w)
    assert nf4 < 0.8 * error(round_trip(w, Format.parse("int4g64"), "minmax"), w)


def test_logarithms_hold_no_weights() -> None:
    with pytest.raises(
        ValueError, match=r"cannot quantize weights to 'log4', .* write pot4, and keep 'log4'"
    ):
        encode(torch.ones(1, 1), Format.parse("log4"))
