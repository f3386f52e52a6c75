"""Noise on networks whose answer is known, formats priced by it, and the laws of estimators."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch.batches import divergence
from mpsearch.formats import Option, options
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.kl import KL
from mpsearch.sensitivity.noise import Noise
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.quant.networks import mixed, tied
from tests.sensitivity.midway import left_as_it_was

PLAIN = Recipe(corrections=())
OPTIONS = options("w4a16", "w16a4", "w4a4", "w8a8", "w16a16")


class TestLaws(EstimatorSuite):
    estimator: Estimator = Noise()


def _estimate(
    task: Task,
    estimator: Noise,
    *,
    given: tuple[Option, ...] = OPTIONS,
    traced: Any = None,
    sweep: Sweep | None = None,
) -> Table:
    network = trace(task.model, task.batches[0] if traced is None else traced)
    return estimator.estimate(task, network, given, recipe=PLAIN, sweep=sweep or Sweep())


def _half_square(output: Tensor, _: Any) -> Tensor:
    return output.square().sum() / (2 * len(output))


def test_alpha_of_a_quadratic_loss_is_half_its_curvature() -> None:
    """With E = W + s Z, Z standard normal, the mean gain of ||E x||^2 / 2 is s^2 ||x||^2 rows / 2."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 30, bias=False)), torch.randn(50, 20)
    table = _estimate(Task(model, [x], loss=_half_square), Noise(draws=20))
    weight = model.get_parameter("0.weight").detach()
    size = weight.square().mean()
    alpha = float(size * x.square().sum(1).mean() * 30 / 2)
    error = (round_trip(weight, OPTIONS[0].weight) - weight).square().sum() / weight.square().sum()
    assert table.stderr is not None
    assert table.unit == "loss"
    assert abs(table.values[0, 0] - alpha * float(error)) < 4 * table.stderr[0, 0]
    assert table.stderr[0, 0] < 0.05 * table.values[0, 0]


def test_alpha_of_the_inputs_of_a_quadratic_loss() -> None:
    """With x + s z, the mean gain of ||W x||^2 / 2 is s^2 ||W||^2 / 2."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 30, bias=False)), torch.randn(50, 20)
    batches = [x[:20], x[20:]]
    table = _estimate(Task(model, batches, loss=_half_square), Noise(draws=20))
    squares = [float(b.square().mean()) for b in batches]
    mean = float(np.average(squares, weights=[20, 30]))
    alpha = mean * float(model.get_parameter("0.weight").detach().square().sum()) / 2
    found = table.values[0, 1]
    assert table.stderr is not None
    assert 0.001 * alpha < found < 0.05 * alpha  # 4 bits of a Gaussian leave about one percent
    assert table.values[0, 2] == pytest.approx(table.values[0, 0] + found)


def test_both_signs_leave_nothing_of_the_first_order() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(6, 4)
    table = _estimate(Task(model, [x], loss=lambda z, _: z.sum()), Noise(draws=1))
    assert abs(table.values[:, 0]).max() < 1e-4


def _gap(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """How far an output is from what the float model gave."""
    return divergence(batch[1], output).mean()


@pytest.mark.parametrize("recipe", [Recipe(), PLAIN])
@pytest.mark.parametrize("loss", [None, _gap])
def test_predicts_what_small_errors_do(loss: Any, recipe: Recipe) -> None:
    model, batches, _ = mixed()
    with torch.no_grad():
        pairs = [(x, model(x)) for x in batches]
    given = options("w6a16", "w7a16", "w16a7", "w16a8", "w7a8")
    task, network = Task(model, pairs, loss=loss), trace(model, batches[0])
    estimator = Noise((0.02, 0.04), draws=8)
    table = estimator.estimate(task, network, given, recipe=recipe, sweep=Sweep())
    wanted = KL().estimate(task, network, given, recipe=recipe, sweep=Sweep())
    assert table.unit == wanted.unit
    ratio = table.values / wanted.values
    assert (ratio > 0.1).all()  # an error lies in one direction, noise in all
    assert (ratio < 10).all()
    assert 0.7 < float(np.exp(np.log(ratio).mean())) < 1.4, ratio


def test_is_as_good_as_its_slope_is_for_any_size() -> None:
    model, batches, _ = mixed()
    small, large = (
        _estimate(Task(model, batches), Noise((size,), draws=8)) for size in (0.01, 0.05)
    )
    np.testing.assert_allclose(small.values[:, 0], large.values[:, 0], rtol=0.2)


def test_tied_weights_move_together() -> None:
    model, batches, _ = tied()
    table = _estimate(Task(model, batches), Noise())
    assert table.unit == "KL (nats per token)"
    assert (table.values[:, :4] > 0).all()


def test_a_role_that_no_option_rounds_is_not_run() -> None:
    model, batches, _ = mixed()
    sweep = Sweep()
    _estimate(Task(model, batches), Noise(), given=options("w4a16", "w8a16"), sweep=sweep)
    roles = {json.loads(key)[3] for key in sweep.cache if json.loads(key)[1] == "noise"}
    assert roles == {"weight"}


def test_one_sample_and_one_draw_have_no_standard_error() -> None:
    model, batches, _ = mixed()
    task = Task(model, [batches[0][:1]])
    assert _estimate(task, Noise(draws=1)).stderr is None
    assert _estimate(task, Noise(draws=2)).stderr is not None


def test_the_seed_decides_the_noise() -> None:
    model, batches, _ = mixed()
    one, same, other = (
        _estimate(Task(model, batches), Noise(seed=seed)).values[0, 0] for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": ()}, r"sizes are \(\); wanted numbers above 0 and below 1"),
        ({"sizes": (0.1, 1.0)}, r"sizes are \(0.1, 1.0\); wanted numbers above 0 and below 1"),
        ({"draws": 0}, "draws is 0; wanted at least 1"),
    ],
)
def test_settings_that_fit_no_slope_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Noise(**settings)


class _Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out + self.other(x) if x[0, 0] > 9 else out


def test_a_layer_that_never_runs_is_an_error() -> None:
    task = Task(_Skipping(), [torch.rand(5, 4)])
    with pytest.raises(ValueError, match="layer 'other' is not called on the calibration batches"):
        _estimate(task, Noise(), traced=torch.full((5, 4), 10.0))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model, batches, _ = mixed()
    with pytest.raises(ValueError, match="the loss of the float model is nan; wanted a finite"):
        _estimate(Task(model, batches, loss=lambda z, _: z.sum() * float("nan")), Noise())
    calls = iter(range(1000))
    later = Task(model, batches, loss=lambda z, _: z.sum() * (1 if next(calls) < 2 else np.nan))
    with pytest.raises(ValueError, match="layer 'stem': the loss is nan with noise on its weight"):
        _estimate(later, Noise())
    with pytest.raises(ValueError, match="the loss returned str; wanted one number a batch"):
        _estimate(Task(model, batches, loss=lambda z, _: str(z)), Noise())


def test_overflow_in_half_precision_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).half()
    model.get_parameter("0.weight").data.fill_(100.0)
    x = torch.full((3, 4), 160.0, dtype=torch.float16)  # to 64000, just below the largest
    with pytest.raises(ValueError, match=r"layer '0': the loss is nan with noise.* in float32"):
        _estimate(Task(model, [x]), Noise((0.9,)))


def test_a_model_that_fails_midway_is_left_as_it_was() -> None:
    def estimate(task: Task, network: Network) -> Table:
        return Noise().estimate(task, network, OPTIONS, recipe=PLAIN, sweep=Sweep())

    left_as_it_was(estimate, 1, 5, 9, 12, 30)
