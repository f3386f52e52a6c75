import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.formats import Format
from mpsearch.quant.activations import Grid, Seen, codes, fake_quantize
from mpsearch.quant.recipe import Recipe


def _seen(x: torch.Tensor) -> Seen:
    seen = Seen()
    seen.add(x, 1)
    return seen


@st.composite
def _grids(draw: st.DrawFn) -> Grid:
    top = 2 ** draw(st.integers(2, 8)) - 1
    scale = float(torch.tensor(draw(st.floats(1e-3, 10))))
    return Grid(scale, draw(st.integers(0, top)), 0, top)


@given(_grids(), st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9))
def test_rounding_to_a_grid_twice_is_rounding_once(grid: Grid, values: list[float]) -> None:
    once = fake_quantize(torch.tensor(values), grid)
    assert torch.equal(fake_quantize(once, grid), once)


@given(_grids(), st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9))
def test_the_values_are_those_of_the_codes(grid: Grid, values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.equal(
        (codes(x, grid) - grid.zero) * torch.tensor(grid.scale), fake_quantize(x, grid)
    )


def test_the_gradient_passes_straight_through_what_is_not_clipped() -> None:
    x = torch.tensor([-9.0, 0.3, 1.0, 9.0], requires_grad=True)
    fake_quantize(x, Grid(0.5, 4, 0, 15)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_what_a_relu_wrote_uses_every_code() -> None:
    grid = _seen(torch.linspace(0, 3, 100)).grid(
        Format.parse("int8"), Recipe(activation_ranges="minmax")
    )
    assert grid is not None
    assert (grid.zero, grid.low, grid.high) == (0, 0, 255)
    assert grid.scale == pytest.approx(3 / 255)


def test_symmetric_grids_have_zero_in_the_middle() -> None:
    grid = _seen(torch.linspace(-1, 3, 100)).grid(Format.parse("int8s"), Recipe())
    assert grid is not None
    assert (grid.zero, grid.low, grid.high) == (0, -127, 127)


def test_16_bits_leave_an_input_as_it_is() -> None:
    assert _seen(torch.ones(3)).grid(Format.parse("fp16"), Recipe()) is None


def test_clipping_outliers_costs_less_than_covering_them() -> None:
    x = torch.randn(4, 20000, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 40.0
    errors = {}
    for ranges in ("minmax", "percentile", "mse"):
        grid = _seen(x).grid(Format.parse("int4"), Recipe(activation_ranges=ranges))
        assert grid is not None
        errors[ranges] = float((fake_quantize(x, grid) - x).square().mean())
    assert errors["mse"] < errors["percentile"] < errors["minmax"]


def test_a_rare_value_that_carries_the_signal_is_not_clipped() -> None:
    x = torch.randn(2, 1 << 20, generator=torch.Generator().manual_seed(0))
    x[0, 12345] = 1e4
    grid = _seen(x).grid(Format.parse("int8"), Recipe())
    assert grid is not None
    assert float(fake_quantize(x.amax(), grid)) == pytest.approx(1e4, rel=0.05)


def test_says_what_cannot_be_rounded() -> None:
    for name in ("int1", "int8g4", "nf4", "int8o1", "pb10"):
        with pytest.raises(ValueError, match=f"cannot quantize inputs to '{name}'; supported are"):
            Seen().grid(Format.parse(name), Recipe())
    with pytest.raises(ValueError, match="input holds NaN or infinity"):
        _seen(torch.tensor([1.0, torch.nan]))
