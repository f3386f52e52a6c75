"""Eigenvalues against closed forms and PyHessian, the two orders, and the laws of estimators."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Option, options
from mpsearch.protocols import Estimator
from mpsearch.quant.bench import Bench
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.hessian_eig import HessianEig
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.sensitivity.networks import curved, kinked, resnet20

OPTIONS = options("w2a16", "w16a4", "w2a4", "w16a16")


class TestBits(EstimatorSuite):
    estimator: Estimator = HessianEig()


class TestFineTuning(EstimatorSuite):
    estimator: Estimator = HessianEig("fine-tuning")


def _estimate(task: Task, estimator: HessianEig) -> Table:
    return _estimate_at(task, estimator, OPTIONS)


def _estimate_at(task: Task, estimator: HessianEig, options: Sequence[Option]) -> Table:
    network = trace(task.model, task.batches[0])
    return estimator.estimate(task, network, options, recipe=Recipe(), sweep=Sweep())


def _scaled(k: float, output: Any, _: Any) -> Tensor:
    value: Tensor = k * output.exp().mean()
    return value


def _square(output: Any, batch: Any) -> Tensor:
    value: Tensor = (output - batch[1]).square().sum(1).mean()
    return value


def test_a_linear_network_has_its_closed_form() -> None:
    """For mean |W x - y|^2 it is that of 2 X^T X / N in W, and that of 2 W^T W in x."""
    torch.manual_seed(0)
    linear = nn.Linear(5, 3, bias=False)
    model = nn.Sequential(linear)
    x, y = torch.randn(12, 5), torch.randn(12, 3)
    weight = linear.weight.detach()
    of_weights = float(torch.linalg.eigvalsh(2 * x.T @ x / 12)[-1])
    of_inputs = float(torch.linalg.eigvalsh(2 * weight.T @ weight)[-1])
    task = Task(model, [(x[:4], y[:4]), (x[4:], y[4:])], loss=_square)
    bits = _estimate(task, HessianEig(tolerance=1e-6))
    w, a = of_weights / 15 / 16, of_inputs / 5 / 256
    np.testing.assert_allclose(bits.values[0], [w, a, w + a, 0], rtol=1e-3)
    error = float((round_trip(weight, OPTIONS[0].weight) - weight).square().sum())
    grid = Bench(model, [x[:4], x[4:]], ["0"], Recipe()).grid("0", OPTIONS[1].activation)
    assert grid is not None
    steps = (x / grid.scale).round().clamp(grid.low - grid.zero, grid.high - grid.zero)
    change = float((steps * grid.scale - x).square().sum(1).mean())
    tuning = _estimate(task, HessianEig("fine-tuning", tolerance=1e-6))
    w, a = of_weights * error, of_inputs * change
    np.testing.assert_allclose(tuning.values[0], [w, a, w + a, 0], rtol=1e-3)


@pytest.mark.parametrize("loss", [None, lambda z, batch: F.cross_entropy(z, batch[1])])
def test_agrees_with_pyhessian_layer_by_layer(loss: Any) -> None:
    from pyhessian import hessian

    model, x = kinked()
    model, x, labels = model.float(), x.float(), torch.tensor([0, 1, 2, 0, 1, 2])
    task = Task(model, [(x, labels)], loss=loss)
    table = _estimate(task, HessianEig(tolerance=1e-5, iterations=300))
    with torch.no_grad():
        target = labels if loss else model(x).softmax(-1)
    for row, layer in enumerate(table.layers):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        model.get_submodule(layer.name).get_parameter("weight").requires_grad_()
        computed = hessian(model, nn.CrossEntropyLoss(), data=(x, target), cuda=False)
        torch.manual_seed(0)
        (top,), _ = computed.eigenvalues(maxIter=300, tol=1e-5)
        found = table.values[row, 0] * 16 * layer.params
        np.testing.assert_allclose(found, abs(top), rtol=5e-3)


def test_the_eigenvalue_of_largest_magnitude_counts_whatever_its_sign() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[0.5, 0.25]])
    x = torch.tensor([[3.0, 1.0]])
    table = _estimate(Task(model, [x], loss=lambda z, _: -z.square().sum()), HessianEig())
    np.testing.assert_allclose(table.values[0, 0], 2 * 10 / 2 / 16, rtol=1e-3)  # 2 x x^T


def test_a_dead_layer_has_no_curvature() -> None:
    first = nn.Linear(3, 4)
    nn.init.constant_(first.bias, -100)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))
    table = _estimate(Task(model, [torch.ones(2, 3)]), HessianEig())
    np.testing.assert_allclose(table.values[0], 0)
    assert (
        _estimate(Task(model, [torch.ones(2, 3)]), HessianEig("fine-tuning")).values[0] == 0
    ).all()


def test_batches_count_by_their_samples() -> None:
    model, x = kinked()
    whole, apart = (
        _estimate(Task(model, batches), HessianEig(tolerance=1e-8, iterations=500))
        for batches in ([x], [x[:1], x[1:4], x[4:]])
    )
    np.testing.assert_allclose(whole.values[:, 0], apart.values[:, 0], rtol=1e-5)
    np.testing.assert_allclose(whole.values[:, 1], apart.values[:, 1], rtol=1e-5)


def test_the_hessian_in_inputs_is_that_of_each_sample() -> None:
    model, x = curved()
    table = _estimate(Task(model, [x]), HessianEig(tolerance=1e-9, iterations=500))
    target = model(x).detach().log_softmax(-1)

    def loss(one: Tensor, row: int) -> Tensor:
        q = model(one).log_softmax(-1)
        value: Tensor = (target[row].exp() * (target[row] - q)).sum()
        return value

    tops = [
        torch.linalg.eigvalsh(torch.autograd.functional.hessian(partial(loss, row=row), x[row]))
        for row in range(len(x))
    ]
    wanted = np.array([float(top.abs().max()) for top in tops]) / 4 / 256
    np.testing.assert_allclose(table.values[0, 1], wanted.mean(), rtol=1e-4)
    assert table.stderr is not None
    np.testing.assert_allclose(table.stderr[0, 1], wanted.std(ddof=1) / 5**0.5, rtol=1e-4)


@settings(max_examples=8)
@given(power=st.integers(-8, 8))
def test_eigenvalues_grow_with_the_loss(power: int) -> None:
    model, x = curved()
    one, other = (
        _estimate(Task(model, [x], loss=partial(_scaled, k)), HessianEig())
        for k in (1.0, 2.0**power)
    )
    np.testing.assert_allclose(other.values, 2.0**power * one.values, rtol=1e-10)


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.both = True

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x)) if self.both else self.two(x)
        return out


def test_says_which_module_does_not_run() -> None:
    model, x = Skipping(), torch.ones(2, 3)
    network = trace(model, x)
    model.both = False
    with pytest.raises(ValueError, match=r"module 'one' does not run on any batch.*skip it"):
        HessianEig().estimate(
            Task(model, [x]), network, OPTIONS[:1], recipe=Recipe(), sweep=Sweep()
        )
    with pytest.raises(ValueError, match=r"module 'one' is not called on the calibration batches"):
        HessianEig("fine-tuning").estimate(
            Task(model, [x]), network, OPTIONS[1:2], recipe=Recipe(), sweep=Sweep()
        )


def test_curvature_out_of_range_is_an_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).half()
    task = Task(model, [torch.ones(2, 3).half()], loss=lambda z, _: 1e30 * z.float().tanh().mean())
    with pytest.raises(ValueError, match=r"layer '0': its curvature is out of range; run the"):
        _estimate(task, HessianEig())


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"order": "size"}, r"order is 'size'; known are 'bits', 'fine-tuning'"),
        ({"iterations": 0}, r"iterations is 0; wanted at least 1"),
        ({"tolerance": 1.0}, r"tolerance is 1\.0; wanted at least 0 and below 1"),
    ],
)
def test_settings_that_nothing_follows_are_errors(given_settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HessianEig(**given_settings)


@pytest.mark.shared
@pytest.mark.slow
def test_agrees_with_pyhessian_on_resnet20(shared: Path) -> None:
    from pyhessian import hessian

    model, x = resnet20(shared, 16)
    table = _estimate_at(Task(model, [x]), HessianEig(), options("w2a32"))
    with torch.no_grad():
        target = model(x).softmax(-1)
    assert len(table.layers) == 20
    for row, layer in enumerate(table.layers):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        model.get_submodule(layer.name).get_parameter("weight").requires_grad_()
        computed = hessian(model, nn.CrossEntropyLoss(), data=(x, target), cuda=False)
        torch.manual_seed(0)
        (top,), _ = computed.eigenvalues(maxIter=100, tol=1e-3)
        found = table.values[row, 0] * 16 * layer.params
        np.testing.assert_allclose(found, abs(top), rtol=0.05)
