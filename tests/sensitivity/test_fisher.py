"""Diagonal Fisher matrices against autograd and closed forms, and the laws of estimators."""

from functools import partial
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
from mpsearch.sensitivity.fisher import Fisher
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import module_weight, trace
from tests.sensitivity.networks import curved, kinked

OPTIONS = options("w2a32", "w32a4", "w2a4", "w32a32")
PLAIN = Recipe(corrections=())


class TestWeights(EstimatorSuite):
    estimator: Estimator = Fisher()


class TestOutputs(EstimatorSuite):
    estimator: Estimator = Fisher("outputs")


def _estimate(task: Task, estimator: Fisher, sweep: Sweep | None = None) -> Table:
    network = trace(task.model, task.batches[0])
    sweep = Sweep() if sweep is None else sweep
    return estimator.estimate(task, network, OPTIONS, recipe=PLAIN, sweep=sweep)


def _scaled(k: float, output: Any, _: Any) -> Tensor:
    value: Tensor = k * output.exp().mean()
    return value


def _cross_entropy(output: Any, batch: Any) -> Tensor:
    return F.cross_entropy(output, batch[1])


def _literally(task: Task, bench: Bench, name: str, option: Option, at: str) -> list[float]:
    """Sample by sample, with autograd."""
    model, found = bench.model, []
    module = model.get_submodule(name)
    weight = module_weight(model, name)
    rounded = round_trip(weight.detach(), option.weight) if option.weight.quantized else weight
    grid = bench.grid(name, option.activation)
    for batch in task.batches:
        for x, y in zip(*(part.split(1) for part in batch), strict=True):
            kept: list[Any] = []

            def hook(_: Any, args: Any, output: Any, kept: list[Any] = kept) -> Any:
                output.retain_grad()
                kept.append((args[0].detach().clone(), output, output.detach().clone()))
                return output.clone()

            def before(_: Any, args: Any, kept: list[Any] = kept) -> Any:
                x = args[0].clone() if args[0].requires_grad else args[0].clone().requires_grad_()
                x.retain_grad()
                kept.append(x)
                return (x,)

            weight.requires_grad_()
            weight.grad = None
            handles = [module.register_forward_pre_hook(before), module.register_forward_hook(hook)]
            _cross_entropy(model(x), (x, y)).backward()
            for handle in handles:
                handle.remove()
            total = 0.0
            for reads, (value, output, wrote) in zip(kept[::2], kept[1::2], strict=True):
                new = value
                if grid is not None:
                    steps = (value / grid.scale).round() + grid.zero
                    new = (steps.clamp(grid.low, grid.high) - grid.zero) * grid.scale
                if at == "outputs":
                    with torch.no_grad():
                        error = torch.func.functional_call(module, {"weight": rounded}, new) - wrote
                    total += float((output.grad * error).square().sum())
                else:
                    total += float((reads.grad * (new - value)).square().sum()) / 2
            if at == "weights":
                total += (
                    float(
                        (torch.as_tensor(weight.grad) * (rounded - weight)).detach().square().sum()
                    )
                    / 2
                )
            found.append(total)
            weight.requires_grad_(False)
    return found


@pytest.mark.parametrize("make", [kinked, curved])
@pytest.mark.parametrize("at", ["weights", "outputs"])
def test_agrees_with_autograd_sample_by_sample(make: Any, at: Any) -> None:
    model, x = make()
    labels = torch.arange(len(x)) % 3
    task = Task(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], loss=_cross_entropy)
    table = _estimate(task, Fisher(at))
    bench = Bench(model, task.batches, [layer.name for layer in table.layers], PLAIN)
    assert table.stderr is not None
    for row, layer in enumerate(table.layers):
        for column, option in enumerate(OPTIONS[:3]):
            rows = np.array(_literally(task, bench, layer.name, option, at))
            np.testing.assert_allclose(table.values[row, column], rows.mean(), rtol=1e-5)
            wanted = rows.std(ddof=1) / len(rows) ** 0.5
            np.testing.assert_allclose(table.stderr[row, column], wanted, rtol=1e-5)


def test_without_a_loss_it_is_the_diagonal_of_the_hessian_of_kl() -> None:
    """For softmax regression that is p (1 - p) x^2, here met on average over directions."""
    torch.manual_seed(0)
    linear, one = nn.Linear(3, 4), torch.randn(1, 3)
    model = nn.Sequential(linear)
    x = one.expand(4000, 3).clone()
    weight = linear.weight.detach()
    change = round_trip(weight, OPTIONS[0].weight) - weight
    p = model(one).detach().softmax(-1)[0]
    wanted = float(((p * (1 - p))[:, None] * one.square() * change.square()).sum()) / 2
    table = _estimate(Task(model, [x]), Fisher())
    assert table.stderr is not None
    assert abs(table.values[0, 0] - wanted) < 4 * table.stderr[0, 0] + 1e-9
    assert table.stderr[0, 0] < 0.1 * wanted
    assert table.unit == "KL (nats), by a diagonal Fisher matrix"


def test_modelopts_score_of_a_linear_network_has_its_closed_form() -> None:
    torch.manual_seed(0)
    linear, x, y = nn.Linear(5, 3), torch.randn(8, 5), torch.randn(8, 3)
    model = nn.Sequential(linear)

    def loss(output: Any, batch: Any) -> Tensor:
        value: Tensor = (output - batch[1]).square().sum(1).mean()
        return value

    weight = linear.weight.detach()
    change = round_trip(weight, OPTIONS[0].weight) - weight
    slope = 2 * (model(x) - y).detach()
    wanted = (slope * (x @ change.T)).square().sum(1)
    table = _estimate(Task(model, [(x, y)], loss=loss), Fisher("outputs"))
    np.testing.assert_allclose(table.values[0, 0], float(wanted.mean()), rtol=1e-4)
    assert table.unit == "rank score (ModelOpt gradient)"


class Odd(nn.Module):
    """An embedding that is also the head, a transposed convolution with groups, and a slot."""

    def __init__(self, *, routed: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.up = nn.ConvTranspose1d(4, 4, 3, groups=2, stride=2)
        self.routed = routed

    def forward(self, ids: Tensor) -> Tensor:
        x = self.up(self.table(ids).mT).mT
        if self.routed:
            x = x[torch.argsort(x.sum((1, 2))).argsort()]  # moves samples and so mixes them
        out: Tensor = F.linear(x, self.table.weight).mean(1)
        return out


@pytest.mark.parametrize("routed", [False, True])
def test_samples_together_and_alone_have_the_same_scores(routed: bool) -> None:
    torch.manual_seed(0)
    model = Odd(routed=routed).double()
    ids, labels = torch.arange(15).reshape(5, 3) % 6, torch.arange(5)
    loss = (lambda z, _: z.square().sum()) if routed else _cross_entropy
    alone = Task(model, [(ids[i : i + 1], labels[i : i + 1]) for i in range(5)], loss=loss)
    for estimator in (Fisher(), Fisher("outputs")):
        found = _estimate(Task(model, [(ids, labels)], loss=loss), estimator)
        wanted = _estimate(alone, estimator)
        np.testing.assert_allclose(found.values[:, 0], wanted.values[:, 0], rtol=1e-9)
        assert found.stderr is not None
        assert wanted.stderr is not None
        np.testing.assert_allclose(found.stderr[:, 0], wanted.stderr[:, 0], rtol=1e-9)


def test_outputs_that_hold_their_loss_are_taken_sample_by_sample() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits
            self.loss = logits.square().mean()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            return Output(self.inner(x))

    torch.manual_seed(0)
    model, x = Wrapped(), torch.randn(4, 3)
    found = _estimate(Task(model, [x], loss=lambda z, _: z.loss), Fisher())
    plain = _estimate(
        Task(nn.Sequential(model.inner), [x], loss=lambda z, _: z.square().mean()), Fisher()
    )
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-6)
    assert found.stderr is not None


@settings(max_examples=8)
@given(power=st.integers(-10, 10), at=st.sampled_from(["weights", "outputs"]))
def test_scores_grow_with_the_square_of_the_loss(power: int, at: Any) -> None:
    model, x = curved()
    one, other = (
        _estimate(Task(model, [x], loss=partial(_scaled, k)), Fisher(at)) for k in (1.0, 2.0**power)
    )
    np.testing.assert_allclose(other.values, 4.0**power * one.values, rtol=1e-10)


def test_both_roles_have_the_sum_of_their_scores() -> None:
    model, x = kinked()
    found = _estimate(Task(model, [x]), Fisher()).values
    np.testing.assert_allclose(found[:, 2], found[:, :2].sum(axis=1), rtol=1e-10)


@pytest.mark.parametrize("at", ["weights", "outputs"])
def test_an_option_s_own_rounding_is_the_one_that_is_scored(at: Any) -> None:
    model, x = kinked()
    task, own = Task(model, [x]), options("w2a32", "int2/fp32+gptq")
    scored = Fisher(at).estimate(task, trace(model, x), own, recipe=PLAIN, sweep=Sweep())
    other = Recipe(corrections=(), rounding="gptq")
    wanted = Fisher(at).estimate(task, trace(model, x), own[:1], recipe=other, sweep=Sweep())
    assert not np.allclose(scored.values[:, 0], scored.values[:, 1])
    np.testing.assert_allclose(scored.values[:, 1], wanted.values[:, 0], rtol=1e-10)


@pytest.mark.parametrize("at", ["weights", "outputs"])
def test_a_dead_layer_has_no_score(at: Any) -> None:
    first = nn.Linear(3, 4)
    nn.init.constant_(first.bias, -100)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))
    table = _estimate(Task(model, [torch.ones(2, 3)]), Fisher(at))
    np.testing.assert_allclose(table.values[0], 0)


def test_a_second_run_takes_all_from_the_cache_and_other_seeds_do_not() -> None:
    model, x = kinked()
    sweep = Sweep()
    first, again = (_estimate(Task(model, [x]), Fisher(), sweep) for _ in range(2))
    assert len(sweep.cache) == 1
    assert (first.values == again.values).all()
    _estimate(Task(model, [x]), Fisher(seed=1), sweep)
    assert len(sweep.cache) == 2


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x).detach())
        return out


@pytest.mark.parametrize("at", ["weights", "outputs"])
def test_says_which_layer_has_no_gradient(at: Any) -> None:
    with pytest.raises(ValueError, match=r"no gradient in layer 'one' on any batch"):
        _estimate(Task(Detached(), [torch.ones(2, 3)]), Fisher(at))


@pytest.mark.parametrize("at", ["weights", "outputs"])
def test_gradients_out_of_range_are_an_error(at: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2)).half()
    task = Task(model, [torch.ones(2, 3).half()], loss=lambda z, _: 1e30 * z.float().tanh().mean())
    with pytest.raises(ValueError, match=r"layer '0' at 'int2/fp32': .* out of range; run the"):
        _estimate(task, Fisher(at))


def test_batches_without_labels_are_an_error_for_a_loss_that_wants_them() -> None:
    model, x = kinked()
    with pytest.raises(ValueError, match=r"the loss failed on a batch .*one that wants labels"):
        _estimate(Task(model, [x[:1]], loss=_cross_entropy), Fisher())


def test_settings_that_nothing_follows_are_errors() -> None:
    with pytest.raises(ValueError, match=r"at is 'inputs'; known are 'weights', 'outputs'"):
        Fisher("inputs")  # type: ignore[arg-type]
