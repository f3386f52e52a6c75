"""First and second order against closed forms and autograd, and the laws of estimators."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mpsearch.formats import options
from mpsearch.protocols import Estimator
from mpsearch.quant.bench import Bench
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.taylor import Taylor
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.sensitivity.networks import curved, kinked

OPTIONS = options("w2a32", "w32a4", "w4a4", "w32a32")
PLAIN = Recipe(corrections=())


def _cross_entropy(output: Any, batch: Any) -> Tensor:
    return F.cross_entropy(output, batch[1])


class TestAutoround(EstimatorSuite):
    estimator: Estimator = Taylor()


class TestSecondOrder(EstimatorSuite):
    estimator: Estimator = Taylor("second-order")


class TestLlmMq(EstimatorSuite):
    estimator: Estimator = Taylor("llm-mq")

    def estimate(self, task: Task, traced: Any = None) -> Table:
        return super().estimate(replace(task, loss=task.loss or _cross_entropy), traced)


def _scaled(k: float, output: Any, _: Any) -> Tensor:
    value: Tensor = k * output.exp().mean()
    return value


def _estimate(task: Task, estimator: Taylor, **how: Any) -> Table:
    network = trace(task.model, task.batches[0])
    return estimator.estimate(task, network, OPTIONS, recipe=PLAIN, sweep=Sweep(**how))


def test_linear_networks_have_their_closed_forms() -> None:
    """With L = mean |W x - y|^2 the gradient is 2 mean (W x - y) x^T and the Hessian known."""
    torch.manual_seed(0)
    linear, x, y = nn.Linear(5, 3, bias=False), torch.randn(8, 5), torch.randn(8, 3)
    model = nn.Sequential(linear)

    def loss(output: Any, batch: Any) -> Tensor:
        value: Tensor = (output - batch[1]).square().sum(1).mean()
        return value

    task = Task(model, [(x, y)], loss=loss)
    weight = linear.weight.detach()
    dw = round_trip(weight, OPTIONS[0].weight) - weight
    grid = Bench(model, [x], ["0"], PLAIN).grid("0", OPTIONS[1].activation)
    dx = _rounded(x, grid) - x
    g = 2 * (x @ weight.T - y).T @ x / 8
    gx = 2 * (x @ weight.T - y) @ weight / 8
    found = _estimate(task, Taylor("llm-mq")).values[0]
    rows = [float((g * dw).sum().abs()), float((gx * dx).sum().abs())]
    np.testing.assert_allclose(found[[0, 1, 3]], [*rows, 0], rtol=1e-5)
    elements = _estimate(task, Taylor("llm-mq", "elements")).values[0]
    wanted = [float((g * dw).abs().sum()), float((gx * dx).abs().sum())]
    np.testing.assert_allclose(elements[:2], wanted, rtol=1e-5)


def test_second_order_is_exact_where_the_loss_is_a_square() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias=False)).double()
    x, y = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)

    def loss(output: Any, batch: Any) -> Tensor:
        value: Tensor = (output - batch[1]).square().mean()
        return value

    task = Task(model, [(x, y)], loss=loss)
    found = _estimate(task, Taylor("second-order"))
    bench = Bench(model, [x], ["0", "1"], PLAIN)
    base = float(loss(model(x), (x, y)).detach())
    for row, name in enumerate(["0", "1"]):
        for column, option in enumerate(OPTIONS[:2]):  # with both there is a third order
            with bench.at({name: option}) as quantized, torch.no_grad():
                gain = float(loss(quantized(x), (x, y))) - base
            np.testing.assert_allclose(found.values[row, column], gain, rtol=1e-6)
    assert found.unit == "loss, to second order"


@pytest.mark.parametrize("loss", [None, _cross_entropy])
def test_autoround_is_what_autograd_finds_at_the_rounded_network(loss: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    x, y = torch.randn(9, 6), torch.arange(9) % 4
    table = _estimate(Task(model, [(x[:4], y[:4]), (x[4:], y[4:])], loss=loss), Taylor())
    bench = Bench(model, [x[:4], x[4:]], ["0", "2"], PLAIN)
    total = np.zeros(2)
    for part, labels in ((x[:4], y[:4]), (x[4:], y[4:])):
        places, changes = [], []
        h = part
        for name in ("0", "2"):
            module = model.get_submodule(name)
            assert isinstance(module, nn.Linear)
            grid = bench.grid(name, OPTIONS[2].activation)
            read = h.detach()
            rounded = _rounded(read, grid) + (h - read)  # straight through where nothing is clipped
            rounded = rounded if rounded.requires_grad else rounded.requires_grad_()
            weight = round_trip(module.weight.detach(), OPTIONS[2].weight).requires_grad_()
            places += [weight, rounded]
            changes += [weight.detach() - module.weight.detach(), rounded.detach() - read]
            h = F.linear(rounded, weight, module.bias)
            h = h.relu() if name == "0" else h
        p = model(part).detach().log_softmax(-1)
        q = h.log_softmax(-1)
        value = F.cross_entropy(h, labels) if loss else (p.exp() * (p - q)).sum(-1).mean()
        slopes = torch.autograd.grad(value, places)
        each = [float((g * d).abs().sum()) for g, d in zip(slopes, changes, strict=True)]
        total += len(part) / 9 * np.array([each[0] + each[1], each[2] + each[3]])
    np.testing.assert_allclose(table.values[:, 2], total, rtol=1e-4)
    assert table.unit == "rank score (AutoRound)"


def _rounded(x: Tensor, grid: Any) -> Tensor:
    steps = (x / grid.scale).round() + grid.zero
    rounded: Tensor = (steps.clamp(grid.low, grid.high) - grid.zero) * grid.scale
    return rounded


@pytest.mark.parametrize("make", [kinked, curved])
def test_second_order_is_the_second_derivative_along_the_change(make: Any) -> None:
    model, x = make()
    task = Task(model, [(x, torch.arange(len(x)) % 3)], loss=_cross_entropy)
    table = _estimate(task, Taylor("second-order"))
    for row, layer in enumerate(table.layers):
        weight = model.get_submodule(layer.name).weight
        change = round_trip(weight.detach(), OPTIONS[0].weight) - weight.detach()

        def along(t: Tensor, name: str = layer.name, d: Tensor = change) -> Tensor:
            moved = {f"{name}.weight": model.get_submodule(name).weight + t * d}
            return _cross_entropy(functional_call(model, moved, (x,)), task.batches[0])

        zero = torch.zeros((), dtype=torch.float64)
        first = torch.as_tensor(torch.autograd.functional.jacobian(along, zero))
        second = torch.as_tensor(torch.autograd.functional.hessian(along, zero))
        np.testing.assert_allclose(table.values[row, 0], float(first + second / 2), rtol=1e-6)


@pytest.mark.parametrize("absolute", ["sum", "elements"])
def test_both_roles_have_the_sum_of_their_scores(absolute: Any) -> None:
    model, x = kinked()
    task = Task(model, [(x, torch.arange(6) % 3)], loss=_cross_entropy)
    network = trace(model, x)
    found = Taylor("llm-mq", absolute).estimate(
        task, network, options("w2a32", "w32a4", "w2a4"), recipe=PLAIN, sweep=Sweep()
    )
    np.testing.assert_allclose(found.values[:, 2], found.values[:, :2].sum(axis=1), rtol=1e-12)


@settings(max_examples=6)
@given(power=st.integers(-20, 20), seed=st.integers(0, 99))
def test_scores_grow_with_the_loss(power: int, seed: int) -> None:
    seeded = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64, generator=seeded)
    tables = [
        _estimate(Task(model, [x], loss=partial(_scaled, k)), Taylor(variant))
        for variant in ("autoround", "llm-mq", "second-order")
        for k in (1.0, 2.0**power)
    ]
    for one, other in zip(tables[::2], tables[1::2], strict=True):
        np.testing.assert_allclose(other.values, 2.0**power * one.values, rtol=1e-12)


def test_the_sum_over_batches_is_taken_before_its_absolute_value() -> None:
    model, x = nn.Sequential(nn.Linear(2, 1, bias=False)), torch.tensor([[1.0, 0.3]])
    apart = Task(model, [x, -x], loss=lambda z, _: z.sum())
    found = _estimate(apart, Taylor("llm-mq"))
    np.testing.assert_allclose(found.values[0, 0], 0, atol=1e-9)
    assert found.stderr is not None
    assert found.stderr[0, 0] > 0
    assert _estimate(apart, Taylor("llm-mq", "elements")).values[0, 0] > 0


def test_only_gradients_that_are_used_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = kinked()
    asked: list[int] = []
    grad = torch.autograd.grad

    def counting(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(inputs))
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    _estimate(Task(model, [x]), Taylor())
    assert asked == [3, 3, 6]  # three layers: weights, inputs, both; nothing where none is rounded


def test_a_second_run_takes_all_from_the_cache() -> None:
    model, x = kinked()
    task, sweep = Task(model, [x]), Sweep()
    network = trace(model, x)
    tables = [
        Taylor().estimate(task, network, OPTIONS, recipe=PLAIN, sweep=sweep) for _ in range(2)
    ]
    assert len(sweep.cache) == len(OPTIONS)
    assert (tables[0].values == tables[1].values).all()


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x).detach())
        return out


def test_says_which_layer_has_no_gradient() -> None:
    message = r"no gradient in layer 'one' on any batch: it does not run, or .* give batches"
    with pytest.raises(ValueError, match=message):
        _estimate(Task(Detached(), [torch.ones(2, 3)]), Taylor())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_and_overflow_is_an_error(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3)).to(dtype), torch.randn(5, 4, dtype=dtype)
    task = Task(model, [x], loss=lambda z, _: z.float().square().mean())
    assert np.isfinite(_estimate(task, Taylor()).values).all()
    large = Task(model, [x], loss=lambda z, _: 1e38 * z.float().tanh().mean())
    if dtype is torch.float16:
        with pytest.raises(ValueError, match=r"layer '0' at 'int2/fp32': .* out of range; run the"):
            _estimate(large, Taylor())


@pytest.mark.parametrize(
    ("loss", "batch", "message"),
    [
        (_cross_entropy, torch.ones(1, 3), r"the loss failed on a batch \(IndexError: .* labels"),
        (lambda _z, _b: 1.0, torch.ones(1, 3), r"the loss returned 1\.0; wanted a tensor of one"),
        (lambda z, _: z, torch.ones(2, 3), r"the loss returned shape \(2, 3\); wanted a tensor"),
        (lambda z, _: z.sum() * np.inf, torch.ones(2, 3), r"the loss is -?inf; wanted a finite"),
    ],
)
def test_losses_that_have_no_slope_are_errors(loss: Any, batch: Tensor, message: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=message):
        _estimate(Task(model, [batch], loss=loss), Taylor())


def test_llm_mq_wants_a_loss_with_a_slope() -> None:
    model, x = kinked()
    with pytest.raises(ValueError, match=r"'llm-mq' takes the gradient in the float .* give Task"):
        _estimate(Task(model, [x]), Taylor("llm-mq"))


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        (("first",), r"variant is 'first'; known are 'autoround', 'llm-mq', 'second-order'"),
        (("llm-mq", "none"), r"absolute is 'none'; known are 'elements', 'sum'"),
        (("second-order", "sum"), r"absolute is 'sum', but 'second-order' is signed; leave it"),
    ],
)
def test_settings_that_nothing_follows_are_errors(given_settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Taylor(*given_settings)
