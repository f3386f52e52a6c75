"""The table against networks quantized by hand, the work it saves, and the laws of estimators."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.batches import divergence
from mpsearch.formats import Option, options
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.integers import round_trip
from mpsearch.quant.model import quantize
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity import KL
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.quant.networks import mixed, tied

PLAIN = Recipe(corrections=())
OPTIONS = options("w2a16", "w3a16", "w4a16")
Made = tuple[nn.Module, list[Tensor], list[str]]


class TestLaws(EstimatorSuite):
    estimator: Estimator = KL()


def _estimate(
    task: Task,
    *,
    given: Sequence[Option] = OPTIONS,
    recipe: Recipe = PLAIN,
    sweep: Sweep | None = None,
    network: Network | None = None,
) -> Table:
    network = network or trace(task.model, task.batches[0])
    return KL().estimate(task, network, given, recipe=recipe, sweep=sweep or Sweep())


def _rounded(model: nn.Module, name: str, option: Option) -> nn.Module:
    """A copy with one weight, stored outputs first, rounded."""
    changed = copy.deepcopy(model)
    weight = changed.get_submodule(name).get_parameter("weight")
    weight.data = round_trip(weight.data, option.weight)
    return changed


def _small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    return model.eval(), torch.randn(9, 6)


@pytest.mark.parametrize("samples", [256, 5])
def test_is_the_divergence_with_one_layer_rounded(samples: int) -> None:
    model, x = _small()
    task = Task(model, [x[:4], x[4:]])
    table = _estimate(task, recipe=Recipe(corrections=(), samples=samples))
    assert table.stderr is not None
    for row, layer in enumerate(table.layers):
        for column, option in enumerate(OPTIONS):
            with torch.no_grad():
                each = divergence(model(x), _rounded(model, layer.name, option)(x)).numpy()
            assert table.values[row, column] == pytest.approx(each.mean(), rel=1e-4)
            assert table.stderr[row, column] == pytest.approx(each.std(ddof=1) / 3, rel=1e-4)
    assert table.unit == "KL (nats)"


@pytest.mark.parametrize("make", [mixed, tied])
@pytest.mark.parametrize("recipe", [Recipe(), PLAIN, Recipe(samples=4)])
def test_is_what_the_quantized_network_shows(make: Callable[[], Made], recipe: Recipe) -> None:
    model, batches, _ = make()
    given = options("w3a8", "w4a4")
    table = _estimate(Task(model, batches), given=given, recipe=recipe)
    for layer, row in zip(table.layers, table.values, strict=True):
        for option, value in zip(given, row, strict=True):
            one = quantize(model, dict.fromkeys(layer.modules, option), batches, recipe)
            with torch.no_grad():
                each = torch.cat([divergence(model(x), one(x)) for x in batches])
            assert value == pytest.approx(float(each.mean()), rel=1e-2)


def test_tokens_count_for_their_sample() -> None:
    model, batches, _ = tied()
    assert _estimate(Task(model, batches)).unit == "KL (nats per token)"


def test_an_image_is_compared_by_relative_error() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False)), torch.randn(4, 2, 3, 3)
    table = _estimate(Task(model, [x]))
    with torch.no_grad():
        out, changed = model(x), _rounded(model, "0", OPTIONS[0])(x)
    wanted = ((changed - out).square().sum((1, 2, 3)) / out.square().sum((1, 2, 3))).mean()
    assert table.values[0, 0] == pytest.approx(float(wanted), rel=1e-4)
    assert table.unit == "relative MSE"


class _Counted(nn.Linear):
    calls: ClassVar[int] = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        type(self).calls += 1
        return super().forward(input)


@pytest.mark.parametrize("recipe", [Recipe(), PLAIN])
def test_what_lies_before_a_layer_is_computed_once(recipe: Recipe) -> None:
    torch.manual_seed(0)
    layers = 8
    model = nn.Sequential(*(_Counted(4, 4) for _ in range(layers)))
    task = Task(model, [torch.randn(16, 4)])
    calls = []
    for given in (OPTIONS[:1], OPTIONS):
        _Counted.calls = 0
        _estimate(task, given=given, recipe=recipe)
        calls.append(_Counted.calls)
    # The two further options run layer i and what follows it: not 2 * layers^2 calls.
    assert calls[1] - calls[0] == layers * (layers + 1)


@dataclass
class _Output:
    """What Hugging Face models return."""

    logits: Tensor


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> _Output:
        return _Output(self.inner(x))


def test_takes_batches_by_name_and_outputs_with_logits() -> None:
    torch.manual_seed(0)
    model, x = _Named(), torch.randn(5, 6)
    named = Task(
        model, [{"x": x}], loss=lambda out, batch: F.mse_loss(out.logits, batch["x"][:, :4])
    )
    table = _estimate(named)
    plain = Task(nn.Sequential(model.inner), [x], loss=lambda z, batch: F.mse_loss(z, batch[:, :4]))
    np.testing.assert_allclose(table.values, _estimate(plain).values, rtol=1e-5)
    assert _estimate(Task(model, [{"x": x}])).unit == "KL (nats)"


@pytest.mark.parametrize("samples", [256, 5])
def test_a_loss_of_the_tasks_own_is_what_it_gains_over_float(samples: int) -> None:
    model, x = _small()
    labels = torch.arange(9) % 4
    batches = [(x[:2], labels[:2]), (x[2:5], labels[2:5]), (x[5:], labels[5:])]

    def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> float:
        return float(F.cross_entropy(output, batch[1]))

    table = _estimate(
        Task(model, batches, loss=loss), recipe=Recipe(corrections=(), samples=samples)
    )
    changed = _rounded(model, "2", OPTIONS[0])
    with torch.no_grad():
        gains = np.array([loss(changed(b[0]), b) - loss(model(b[0]), b) for b in batches])
    share = np.array([2, 3, 4]) / 9
    mean = share @ gains
    assert table.unit == "loss"
    assert table.stderr is not None
    assert table.values[1, 0] == pytest.approx(mean, rel=1e-4)
    error = (1.5 * (share**2 @ (gains - mean) ** 2)) ** 0.5
    assert table.stderr[1, 0] == pytest.approx(error, rel=1e-3)


def test_one_number_has_no_standard_error() -> None:
    model, x = _small()
    assert _estimate(Task(model, [x[:1]])).stderr is None
    assert _estimate(Task(model, [x], loss=lambda z, _: z.square().mean())).stderr is None


def test_pinned_layers_are_computed_at_their_option_only() -> None:
    model, x = _small()
    network = trace(model, x, pin={"2": "w3a16"})
    sweep = Sweep()
    table = _estimate(Task(model, [x]), network=network, sweep=sweep)
    assert table.allowed.tolist() == [[True] * 3, [False, True, False], [True] * 3]
    assert sorted(json.loads(key)[2:] for key in sweep.cache if '"2"' in key) == [
        ["2", "int3/fp16"]
    ]
    free = _estimate(Task(model, [x]))
    assert (table.values[table.allowed] == free.values[table.allowed]).all()


def test_goes_on_where_it_was_stopped() -> None:
    model, x = _small()
    task = Task(model, [x])
    wanted = _estimate(task)

    class Stopping(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            if len(self) == 4:
                raise KeyboardInterrupt

    cache = Stopping()
    with pytest.raises(KeyboardInterrupt):
        _estimate(task, sweep=Sweep(cache=cache))
    assert len(cache) == 4
    resumed = _estimate(task, sweep=Sweep(cache=cache))
    assert len(cache) == 9
    assert (resumed.values == wanted.values).all()


def _nan_from(number: int) -> Callable[[Tensor, Any], float]:
    calls = iter(range(1000))
    return lambda z, _: float(z.sum()) if next(calls) < number else float("nan")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (_nan_from(0), "the loss of the float model is nan; wanted a finite number: check"),
        (_nan_from(5), r"layer '2' at 'int3/fp16': the loss is nan; wanted a finite number"),
        (lambda z, _: z, r"the loss returned Tensor of shape \(9, 4\); wanted one number a batch"),
        (lambda z, _: str(z), "the loss returned str; wanted one number a batch"),
    ],
)
def test_a_loss_that_is_no_number_is_an_error(
    loss: Callable[[Any, Any], Any], message: str
) -> None:
    model, x = _small()
    with pytest.raises(ValueError, match=message):
        _estimate(Task(model, [x], loss=loss))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("log4/fp16", "cannot quantize weights to 'log4'"),
        ("int4/fp16+later", "names method 'later'"),
    ],
)
def test_what_is_not_supported_yet_is_an_error(option: str, message: str) -> None:
    model, x = _small()
    with pytest.raises(ValueError, match=message):
        _estimate(Task(model, [x]), given=options(option))
