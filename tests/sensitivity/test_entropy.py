"""Entropies by hand, Q-VLM's own figures, and the laws of estimators."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Format, options
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.activations import codes, fake_quantize
from mpsearch.quant.bench import Bench
from mpsearch.quant.integers import encode, round_trip
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.entropies import clusters, dependency, shannon, token_entropy
from mpsearch.sensitivity.entropy import Entropy, Method, dependencies
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.quant.networks import mixed, tied
from tests.sensitivity.midway import left_as_it_was

OPTIONS = options("w16a4", "w16a2", "w4a16", "w4a4", "w8a8", "w16a16")


class TestQuantMcu(EstimatorSuite):
    estimator: Estimator = Entropy()


class TestLuq(EstimatorSuite):
    estimator: Estimator = Entropy("luq", clusters=20)


class TestQVlm(EstimatorSuite):
    estimator: Estimator = Entropy("q-vlm")


class TestInputsAlone(EstimatorSuite):
    estimator: Estimator = Entropy()
    options = options("fp32/int2", "fp32/int4", "fp32/int6", "fp32/fp32")


def _estimate(task: Task, estimator: Estimator, traced: Any = None) -> Table:
    network = trace(task.model, task.batches[0] if traced is None else traced)
    return estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())


def _tokens() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 6))
    return model.eval(), torch.randn(5, 12, 6)


@pytest.mark.shared
def test_entropy_and_dependency_are_q_vlms(shared: Path) -> None:
    golden = np.load(shared / "oracles/golden/qvlm_entropy.npz")
    a, b = torch.tensor(golden["a"]), torch.tensor(golden["b"])
    assert float(token_entropy(a)) == pytest.approx(float(golden["entropy"]), rel=1e-6)
    assert float(dependency(a, b)) == pytest.approx(float(golden["ded"]), rel=1e-6)


def test_entropy_of_tokens_by_hand() -> None:
    x = torch.tensor([[[3.0, -1.0], [-4.0, 0.0]]])  # p is 0.6, 0.8 and 1, 0
    wanted = -(0.6 * math.log(0.6) + 0.8 * math.log(0.8)) / 2
    assert float(token_entropy(x)) == pytest.approx(wanted, rel=1e-5)


def test_dependency_of_independent_tokens_is_that_of_the_second_alone() -> None:
    before, after = torch.ones(1, 4, 1), torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)
    q = np.array([0.1, 0.2, 0.3, 0.4])
    assert float(dependency(before, after)) == pytest.approx(shannon(q), rel=1e-3)


def test_dependency_wants_one_shape() -> None:
    with pytest.raises(ValueError, match=r"shapes \(1, 2, 3\) and \(1, 2, 4\); wanted the same"):
        dependency(torch.ones(1, 2, 3), torch.ones(1, 2, 4))


def test_dependencies_are_of_layers_that_follow_each_other_and_read_one_shape() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(6, n) for n in (6, 8, 6))), torch.randn(4, 7, 6)
    model[2] = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 6))
    found = dependencies(Task(model, [x[:1], x[1:]]), trace(model, x), Recipe())
    assert list(found) == [("0", "2")]  # the last layer reads 8 channels
    with pytest.raises(ValueError, match=r"a memory of 0.1MB is too small: to run 4"):
        dependencies(Task(model, [x[:1], x[1:]]), trace(model, x), Recipe(), memory=100)
    wanted = dependency(x, model[:2](x).detach())
    assert found["0", "2"] == pytest.approx(float(wanted.mean()), rel=1e-6)


def _share(eight: Tensor, coarse: Tensor) -> float:
    full, left = (shannon(np.unique(c.numpy(), return_counts=True)[1]) for c in (eight, coarse))
    return 1 - left / full


def test_lost_entropy_of_inputs_and_weights_by_hand() -> None:
    model, x = _tokens()
    table = _estimate(Task(model, [x]), Entropy())
    bench = Bench(model, [x], ["0"], Recipe())
    grids = [bench.grid("0", Format.parse(name)) for name in ("int8", "int4", "int2")]
    read = [codes(x, grid) for grid in grids if grid is not None]
    stored = [
        encode(model.get_parameter("0.weight"), Format.parse(f)).codes for f in ("int8", "int4")
    ]
    assert table.values[0, 0] == pytest.approx(_share(read[0], read[1]))
    assert table.values[0, 1] == pytest.approx(_share(read[0], read[2]))
    assert table.values[0, 2] == pytest.approx(_share(stored[0], stored[1]))
    assert table.values[0, 3] == pytest.approx(table.values[0, 0] + table.values[0, 2])
    assert table.values[:, 4:].tolist() == [[0, 0]] * 3
    assert table.unit == "rank score (QuantMCU)"
    assert table.stderr is None


def test_lost_entropy_has_a_jackknife_over_batches() -> None:
    model, x = _tokens()
    x = torch.cat([x, 3 * x, x.square()])
    whole = _estimate(Task(model, [x]), Entropy())
    apart = _estimate(Task(model, list(x.split(5))), Entropy())
    assert apart.stderr is not None
    np.testing.assert_allclose(apart.values[:, 2], whole.values[:, 2])
    grids = [
        Bench(model, [x], ["0"], Recipe()).grid("0", Format.parse(f)) for f in ("int8", "int4")
    ]
    without = []
    for left in range(3):
        kept = torch.cat([part for number, part in enumerate(x.split(5)) if number != left])
        without.append(_share(*(codes(kept, grid) for grid in grids if grid is not None)))
    wanted = (2 / 3 * np.square(np.array(without) - np.mean(without)).sum()) ** 0.5
    assert apart.stderr[0, 0] == pytest.approx(wanted, rel=1e-6)
    assert (apart.stderr[:, 2] == 0).all()  # weights are what they are


def _errors(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """The relative errors of the first layer's weight and input at 4 bits."""
    weight = model.get_parameter("0.weight").detach()
    error = (round_trip(weight, Format.parse("int4")) - weight).square().sum()
    grid = Bench(model, [x], ["0"], Recipe()).grid("0", Format.parse("int4"))
    assert grid is not None
    noise = (fake_quantize(x, grid) - x).square().sum() / x.square().sum()
    return float(error / weight.square().sum()), float(noise)


def test_q_vlm_is_entropy_times_relative_errors() -> None:
    model, x = _tokens()
    table = _estimate(Task(model, [x[:2], x[2:]]), Entropy("q-vlm"))
    each = token_entropy(x).numpy()
    weight, noise = _errors(model, x)
    shares = [noise, weight, weight + noise]
    np.testing.assert_allclose(
        table.values[0, [0, 2, 3]], each.mean() * np.array(shares), rtol=1e-3
    )
    assert table.stderr is not None
    np.testing.assert_allclose(table.stderr[0, 2], each.std(ddof=1) / 5**0.5 * weight, rtol=1e-3)
    assert table.values[:, 5].tolist() == [0, 0, 0]


def test_luq_is_the_entropy_of_clusters_times_relative_errors() -> None:
    """Outputs of the first layer are four points, far apart, a quarter of the tokens each."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model.get_parameter("0.weight").data = torch.tensor([[1.0, 0.3], [0.2, 1.0]])
    corners = torch.tensor([[0.0, 1.0], [5.0, 5.0], [9.0, -7.0], [-8.0, 3.0]])
    x = corners.repeat(8, 1)[None]
    table = _estimate(Task(model, [x]), Entropy("luq", clusters=32))
    weight, _ = _errors(model, x)
    assert table.values[0, 2] == pytest.approx(math.log(4) * weight, rel=1e-5)


def test_clusters_are_the_nearest_centres() -> None:
    rows = torch.tensor([[0.0], [0.1], [10.0], [10.1], [0.2], [9.9]])
    found = clusters(rows, 2, seed=3)
    assert len(set(found[[0, 1, 4]].tolist())) == 1
    assert len(set(found[[2, 3, 5]].tolist())) == 1
    assert found[0] != found[2]


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("make", [mixed, tied])
def test_takes_every_kind_of_layer(
    make: Callable[[], tuple[nn.Module, list[Tensor], list[str]]], method: Method
) -> None:
    model, batches, _ = make()
    table = _estimate(Task(model, batches), Entropy(method, clusters=8))
    assert (table.values[:, 1] >= table.values[:, 0]).all()
    assert (table.values[:, :4] > 0).all()
    np.testing.assert_allclose(table.values[:, 3], table.values[:, [0, 2]].sum(axis=1), rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "no method is named 'guess'; there are 'quantmcu', 'luq', 'q-vlm'"),
        ({"clusters": 1}, "clusters is 1 and tokens 4096; wanted at least 2"),
    ],
)
def test_settings_that_nothing_follows_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Entropy(**settings)


@pytest.mark.parametrize("method", get_args(Method))
def test_a_dead_layer_is_an_error(method: Method) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model.get_parameter("0.bias").data.fill_(-1e6)
    message = "layer '2' has an entropy of -?0 on the calibration batches: what it reads or writes"
    with pytest.raises(ValueError, match=message):
        _estimate(Task(model, [torch.randn(6, 5, 4)]), Entropy(method))


class _Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out + self.other(x) if x[0, 0] > 9 else out


@pytest.mark.parametrize("method", get_args(Method))
def test_a_layer_that_never_runs_is_an_error(method: Method) -> None:
    with pytest.raises(ValueError, match="layer 'other' is not called on the calibration batches"):
        _estimate(
            Task(_Skipping(), [torch.rand(5, 4)]), Entropy(method), traced=torch.ones(5, 4) * 10
        )


def test_overflow_in_half_precision_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).half()
    for weight in model.parameters():
        weight.data.fill_(100.0)
    x = torch.full((3, 4), 1e4, dtype=torch.float16)
    with pytest.raises(ValueError, match="layer '1': its input holds NaN or infinity"):
        _estimate(Task(model, [x]), Entropy(), traced=torch.ones_like(x))


@pytest.mark.parametrize("method", get_args(Method))
def test_a_model_that_fails_midway_is_left_as_it_was(method: Method) -> None:
    def estimate(task: Task, network: Network) -> Table:
        estimator = Entropy(method)
        return estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())

    left_as_it_was(estimate, 1, 3, 5, 6)
