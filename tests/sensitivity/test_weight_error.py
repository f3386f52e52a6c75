"""Squared weight errors by hand, on every way a weight is stored, and the laws of estimators."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Option, options
from mpsearch.protocols import Estimator
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity import WeightError
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import module_weight, trace
from tests.quant.networks import mixed, tied
from tests.references.rounding import symmetric

MINMAX = Recipe(ranges="minmax")


class TestAbsolute(EstimatorSuite):
    estimator: Estimator = WeightError()
    runs_model = False


class TestRelative(EstimatorSuite):
    estimator: Estimator = WeightError(relative=True)
    runs_model = False


def _estimate(
    model: nn.Module,
    x: Tensor,
    *names: str,
    estimator: WeightError | None = None,
    recipe: Recipe = MINMAX,
    pin: dict[str, str] | None = None,
) -> Table:
    network = trace(model, x, pin=pin)
    estimator = estimator or WeightError()
    return estimator.estimate(
        Task(model, [x]), network, options(*names), recipe=recipe, sweep=Sweep()
    )


def _linear(*rows: list[float]) -> nn.Module:
    model = nn.Linear(len(rows[0]), len(rows), bias=False)
    model.weight.data = torch.tensor(rows)
    return nn.Sequential(model)


def test_two_weights_by_hand() -> None:
    model = _linear([1.0, 0.25], [-2.0, 2.0])  # to 1 and 0; to -2 and 2
    table = _estimate(model, torch.zeros(1, 2), "w2a8", "fp32/fp32")
    np.testing.assert_array_equal(table.values, [[0.0625, 0]])
    assert table.unit == "squared weight error"
    assert table.stderr is None


def test_relative_error_is_a_share_of_the_square() -> None:
    model = _linear([1.0, 0.25], [-2.0, 2.0])
    table = _estimate(model, torch.zeros(1, 2), "w2a8", estimator=WeightError(relative=True))
    np.testing.assert_allclose(table.values, [[0.0625 / 9.0625]])
    assert table.unit == "relative squared weight error"


def test_weights_that_are_all_zero_have_no_error() -> None:
    model = _linear([0.0, 0.0])
    table = _estimate(model, torch.zeros(1, 2), "w2a8", estimator=WeightError(relative=True))
    np.testing.assert_array_equal(table.values, [[0]])


@pytest.mark.parametrize("make", [mixed, tied])
def test_is_the_error_of_each_output_channel_rounded_alone(
    make: Callable[[], tuple[nn.Module, list[Tensor], list[str]]],
) -> None:
    model, (x, *_), _ = make()
    table = _estimate(model, x, "w3a8")
    for layer, row in zip(table.layers, table.values, strict=True):
        weights = {module_weight(model, name) for name in layer.modules}
        weight = weights.pop().detach()
        assert not weights  # a shared one counts once
        if layer.kind == "conv_transpose2d":  # 12 inputs, 2 outputs in each of 3 groups
            weight = weight.reshape(3, 4, 2, 4).transpose(1, 2).flatten(0, 1)
        rows = weight.flatten(1).tolist()
        wanted = sum((a - b) ** 2 for w in rows for a, b in zip(w, symmetric(w, 3), strict=True))
        assert row[0] == pytest.approx(wanted, rel=1e-4)


def test_tied_layers_have_the_sum_of_their_errors() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.gate_proj(x) * self.up_proj(x)
            return out

    model, x = Gated(), torch.zeros(1, 4)
    both = _estimate(model, x, "w3a8").values
    parts = [
        _estimate(nn.Sequential(m), x, "w3a8").values for m in (model.gate_proj, model.up_proj)
    ]
    np.testing.assert_allclose(both, sum(parts))


def test_activations_do_not_enter() -> None:
    model, (x, *_), _ = mixed()
    table = _estimate(model, x, "w4a4", "w4a8", "w4a16")
    assert (table.values == table.values[:, :1]).all()


def test_follows_the_ranges_of_the_recipe() -> None:
    model, (x, *_), _ = mixed()
    mse, minmax = (_estimate(model, x, "w3a8", recipe=Recipe(ranges=r)) for r in ("mse", "minmax"))
    assert (mse.values <= minmax.values).all()
    assert (mse.values < minmax.values).any()


def test_pinned_layers_keep_their_option() -> None:
    model, (x, *_), _ = mixed()
    table = _estimate(model, x, "w3a8", "w8a8", pin={"stem": "w8a8"})
    assert table.allowed[0].tolist() == [False, True]
    assert table.allowed[1:].all()


@pytest.mark.parametrize(
    ("option", "message"),
    [("log4/fp16", "cannot quantize weights to 'log4'"), ("int4/fp16+gptq", "names method 'gptq'")],
)
def test_what_is_not_supported_yet_is_an_error(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _estimate(_linear([1.0]), torch.zeros(1, 1), option)


def test_weights_that_are_not_finite_are_named() -> None:
    model = _linear([1.0, torch.nan])
    with pytest.raises(ValueError, match="layer '0': it holds NaN"):
        WeightError().estimate(
            Task(model, [torch.zeros(1, 2)]),
            trace(_linear([1.0, 2.0]), torch.zeros(1, 2)),
            (Option.parse("w4a8"),),
            recipe=MINMAX,
            sweep=Sweep(),
        )


def test_the_network_of_another_model_is_an_error() -> None:
    model, (x, *_), _ = mixed()
    other = _linear([1.0])
    with pytest.raises(KeyError, match="keeps no weight named 'stem'"):
        WeightError().estimate(
            Task(other, [x]), trace(model, x), options("w4a8"), recipe=MINMAX, sweep=Sweep()
        )
