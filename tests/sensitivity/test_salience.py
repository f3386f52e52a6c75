"""Salience by literal linear algebra, SliM-LLM's own figures, and the laws of estimators."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import options
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.input_hessian import as_rows
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.input_hessian import input_hessians
from mpsearch.sensitivity.labels import cross_entropy
from mpsearch.sensitivity.relative_error import watching
from mpsearch.sensitivity.salience import Method, Salience, group_salience, outliers, stiffness
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.quant.networks import mixed, tied
from tests.sensitivity.midway import left_as_it_was

OPTIONS = options("w2a8", "w4a4", "w4a16", "w16a4")


class TestSlim(EstimatorSuite):
    estimator: Estimator = Salience()


class TestGptq(EstimatorSuite):
    estimator: Estimator = Salience("gptq")


class TestSpqr(EstimatorSuite):
    estimator: Estimator = Salience("spqr")


class TestGwq(EstimatorSuite):
    estimator: Estimator = Salience("gwq", share=0.2)


class TestMagnitude(EstimatorSuite):
    estimator: Estimator = Salience("magnitude")


def _estimate(task: Task, estimator: Salience, traced: Any = None) -> Table:
    network = trace(task.model, task.batches[0] if traced is None else traced)
    return estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())


def _linear() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4, bias=False)), torch.randn(10, 7, 6)


@pytest.mark.shared
def test_groups_are_as_salient_as_in_slim_llm(shared: Path) -> None:
    golden = np.load(shared / "oracles/golden/slimllm_sba_b2.npz")
    hessian, weight = (torch.tensor(golden[key]) for key in ("H", "W"))
    found = group_salience(weight, hessian, 32)
    assert len(found) == 16
    np.testing.assert_allclose(found, golden["salience_search"], rtol=1e-3)
    samples, _, width = golden["X"].shape
    x = torch.tensor(golden["X"]).double().reshape(-1, width)
    found = group_salience(weight, 2 / samples * x.T @ x, 32)
    np.testing.assert_allclose(found, golden["salience_search"], rtol=1e-3)


@pytest.mark.shared
def test_a_layer_is_as_salient_as_its_groups_in_slim_llm(shared: Path) -> None:
    golden = np.load(shared / "oracles/golden/slimllm_sba_b2.npz")
    model = nn.Sequential(nn.Linear(512, 64, bias=False))
    model.get_parameter("0.weight").data = torch.tensor(golden["W"])
    inputs = torch.tensor(golden["X"])
    table = _estimate(Task(model, [inputs[:4], inputs[4:]]), Salience())
    weight = model.get_parameter("0.weight").detach()
    error = (round_trip(weight, OPTIONS[0].weight) - weight).square().sum() / weight.square().sum()
    wanted = golden["salience_search"].sum() * float(error)
    assert table.values[0, 0] == pytest.approx(wanted, rel=1e-3)


def test_stiffness_is_of_the_factor_of_the_inverse() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 5, dtype=torch.float64)
    hessian = x.T @ x
    inverse = torch.linalg.inv(hessian + 0.1 * torch.eye(5))
    factor = torch.linalg.cholesky(inverse, upper=True)
    torch.testing.assert_close(stiffness(hessian, 0.1), 1 / factor.diagonal().square())


@pytest.mark.parametrize("method", ["slim", "gptq", "spqr", "magnitude"])
def test_a_linear_layer_by_hand(method: Method) -> None:
    model, x = _linear()
    table = _estimate(Task(model, [x[:3], x[3:]]), Salience(method, damp=0.1))
    flat = x.double().reshape(-1, 6)
    hessian = 2 / 10 * flat.T @ flat
    damp = 0.1 if method == "slim" else 0.1 * float(hessian.diagonal().mean())
    inverse = torch.linalg.inv(hessian + damp * torch.eye(6))
    d = torch.linalg.cholesky(inverse, upper=True).diagonal()
    weight = model.get_parameter("0.weight").detach()
    for column, option in enumerate(OPTIONS[:3]):
        error = (round_trip(weight, option.weight) - weight).double()
        relative = error.square().sum() / weight.double().square().sum()
        wanted = {
            "slim": (weight.double().square() / d.square()).sum() * relative,
            "gptq": (error.square() / d.square()).sum() / 2,
            "spqr": (error.square() / inverse.diagonal()).sum() / 2,
            "magnitude": weight.double().abs().sum() * relative,
        }[method]
        assert table.values[0, column] == pytest.approx(float(wanted), rel=1e-6)
    assert table.values[0, 1] == table.values[0, 2]  # inputs do not enter
    assert table.values[0, 3] == 0


def test_gradient_outliers_by_hand() -> None:
    model, x = _linear()
    model, x = nn.Sequential(model[0]), x[:, 0]
    labels = torch.arange(10) % 4
    batches = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    table = _estimate(Task(model, batches), Salience("gwq", share=3 / 24))
    F.cross_entropy(model(x), labels).backward()
    weight, gradient = (
        model.get_parameter("0.weight").detach(),
        model.get_parameter("0.weight").grad,
    )
    assert gradient is not None
    largest = gradient.abs().flatten().argsort(descending=True)[:3]
    error = (round_trip(weight, OPTIONS[0].weight) - weight).flatten()
    wanted = (gradient.flatten() * error)[largest].abs().sum()
    assert table.values[0, 0] == pytest.approx(float(wanted), rel=1e-4)
    assert table.unit == "rank score (GWQ)"


def test_outliers_are_the_share_asked_for_and_at_least_one() -> None:
    gradient = torch.tensor([[1.0, -9.0], [3.0, 2.0]])
    assert outliers(gradient, 0.5).tolist() == [[False, True], [True, False]]
    assert outliers(gradient, 0.01).tolist() == [[False, True], [False, False]]


def test_hessians_are_those_of_what_each_row_of_a_weight_meets() -> None:
    """The Hessian of ``||z||^2 / N`` in one row of a weight, z what the layer writes."""
    model, batches, _ = mixed()
    model, x = model.double(), batches[0].double()
    layers = stored(model, trace(model, x))
    hessians = input_hessians(Task(model, [x]), layers)
    wrote: dict[str, Tensor] = {}

    def see(name: str, _: Tensor | None, output: Tensor) -> None:
        wrote[name] = output

    ones = [one for layer in layers for one in layer if one.name != "odd"]  # it has a ReLU inside
    with torch.no_grad(), watching(model, [one.name for one in ones], see):
        model(x)
    for one in ones:
        output, bias = wrote[one.name], dict(one.module.named_parameters()).get("bias")
        if bias is not None:
            output = output - bias.detach().reshape(1, -1, *[1] * (output.dim() - 2))
        matrix = as_rows(one.weight, hessians.modules[one.name])
        found = float(torch.einsum("grp,gpq,grq->", matrix, hessians[one.name], matrix))
        wanted = 2 / len(x) * float(output.square().sum())
        assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("make", [mixed, tied])
def test_takes_every_kind_of_layer(
    make: Callable[[], tuple[nn.Module, list[Tensor], list[str]]], method: Method
) -> None:
    model, batches, _ = make()
    given: list[Any] = list(batches)
    if batches[0].is_floating_point():
        given = [(x, torch.arange(len(x)) % 5) for x in batches]
    table = _estimate(Task(model, given), Salience(method))
    assert (table.values[:, 0] > table.values[:, 1]).all() or method == "gwq"
    assert (table.values[:, 1] > 0).all()


def test_hessians_that_do_not_fit_together_are_made_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, _ = mixed()
    task = Task(model, batches)
    together = _estimate(task, Salience("gptq"))
    monkeypatch.setattr("mpsearch.quant.input_hessian._ELEMENTS", 1)
    apart = _estimate(task, Salience("gptq"))
    np.testing.assert_allclose(apart.values, together.values, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "no method is named 'guess'; there are 'slim', 'gptq'"),
        ({"damp": 0}, "damp is 0; wanted a number above 0"),
        ({"share": 1.5}, "share is 1.5; wanted a number above 0 and at most 1"),
    ],
)
def test_settings_that_nothing_follows_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Salience(**settings)


def test_groups_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match="group is 0; wanted at least one column"):
        group_salience(torch.ones(2, 3), torch.eye(3), 0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and a Hessian of shape \(2, 2\); wanted"):
        group_salience(torch.ones(2, 3), torch.eye(2), 1)
    with pytest.raises(ValueError, match=r"not positive definite with 0\.01 added to the diagonal"):
        group_salience(torch.ones(2, 3), -torch.eye(3), 1)


class _Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out + self.other(x) if x[0, 0] > 9 else out


def test_a_layer_that_never_runs_is_an_error() -> None:
    torch.manual_seed(0)
    model, x = _Skipping(), torch.rand(5, 4)
    both = x + 10
    with pytest.raises(ValueError, match="layer 'other' is not called on the calibration batches"):
        _estimate(Task(model, [x]), Salience(), traced=both)


def test_a_layer_that_reads_only_zeros_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    with pytest.raises(ValueError, match="layer '0' reads only zeros on the calibration batches"):
        _estimate(Task(model, [torch.zeros(3, 4)]), Salience(), traced=torch.ones(3, 4))


def test_overflow_in_half_precision_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).half()
    for weight in model.parameters():
        weight.data.fill_(100.0)
    x = torch.full((3, 4), 1e4, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"layer '1' reads NaN or infinity.* half precision"):
        _estimate(Task(model, [x]), Salience(), traced=torch.ones_like(x))


def test_the_next_token_is_the_label_of_a_language_model() -> None:
    torch.manual_seed(0)
    ids, logits = torch.randint(7, (2, 5)), torch.randn(2, 5, 7)
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    for batch in (ids, {"input_ids": ids}, {"input_ids": ids, "labels": ids}):
        torch.testing.assert_close(cross_entropy(logits, batch), wanted)
    aligned = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    for other in ((ids, ids), {"x": ids, "labels": ids}):
        torch.testing.assert_close(cross_entropy(logits, other), aligned)
    half = torch.where(torch.arange(5) < 3, ids, -100)
    left = F.cross_entropy(logits[:, :3].flatten(0, 1), ids[:, :3].flatten())
    torch.testing.assert_close(cross_entropy(logits, (ids, half)), left)


@pytest.mark.parametrize("label", [4, -1, -100])
def test_labels_that_are_no_classes_are_errors(label: int) -> None:
    message = f"labels are \\[{label}\\] and so on; wanted some from 0 to 3, as many classes as"
    with pytest.raises(ValueError, match=message):
        cross_entropy(torch.zeros(2, 4), (torch.zeros(2, 3), torch.full((2,), label)))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.randn(4, 6), r"no labels that fit logits of shape \(4, 4\); give batches \(x, y\)"),
        ((torch.randn(4, 6), torch.randn(4)), "the batch has no labels"),
        ((torch.randn(4, 6), torch.arange(3)), "the batch has no labels"),
    ],
)
def test_gradients_without_labels_are_an_error(batch: Any, message: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(ValueError, match=message):
        _estimate(Task(model, [batch]), Salience("gwq"))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda z, _: z.sum() * float("nan"),
            "the loss of the float model is nan; wanted a finite",
        ),
        (lambda z, _: z, r"the loss returned Tensor of shape \(4, 4\); wanted a tensor of one"),
        (lambda *_: 3.0, "the loss returned float; wanted a tensor of one number"),
        (lambda z, _: (z - z.detach()).abs().sum().sqrt(), "gradient of the loss holds NaN or inf"),
    ],
)
def test_a_loss_without_a_gradient_is_an_error(loss: Any, message: str) -> None:
    task = Task(nn.Sequential(nn.Linear(6, 4)), [torch.randn(4, 6)], loss=loss)
    with pytest.raises(ValueError, match=message):
        _estimate(task, Salience("gwq"))


@pytest.mark.parametrize("method", get_args(Method))
def test_a_model_that_fails_midway_is_left_as_it_was(method: Method) -> None:
    def estimate(task: Task, network: Network) -> Table:
        estimator = Salience(method)
        return estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())

    left_as_it_was(estimate, *([1] if method == "magnitude" else [1, 2, 3]))
