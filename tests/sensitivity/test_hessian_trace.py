"""The table against closed forms, against PyHessian layer by layer, and the laws of estimators."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Option, options
from mpsearch.protocols import Estimator
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity import HessianTrace
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import module_weight, trace
from tests.sensitivity.networks import kinked, resnet20

OPTIONS = options("w2a8", "w4a8", "w8a8")


class TestExact(EstimatorSuite):
    estimator: Estimator = HessianTrace()


class TestSampled(EstimatorSuite):
    estimator: Estimator = HessianTrace(probes=2)


class TestHutchinson(EstimatorSuite):
    estimator: Estimator = HessianTrace(probes=12, method="hutchinson")


def _estimate(task: Task, estimator: HessianTrace, pin: dict[str, str] | None = None) -> Table:
    network = trace(task.model, task.batches[0], pin=pin)
    return estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())


def _error(weight: Tensor, option: Option) -> float:
    weight = weight.detach()
    return float((round_trip(weight, option.weight) - weight).double().square().sum())


def test_softmax_regression_has_its_closed_form() -> None:
    """The block is (diag(p) - p p^T) times x x^T, with trace (1 - |p|^2) |x|^2."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4), torch.randn(7, 5)
    p = model(x).softmax(-1).double()
    each = ((1 - p.square().sum(1)) * x.double().square().sum(1)).detach().numpy() / 20
    table = _estimate(Task(nn.Sequential(model), [x[:3], x[3:]]), HessianTrace())
    errors = np.array([_error(model.weight, o) for o in OPTIONS])
    np.testing.assert_allclose(table.values[0], each.mean() * errors, rtol=1e-6)
    assert table.stderr is not None
    wanted = each.std(ddof=1) / 7**0.5 * errors
    np.testing.assert_allclose(table.stderr[0], wanted, rtol=1e-5)
    assert table.unit == "mean trace x squared weight error, exact"


def test_an_output_that_is_no_logits_has_the_relative_error_of_its_closed_form() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(2, 3, 1, bias=False), torch.randn(4, 2, 3, 3)
    norms = model(x).detach().double().square().sum((1, 2, 3))
    each = 2 * 3 * x.double().square().sum((1, 2, 3)) / norms  # the Jacobian has x three times
    table = _estimate(Task(nn.Sequential(model), [x]), HessianTrace())
    wanted = float(each.mean()) / 6 * _error(model.weight, OPTIONS[0])
    np.testing.assert_allclose(table.values[0, 0], wanted, rtol=1e-6)


def test_a_single_sample_has_no_standard_error() -> None:
    model, x = kinked()
    assert _estimate(Task(model.float(), [x[:1].float()]), HessianTrace()).stderr is None


@pytest.mark.parametrize(
    ("estimator", "unit"),
    [
        (HessianTrace(), "exact"),
        (HessianTrace(probes=2), "2 passes a sample"),
        (HessianTrace(probes=8, method="sampled"), "exact"),
        (HessianTrace(probes=8, method="hutchinson"), "8 Hessian-vector products"),
    ],
)
def test_the_unit_says_what_was_used(estimator: HessianTrace, unit: str) -> None:
    model, x = kinked()
    table = _estimate(Task(model, [x]), estimator)
    assert table.unit == f"mean trace x squared weight error, {unit}"


@pytest.mark.parametrize("method", ["sampled", "hutchinson"])
def test_what_chance_leaves_is_within_its_standard_error(method: Any) -> None:
    model, x = kinked()
    task = Task(model, [x.repeat(20, 1, 1, 1)])  # as if samples had no spread of their own
    exact = _estimate(Task(model, [x]), HessianTrace())
    found = _estimate(task, HessianTrace(probes=2 if method == "sampled" else 64, method=method))
    assert found.stderr is not None
    assert (abs(found.values - exact.values) < 4 * found.stderr + 1e-12).all()


def test_tied_layers_have_the_sum_of_their_rows() -> None:
    class Projections(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.q_proj(x), self.k_proj(x)], 1)

    torch.manual_seed(0)
    model, x = Projections(), torch.randn(6, 4)
    tied = trace(model, x)
    assert [layer.modules for layer in tied.layers] == [("q_proj", "k_proj")]
    task = Task(model, [x])
    both = _estimate(task, HessianTrace())
    alone = [
        HessianTrace().estimate(
            task, trace(model, x, skip=[s]), OPTIONS, recipe=Recipe(), sweep=Sweep()
        )
        for s in ("k_proj", "q_proj")
    ]
    np.testing.assert_allclose(both.values, sum(one.values for one in alone), rtol=1e-9)


def test_pinned_layers_keep_their_option() -> None:
    model, x = kinked()
    table = _estimate(Task(model, [x]), HessianTrace(), pin={"^0$": "w8a8"})
    assert table.allowed.tolist() == [[False, False, True], [True] * 3, [True] * 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 0}, "probes is 0; wanted at least 1"),
        ({"method": "guess"}, "no method is named 'guess'; there are 'auto', 'exact', 'sampled'"),
    ],
)
def test_settings_that_nothing_follows_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HessianTrace(**settings)


def _by_pyhessian(
    model: nn.Module, names: Sequence[str], x: Tensor, target: Tensor, probes: int
) -> tuple[Any, Any]:
    """Mean and standard error of PyHessian's trace of each layer, its weight alone at a time."""
    from pyhessian import hessian

    found = []
    for name in names:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        model.get_submodule(name).get_parameter("weight").requires_grad_()
        computed = hessian(model, nn.CrossEntropyLoss(), data=(x, target), cuda=False)
        found.append(computed.trace(maxIter=probes, tol=0))
    each = np.array(found)
    return each.mean(axis=1), each.std(axis=1, ddof=1) / probes**0.5


@pytest.mark.parametrize("loss", [None, lambda z, batch: F.cross_entropy(z, batch[1])])
@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_agrees_with_pyhessian_layer_by_layer(
    loss: Callable[[Any, Any], Any] | None, method: Any
) -> None:
    torch.manual_seed(0)
    model, x = kinked()
    model, x = model.float(), x.float()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        target = labels if loss else model(x).softmax(-1)
    table = _estimate(Task(model, [(x, labels)], loss=loss), HessianTrace(64, method=method))
    names = [layer.name for layer in table.layers]
    weights = [module_weight(model, name) for name in names]
    scale = np.array([w.numel() / _error(w, OPTIONS[0]) for w in weights])
    found = table.values[:, 0] * scale
    assert table.stderr is not None
    noise = table.stderr[:, 0] * scale if method == "hutchinson" else 0
    mean, error = _by_pyhessian(model, names, x, target, 300)
    assert (abs(found - mean) < 4 * np.hypot(error, noise)).all()
    assert (error < 0.2 * mean).all()


@pytest.mark.shared
@pytest.mark.slow
def test_agrees_with_pyhessian_on_resnet20(shared: Path) -> None:
    model, x = resnet20(shared, 16)
    table = _estimate(Task(model, [x]), HessianTrace())
    with torch.no_grad():
        target = model(x).softmax(-1)
    names = [layer.name for layer in table.layers]
    weights = [module_weight(model, name) for name in names]
    scale = np.array([w.numel() / _error(w, OPTIONS[0]) for w in weights])
    mean, error = _by_pyhessian(model, names, x, target, 16)
    assert len(names) == 20
    assert (abs(table.values[:, 0] * scale - mean) < 4 * error).all()
    assert (error < 0.5 * mean).all()
