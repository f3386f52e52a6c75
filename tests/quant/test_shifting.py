"""The mean of channels in the biases that follow: the same function, inputs about zero."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpsearch.quant.preparing import prepare
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.shifting import shift
from tests.quant.networks import normed


def _after(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model.get_submodule("norm")(x)
    return found.detach().flatten(0, -2)


def test_channels_lie_about_zero_and_the_function_stays() -> None:
    model, x = normed()
    before, wanted = _after(model, x), model(x)
    assert shift(model, x) == 1
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    after = _after(model, x)
    assert float(before.mean(0).abs().max()) > 1
    torch.testing.assert_close(after.mean(0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(after, before - before.mean(0), rtol=1e-4, atol=1e-4)


def test_the_bias_that_follows_takes_the_weight_times_the_mean() -> None:
    model, x = normed()
    first: Any = model.get_submodule("first")
    mean, bias = _after(model, x).mean(0), first.bias.clone()
    shift(model, x)
    torch.testing.assert_close(first.bias, bias + first.weight @ mean, rtol=1e-4, atol=1e-4)


def test_after_a_shift_smoothing_sees_less_to_move() -> None:
    peaks = []
    for recipe in (Recipe(preparations=("smooth",)), Recipe(preparations=("shift", "smooth"))):
        model, x = normed()
        prepare(model, x, recipe)
        peaks.append(float(_after(model, x).abs().amax(0).sum()))
    assert peaks[1] < 0.8 * peaks[0]


def test_parameters_go_on_wanting_gradients() -> None:
    model, x = normed()
    model.requires_grad_()
    shift(model, x)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_where_a_bias_is_missing_nothing_is_shifted() -> None:
    model, x = normed(bias=False)
    with pytest.raises(
        ValueError, match="'shift' applies nowhere in this model: it wants layer norms with a bias"
    ):
        prepare(model, x, Recipe(preparations=("shift",)))
