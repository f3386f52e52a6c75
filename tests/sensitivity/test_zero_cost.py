"""Zero-cost metrics by hand, published sizes, and the laws of estimators."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import options
from mpsearch.network import Layer, Network
from mpsearch.protocols import Estimator
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.code_entropy import code_deviation, lost_nats, stage_weights
from mpsearch.sensitivity.zero_cost import Method, ZeroCost, orthogonality
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.quant.networks import mixed, tied
from tests.sensitivity.midway import left_as_it_was

OPTIONS = options("w2a8", "w4a8", "w4a4", "w16a4")


class TestSnip(EstimatorSuite):
    estimator: Estimator = ZeroCost("snip")


class TestSynFlow(EstimatorSuite):
    estimator: Estimator = ZeroCost()


class TestSynFlowOfTrainedWeights(EstimatorSuite):
    estimator: Estimator = ZeroCost(initial="trained")


class TestOrm(EstimatorSuite):
    estimator: Estimator = ZeroCost("orm")


class TestOmpq(EstimatorSuite):
    estimator: Estimator = ZeroCost("ompq")


class TestQe(EstimatorSuite):
    estimator: Estimator = ZeroCost("qe")


class TestBParams(EstimatorSuite):
    estimator: Estimator = ZeroCost("bparams")


def _estimate(task: Task, estimator: ZeroCost, traced: Any = None) -> Table:
    network = trace(task.model, task.batches[0] if traced is None else traced)
    return estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())


def _chain() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 4, bias=False)).eval(), torch.randn(9, 5)


def test_snip_is_weight_times_gradient() -> None:
    model, x = _chain()
    labels = torch.arange(9) % 4
    batches = [(x[:5], labels[:5]), (x[5:], labels[5:])]
    table = _estimate(Task(model, batches), ZeroCost("snip"))
    each = []
    for inputs, targets in batches:
        model.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        products = [w.grad * w.detach() for w in model.parameters() if w.grad is not None]
        each.append([float(p.abs().sum()) for p in products])
    found = np.array(each)
    bits = np.array([14, 12, 12, 0])
    np.testing.assert_allclose(table.values, np.outer(found.mean(axis=0), bits), rtol=1e-5)
    assert table.stderr is not None
    error = found.std(axis=0, ddof=1) / 2**0.5
    np.testing.assert_allclose(table.stderr, np.outer(error, bits), rtol=1e-4)
    assert table.unit == "rank score (SNIP)"


@pytest.mark.parametrize("initial", ["trained", "gaussian"])
def test_every_layer_of_a_chain_has_the_same_flow(initial: Any) -> None:
    """What flows through a chain without biases is conserved: each layer's share is all of it."""
    model, x = _chain()
    table = _estimate(Task(model, [x]), ZeroCost(initial=initial))
    np.testing.assert_allclose(table.values[:, 1], table.values[0, 1], rtol=1e-12)
    if initial == "trained":
        positive = [w.detach().double().abs() for w in model.parameters()]
        flow = positive[2] @ positive[1] @ positive[0] @ torch.ones(5, dtype=torch.float64)
        assert table.values[0, 1] == pytest.approx(12 * float(flow.sum()))


def test_flow_leaves_batch_norms_out() -> None:
    model, x = _chain()
    normed = nn.Sequential(model[0], nn.BatchNorm1d(7), model[1:]).eval()
    wanted = _estimate(Task(model, [x]), ZeroCost(initial="trained"))
    found = _estimate(Task(normed, [x]), ZeroCost(initial="trained"))
    np.testing.assert_allclose(found.values, wanted.values)


def test_the_seed_decides_gaussian_weights() -> None:
    model, x = _chain()
    one, same, other = (
        _estimate(Task(model, [x]), ZeroCost(seed=seed)).values[0, 0] for seed in (0, 0, 1)
    )
    assert one == same != other


def test_orthogonality_of_known_features() -> None:
    a = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    b = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    turned = a @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]]) * 3 + 5
    found = orthogonality([a, b, turned])
    np.testing.assert_allclose(found, [[1, 0, 1], [0, 1, 0], [1, 0, 1]], atol=1e-12)


def test_orthogonality_is_by_centred_gram_matrices() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 2).double(), torch.randn(8, 5).double()
    centre = torch.eye(8, dtype=torch.float64) - 1 / 8
    k, other = (centre @ f.flatten(1) @ f.flatten(1).T @ centre for f in (x, y))
    wanted = (k * other).sum() / (k.norm() * other.norm())
    assert orthogonality([x, y])[0, 1] == pytest.approx(float(wanted))


def test_orm_and_ompq_of_a_chain() -> None:
    model, x = _chain()
    wrote = [model[:n](x).detach() for n in (1, 3, 5)]
    matrix = orthogonality(wrote)
    theta = np.exp(-2 * (matrix.sum(axis=1) - 1))
    orm, ompq = (_estimate(Task(model, [x]), ZeroCost(m, beta=2)) for m in ("orm", "ompq"))
    np.testing.assert_allclose(orm.values[:, 1], 12 * theta / 3)
    suffix = [theta.mean(), theta[1:].mean(), theta[2]]
    np.testing.assert_allclose(ompq.values[:, 1], 12 * np.array(suffix))
    few = _estimate(Task(model, [x[:4], x[4:]]), ZeroCost("orm", beta=2, samples=5))
    first = _estimate(Task(model, [x[:5]]), ZeroCost("orm", beta=2))
    np.testing.assert_allclose(few.values, first.values)


def test_codes_of_two_bits_by_hand() -> None:
    """The best three levels of a Gaussian are 0 and +-c, with c about 1.224 and edges at c / 2."""
    tail = math.erfc(0.612 / 2**0.5)
    assert code_deviation(2) == pytest.approx(tail**0.5, rel=1e-2)
    deviations = [code_deviation(bits) for bits in range(2, 17)]
    assert (np.diff(deviations) > 0).all()
    assert math.log(deviations[-1] / deviations[-2]) == pytest.approx(math.log(2), rel=0.01)


def test_lost_nats_add_up_over_roles() -> None:
    lost = lost_nats(options("w4a16", "w16a8", "w4a8", "w16a16"))
    assert lost[2] == pytest.approx(lost[0] + lost[1])
    assert lost[3] == 0
    assert lost[0] > lost[1] > 0


def test_a_layer_counts_in_its_stage_and_all_that_follow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(3, 3, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    x = torch.randn(4, 2, 8, 8)
    network = trace(model, x)
    assert stage_weights(network, (0, 0, 1, 1, 6)).tolist() == [8, 8, 7, 6, 6]
    assert stage_weights(network, (1, 6)).tolist() == [7, 7, 7, 6, 6]
    table = _estimate(Task(model, [x]), ZeroCost("qe"))
    np.testing.assert_allclose(table.values, np.outer([8, 8, 7, 6, 6], lost_nats(OPTIONS)))


@pytest.mark.shared
def test_sizes_of_published_configurations(shared: Path) -> None:
    """EMQ's and OMPQ's ResNet-18 and MobileNetV2: what the bits leave of 16 is the published size."""
    published = json.loads((shared / "oracles/ompq/published_configs.json").read_text())
    emq = json.loads((shared / "oracles/emq/published_ptq_configs.json").read_text())
    configs = [("resnet18_ptq", one) for one in emq["resnet18_ptq"]]
    configs += [(f"{name.split('_')[0]}_ptq", one) for name, one in published["PTQ"].items()]
    given = options(*(f"w{bits}a8" for bits in (2, 3, 4, 5, 6, 7, 8)))
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    for name, config in configs:
        counts = published["layer_params"][name]
        layers = tuple(Layer(str(i), params=count) for i, count in enumerate(counts))
        table = ZeroCost("bparams").estimate(
            Task(model, [x]), Network(layers), given, recipe=Recipe(), sweep=Sweep()
        )
        full = sum(counts) * 16 / 8 / 2**20
        size = full - table.total([bits - 2 for bits in config["bits"]])
        assert size == pytest.approx(config["size_mib"], abs=1e-9), (name, config)
    assert len(configs) == 21


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("make", [mixed, tied])
def test_takes_every_kind_of_layer(make: Any, method: Method) -> None:
    model, batches, _ = make()
    given = batches
    if batches[0].is_floating_point():
        given = [(x, torch.arange(len(x)) % 5) for x in batches]
    table = _estimate(Task(model, given), ZeroCost(method))
    assert (table.values[:, 0] > table.values[:, 1]).all()
    assert (table.values[:, 1] > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "no method is 'guess'; there are 'snip', 'synflow', 'orm'"),
        ({"initial": "zero"}, "no initial is 'zero'; there are 'gaussian', 'trained'"),
        ({"beta": 0}, "beta is 0; wanted a number above 0"),
        ({"samples": 1}, "samples is 1; wanted at least 2"),
        ({"ratios": ()}, r"ratios are \(\); wanted numbers from 0 up, the last one above 0"),
        ({"ratios": (1, 0)}, r"ratios are \(1, 0\); wanted numbers from 0 up, the last one"),
    ],
)
def test_settings_that_nothing_follows_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroCost(**settings)


def test_snip_without_labels_is_an_error() -> None:
    model, x = _chain()
    with pytest.raises(ValueError, match="the task has none, and the batch has no labels"):
        _estimate(Task(model, [x]), ZeroCost("snip"))


def test_a_layer_that_writes_one_value_is_an_error() -> None:
    model, x = _chain()
    model.get_parameter("0.weight").data.zero_()
    with pytest.raises(ValueError, match="layer '0' writes the same for every sample"):
        _estimate(Task(model, [x]), ZeroCost("orm"))
    with pytest.raises(ValueError, match="got 1; give batches of more samples"):
        _estimate(Task(model, [x[:1]]), ZeroCost("orm"))


def test_a_flow_that_overflows_is_an_error() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(170)))
    with pytest.raises(ValueError, match="too large for SynFlow; use initial='trained'"):
        _estimate(Task(model, [torch.randn(2, 64)]), ZeroCost())


class _Split(nn.Module):
    """Takes away all that its second layer adds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x) - self.first(x).detach() + self.second(x).detach()
        return out


def test_a_layer_nothing_flows_through_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing flows through layer 'second', so SynFlow has"):
        _estimate(Task(_Split(), [torch.randn(3, 4)]), ZeroCost())


@pytest.mark.parametrize("clipped", [nn.ReLU6, nn.Hardtanh])
def test_activations_that_saturate_let_all_through(clipped: type[nn.Module]) -> None:
    model, x = _chain()
    other = nn.Sequential(model[0], clipped(), model[2], clipped(), model[4])
    wanted, found = (_estimate(Task(m, [x]), ZeroCost()) for m in (model, other))
    np.testing.assert_allclose(found.values, wanted.values)


def test_overflow_in_half_precision_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).half()
    for weight in model.parameters():
        weight.data.fill_(100.0)
    x = torch.full((3, 4), 1e4, dtype=torch.float16)
    with pytest.raises(ValueError, match="the loss of the float model is nan; wanted a finite"):
        _estimate(Task(model, [(x, torch.tensor([0, 1, 0]))]), ZeroCost("snip"))


class _Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out + self.other(x) if x[0, 0] > 9 else out


@pytest.mark.parametrize("method", ["snip", "synflow", "orm", "ompq"])
def test_a_layer_that_never_runs_is_an_error(method: Method) -> None:
    task = Task(_Skipping(), [torch.rand(5, 4)])
    with pytest.raises(ValueError, match="layer 'other' is not called on the calibration batches"):
        _estimate(task, ZeroCost(method), traced=torch.full((5, 4), 10.0))


@pytest.mark.parametrize("method", get_args(Method))
def test_a_model_that_fails_midway_is_left_as_it_was(method: Method) -> None:
    def estimate(task: Task, network: Network) -> Table:
        estimator = ZeroCost(method)
        return estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())

    left_as_it_was(estimate, *([1] if method in ("qe", "bparams") else [1, 2, 4]))
