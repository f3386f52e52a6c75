"""Channels with one range: the values of quantization by channel, on one grid."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpsearch.formats import Format, Option
from mpsearch.quant.activations import Grid, Seen, fake_quantize
from mpsearch.quant.aligning import Channels, align
from mpsearch.quant.bench import Bench
from mpsearch.quant.model import quantize, quantized_like
from mpsearch.quant.preparing import prepare
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.shifting import shift
from tests.quant.networks import normed
from tests.references import channels as reference

NUMBERS = st.floats(-10, 10).filter(lambda v: abs(v) > 1e-3)
WIDTH = 6


def _after(model: nn.Module, x: Tensor) -> Tensor:
    """(rows, channels) what the norm returns."""
    found: Tensor = model.get_submodule("norm")(x)
    return found.detach().reshape(-1, WIDTH)


def _grid(rows: Tensor, name: str, **recipe: Any) -> Grid:
    seen = Seen()
    seen.add(rows, 1)
    grid = seen.grid(Format.parse(name), Recipe(activation_ranges="minmax", **recipe))
    assert grid is not None
    return grid


@given(
    st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=2, max_size=6, unique_by=tuple),
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.integers(2, 8),
)
def test_the_paper_s_layer_wise_codes_are_the_channel_wise_ones(
    x: list[list[float]], gain: list[float], shift: list[float], bits: int
) -> None:
    returned = [[g * v + b for g, v, b in zip(gain, row, shift, strict=True)] for row in x]
    if any(high - low < 0.1 for low, high in reference.ranges(returned)):
        return
    grids, weight, bias = reference.by_channel(returned, bits), [[1.0, -2.0, 0.5]], [0.25]
    new = reference.reparameterized(gain, shift, weight, bias, grids)
    now = [[g * v + b for g, v, b in zip(new.gain, row, new.shift, strict=True)] for row in x]
    one = reference.Grids([new.step] * 3, [new.zero] * 3, grids.top)
    wanted = reference.linear(grids.values(returned), weight, bias)
    found = reference.linear(one.values(now), new.weight, new.bias)
    ties = [
        abs(v / s % 1 - 0.5) < 1e-9 for r in returned for v, s in zip(r, grids.steps, strict=True)
    ]
    assert any(ties) or one.codes(now) == grids.codes(returned)
    assert any(ties) or all(
        math.isclose(f, w, rel_tol=1e-9, abs_tol=1e-9)
        for fs, ws in zip(found, wanted, strict=True)
        for f, w in zip(fs, ws, strict=True)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_grid_holds_what_a_grid_for_each_channel_holds(bits: int) -> None:
    model, x = normed()
    before = _after(model, x)
    assert align(model, x) == 1
    grid = _grid(_after(model, x), f"int{bits}")
    low, high = before.aminmax(dim=0)
    ratio, middle = (high - low) / (high - low).mean(), (low + high) / 2
    found = fake_quantize(_after(model, x), grid) * ratio + middle
    wanted = torch.tensor(reference.about_the_middle(before.tolist(), bits, grid.zero))
    step = (high - low) / (2**bits - 1)
    tie = ((before - middle) / step % 1 - 0.5).abs() < 1e-3  # an end is one
    torch.testing.assert_close(found[~tie], wanted[~tie], rtol=1e-4, atol=1e-4)
    assert ((found - before).abs() <= step / 2 * (1 + 1e-3)).all()


@pytest.mark.parametrize("name", ["int3s", "int8s", "fp4_e2m1", "fp8_e4m3"])
def test_any_format_s_output_is_that_of_quantization_by_channel(name: str) -> None:
    model, x = normed()
    before, first = _after(model, x), copy.deepcopy(model.get_submodule("first"))
    align(model, x)
    after = _after(model, x)
    low, high = before.aminmax(dim=0)
    middle = (low + high) / 2
    by_channel = [
        fake_quantize(c, _grid(c, name))
        for c in (before - middle).T  # each has its own scale
    ]
    wanted = first(torch.stack(by_channel, 1) + middle)
    found = model.get_submodule("first")(fake_quantize(after, _grid(after, name)))
    close = (found - wanted).abs() <= 1e-4 * wanted.abs().max()
    assert close.double().mean() > 0.98  # a value on a boundary may go to either side


def test_channels_that_differ_err_far_less_than_on_one_grid() -> None:
    model, x = normed()
    before, first = _after(model, x), copy.deepcopy(model.get_submodule("first"))
    wanted = first(before)
    plain = first(fake_quantize(before, _grid(before, "int4"))) - wanted
    align(model, x)
    after = _after(model, x)
    found = model.get_submodule("first")(fake_quantize(after, _grid(after, "int4"))) - wanted
    paper = reference.by_channel(before.double().tolist(), 4).values(before.tolist())
    literal = first(torch.tensor(paper)) - wanted
    assert float(found.norm()) < 0.5 * float(plain.norm())
    assert float(found.norm()) == pytest.approx(float(literal.norm()), rel=0.2)


def test_the_function_stays_and_all_ranges_are_one() -> None:
    model, x = normed()
    wanted = model(x)
    align(model, x)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    low, high = _after(model, x).aminmax(dim=0)
    torch.testing.assert_close(high, high[0].expand(WIDTH), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(low, -high, rtol=1e-4, atol=1e-4)


def test_clipped_ranges_end_at_the_reference_s_percentiles() -> None:
    model, x = normed()
    before, wanted = _after(model, x), model(x)
    align(model, x, 90.0)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    ends = torch.tensor(reference.ranges(before.double().tolist(), 90.0)).T
    ratio = (ends[1] - ends[0]) / (ends[1] - ends[0]).mean()
    moved = (before - (ends[0] + ends[1]) / 2) / ratio
    torch.testing.assert_close(_after(model, x), moved, rtol=1e-4, atol=1e-4)


def test_clip_covers_the_recipe_s_percentile() -> None:
    model, x = normed()
    other, _ = normed()
    prepare(model, x, Recipe(preparations=("clip",), percentile=90.0))
    align(other, x, 90.0)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_percentiles_of_all_channels_together_are_those_of_each() -> None:
    model, x = normed(rows=400)
    before = _after(model, x)
    align(model, x, 98.0)
    recipe = Recipe(activation_ranges="percentile", percentile=98.0)
    seen = Seen()
    seen.add(_after(model, x), 1)
    grid = seen.grid(Format.parse("int4"), recipe)
    assert grid is not None
    ends = torch.tensor(reference.ranges(before.double().tolist(), 98.0))
    assert grid.scale * 15 == pytest.approx(float((ends[:, 1] - ends[:, 0]).mean()), rel=0.02)
    within = (before > ends[:, 0]) & (before < ends[:, 1])
    ratio = (ends[:, 1] - ends[:, 0]) / (ends[:, 1] - ends[:, 0]).mean()
    error = (fake_quantize(_after(model, x), grid) - _after(model, x)) * ratio
    assert (error.abs() <= 0.55 * grid.scale * ratio)[within].all()
    assert 0.03 < 1 - float(within.double().mean()) < 0.05  # 2 % on either side


def test_an_outlier_costs_a_clipped_range_nothing() -> None:
    model, x = normed(rows=400)
    seen, spoiled = Channels(), Channels()
    rows = _after(model, x)
    seen.add(rows)
    rows = rows.clone()
    rows[7] *= 100
    spoiled.add(rows)
    for symmetric in (False, True):
        clean = seen.ends(99.0, symmetric=symmetric)
        torch.testing.assert_close(spoiled.ends(99.0, symmetric=symmetric), clean, rtol=0.3, atol=0)
        assert (spoiled.ends(100.0, symmetric=symmetric)[1] > 5 * clean[1]).any()


def test_parts_that_are_seen_one_by_one_are_seen() -> None:
    x = torch.randn(9000, 3, generator=torch.Generator().manual_seed(0))
    whole, by_parts = Channels(), Channels()
    whole.add(x)
    for part in x.split(71):
        by_parts.add(part)
    kept = torch.cat(by_parts.rows)
    assert torch.equal(kept, torch.cat(whole.rows))
    assert torch.equal(kept, x[::4])
    for percent in (100.0, 99.0):
        found = by_parts.ends(percent, symmetric=False)
        torch.testing.assert_close(found, whole.ends(percent, symmetric=False), rtol=0, atol=0)
    assert torch.equal(by_parts.ends(100.0, symmetric=False)[1], x.amax(0).double())


@pytest.mark.parametrize("percent", [100.0, 90.0])
def test_without_biases_ranges_are_symmetric(percent: float) -> None:
    model, x = normed(bias=False)
    before = _after(model, x)
    align(model, x, percent)
    sizes = before.abs().double().tolist()
    ends = torch.tensor([high for _, high in reference.ranges(sizes, percent)])
    wanted = before / (ends / ends.mean())
    torch.testing.assert_close(_after(model, x), wanted, rtol=1e-4, atol=1e-4)


def test_a_layer_that_lacks_a_bias_is_not_given_one() -> None:
    model, x = normed()
    second: Any = model.get_submodule("second")
    second.bias = None
    wanted = model(x)
    assert shift(model, x) == 0
    assert align(model, x) == 1
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    assert second.bias is None


def test_without_biases_channels_are_only_scaled() -> None:
    model, x = normed(bias=False)
    wanted = model(x)
    assert align(model, x) == 1
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    peak = _after(model, x).abs().amax(0)
    torch.testing.assert_close(peak, peak[0].expand(WIDTH), rtol=1e-4, atol=1e-4)
    assert model.get_submodule("first").bias is None


def test_a_channel_that_never_changes_keeps_its_scale() -> None:
    model, x = normed()
    norm: Any = model.get_submodule("norm")
    norm.weight.data[2] = 0.0
    wanted = model(x)
    align(model, x)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(norm.bias).all()


@pytest.mark.parametrize("step", ["shift", "align", "clip"])
def test_the_network_is_the_one_that_was_measured(step: Any) -> None:
    model, x = normed()
    recipe = Recipe(preparations=(step, "smooth"), percentile=95.0)
    assert Recipe.read(recipe.document()) == recipe
    before = copy.deepcopy(model.state_dict())
    bench = Bench(model, [x], ["first", "second"], recipe)
    options = dict.fromkeys(["first", "second"], Option.parse("w4a4"))
    with torch.no_grad(), bench.at(options) as changed:
        wanted = changed(x)
    found = quantize(model, options, [x], recipe)
    torch.testing.assert_close(found(x), wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = quantized_like(model, options)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(x), found(x))
