import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpsearch.formats import Format
from mpsearch.quant import powers
from mpsearch.quant.activations import Grid, Seen, codes, fake_quantize
from mpsearch.quant.encoding import round_trip
from mpsearch.quant.inputs import channel_axis, tables
from mpsearch.quant.recipe import ActivationRanges, Recipe
from tests.quant.weights import error, normal
from tests.references import powers as reference

ONE_SCALE = [
    "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "fp4_exmx", "fp6_e1m4", "nf4t", "pot4", "power4", "log4",
    "log3", "logr4", "logr2", "ternary", "binary",
]  # fmt: skip
BLOCKS = ["mxfp4", "mxfp8_e4m3", "mxint8", "nvfp4"]
RANGES: list[ActivationRanges] = ["minmax", "percentile", "mse"]


def _grid(x: Tensor, name: str, ranges: ActivationRanges = "mse", axis: int = -1) -> Grid:
    seen = Seen()
    seen.add(x, 1)
    grid = seen.grid(Format.parse(name), Recipe(activation_ranges=ranges), axis)
    assert grid is not None
    return grid


def _softmax(rows: int = 64, width: int = 48) -> Tensor:
    return (3 * normal(rows, width)).softmax(1)


@pytest.mark.parametrize("name", ONE_SCALE)
@pytest.mark.parametrize("ranges", RANGES)
def test_inputs_take_as_many_values_as_there_are_codes(name: str, ranges: ActivationRanges) -> None:
    x = normal(64, 48)
    found = fake_quantize(x, _grid(x, name, ranges))
    assert len(found.unique()) <= 2 ** Format.parse(name).bits
    again = fake_quantize(found, _grid(x, name, ranges))
    assert torch.equal(again, found)


@pytest.mark.parametrize("name", ONE_SCALE)
def test_searched_ranges_never_lose_to_whole_ones(name: str) -> None:
    for x in (normal(64, 48), normal(64, 48).abs() ** 3, _softmax()):
        searched, whole = (
            error(fake_quantize(x, _grid(x, name, ranges)), x) for ranges in ("mse", "minmax")
        )
        assert searched <= whole * (1 + 1e-5)


@given(st.floats(0, 1, width=32), st.sampled_from(RANGES))
def test_logarithms_are_the_reference_s(x: float, ranges: ActivationRanges) -> None:
    seen = torch.tensor([0.0, 0.01, 0.1, 0.3, 1.0])
    grid = _grid(seen, "log4", ranges)
    found = float(fake_quantize(torch.tensor([x]), grid))
    values = fake_quantize(torch.linspace(0, 1, 4001), grid).unique()
    peak, second = values[-1], values[-2]
    q = round(-37 * float((second / peak).log2()))
    wanted = reference.log(min(x, float(peak)), 4, q, float(peak))
    other = reference.log(min(x * 1.001, float(peak)), 4, q, float(peak))  # a middle, either way
    less = reference.log(min(x * 0.999, float(peak)), 4, q, float(peak))
    assert any(found == pytest.approx(v, rel=1e-4) for v in (wanted, other, less))


def test_the_adaptive_base_beats_two_and_its_root_after_a_softmax() -> None:
    x = _softmax(width=192)
    found = error(fake_quantize(x, _grid(x, "log3")), x)
    peak = float(x.max())
    two = torch.tensor([reference.log(v, 3, 37, peak) for v in x.flatten().tolist()])
    assert found < error(two, x.flatten())
    assert found < error(fake_quantize(x, _grid(x, "logr3")), x)
    assert found < 0.6 * error(fake_quantize(x, _grid(x, "int3")), x)


@pytest.mark.parametrize("bits", range(2, 8))
def test_powers_of_the_root_of_two_are_shifts_of_two_scales(bits: int) -> None:
    x = _softmax(width=192)
    grid = _grid(x, f"logr{bits}", "minmax")
    peak = float(x.max())
    for v in x[:2].flatten().tolist():
        middle = abs(-2 * math.log2(v / peak) % 1 - 0.5) < 1e-3
        found = float(fake_quantize(torch.tensor([v]), grid))
        assert middle or found == pytest.approx(reference.root(v, bits, peak), rel=1e-6)


def test_logarithms_of_what_goes_below_zero_are_moved() -> None:
    x = torch.nn.functional.gelu(normal(64, 48))
    found = fake_quantize(x, _grid(x, "log4", "minmax"))
    assert float(found.min()) == pytest.approx(float(x.min()), rel=1e-5)
    assert error(found, x) < 0.1 * error(torch.zeros_like(x), x)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_inputs_are_rounded_as_those_of_weights(name: str) -> None:
    x = normal(5, 70)
    found = fake_quantize(x, _grid(x, name))
    assert torch.equal(found, round_trip(x, Format.parse(name), "minmax"))
    image = normal(2, 70, 3, 4)
    axis = channel_axis(nn.Conv2d(70, 1, 1))
    channels_last = image.movedim(1, -1).reshape(-1, 70)
    wanted = round_trip(channels_last, Format.parse(name), "minmax").reshape(2, 3, 4, 70)
    found = fake_quantize(image, _grid(image, name, axis=axis))
    assert torch.equal(found, wanted.movedim(-1, 1))


def test_fixed_point_inputs_are_rounded_as_weights() -> None:
    x = 4 * normal(8, 33)
    for name in ("fx8.4", "fx6.2_trn_wrap", "fx12.8_rnd_satz"):
        found = fake_quantize(x, _grid(x, name))
        assert torch.equal(found, round_trip(x, Format.parse(name)))


@pytest.mark.parametrize("name", ["fp8_e4m3", "log4", "nvfp4", "fx6.2", "power4"])
def test_gradients_pass_straight_through_what_is_not_clipped(name: str) -> None:
    x = normal(8, 32).abs()
    grid = _grid(x, name, "minmax")
    y = torch.cat([x.flatten(), torch.tensor([1e3])]).requires_grad_()
    fake_quantize(y, grid).sum().backward()
    assert y.grad is not None
    assert y.grad[:-1].tolist() == [1.0] * x.numel()
    assert float(y.grad[-1]) == (1.0 if name == "nvfp4" else 0.0)


@pytest.mark.parametrize("name", [*ONE_SCALE, *BLOCKS, "fx8.4"])
@pytest.mark.parametrize("x", [torch.zeros(4, 4), torch.full((4, 4), 1e-42), torch.tensor([3e38])])
def test_ranges_of_nothing_or_the_largest_numbers_are_finite(name: str, x: Tensor) -> None:
    found = fake_quantize(x, _grid(x, name))
    assert bool(found.isfinite().all())
    assert fake_quantize(x.half().clamp(max=60000), _grid(x, name)).dtype == torch.float16


def test_says_that_there_are_no_integers() -> None:
    x = normal(2, 2)
    with pytest.raises(ValueError, match="inputs in this format become no integers; give int2"):
        codes(x, _grid(x, "fp8_e4m3"))


def test_every_base_is_tried() -> None:
    assert list(tables(Format.parse("log4").as_activation())) == list(powers.bases(4))
