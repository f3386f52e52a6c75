"""Scores of places add up to those of layers, measured ones are runs, and solvers gain by them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.batches import divergence
from mpsearch.formats import Option, options
from mpsearch.hwmodels.size import Size
from mpsearch.network import Network
from mpsearch.places import Per, Places, finer
from mpsearch.problem import Budget, Problem, Status
from mpsearch.protocols import Estimator, Solver
from mpsearch.quant.places import KEPT, Mixed
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.fisher import Fisher
from mpsearch.sensitivity.granular import Granular
from mpsearch.sensitivity.hessian_trace import HessianTrace
from mpsearch.sensitivity.kl import KL
from mpsearch.sensitivity.salience import Salience
from mpsearch.sensitivity.surroundings import Context
from mpsearch.sensitivity.taylor import Taylor
from mpsearch.sensitivity.weight_error import WeightError
from mpsearch.solvers.exact import Exact
from mpsearch.solvers.two_level import TwoLevel
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.quant import networks
from tests.sensitivity.midway import left_as_it_was

SCORES: dict[str, Estimator] = {
    "weight-error": WeightError(),
    "hessian-trace": HessianTrace(),
    "salience": Salience("gptq"),
    "fisher": Fisher(),
    "taylor": Taylor(),
}
WITHIN: list[tuple[Per, tuple[Option, ...]]] = [
    ("channel", options("w2a32", "int4g5/fp32", "w3a32", "w32a32")),
    ("group", options("int2g10/fp32", "int4g5/fp32", "w32a32")),
]
PLAIN = Recipe(corrections=())
Made = Callable[[], tuple[nn.Module, list[Tensor], list[str]]]


class _Suite(EstimatorSuite):
    def test_one_finite_number_per_layer_and_option(self) -> None:
        table = self.estimate(Task(self.model(), self.batches()))
        assert [table.layers[i].name for i in (0, 4, -1)] == ["0[0]", "4[0]", "6[4]"]
        assert table.values.shape == (4 + 8 + 5, len(self.options))
        assert np.isfinite(table.values).all()


class TestWeightError(_Suite):
    estimator: Estimator = Granular()
    runs_model = False


class TestHessianTrace(_Suite):
    estimator: Estimator = Granular(score="hessian-trace")


class TestSalience(_Suite):
    estimator: Estimator = Granular(score="salience")


class TestFisher(_Suite):
    estimator: Estimator = Granular(score="fisher")


class TestTaylor(_Suite):
    estimator: Estimator = Granular(score="taylor")


class TestKL(_Suite):
    estimator: Estimator = Granular(score="kl")


def _estimate(
    estimator: Estimator, task: Task, network: Network, *chosen: Option, recipe: Recipe = PLAIN
) -> Table:
    return estimator.estimate(task, network, chosen, recipe=recipe, sweep=Sweep())


def _added(table: Table) -> Any:
    assert isinstance(table.layers, Places)
    found = np.zeros((len(table.layers.coarse.layers), len(table.options)))
    np.add.at(found, table.layers.tensors, table.values)
    return found


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("make", [networks.mixed, networks.tied])
@pytest.mark.parametrize(("per", "chosen"), WITHIN)
def test_places_add_up_to_their_layer(
    name: str, make: Made, per: Per, chosen: tuple[Option, ...]
) -> None:
    model, batches, _ = make()
    task, network = Task(model, batches), trace(model, batches[0])
    whole = _estimate(SCORES[name], task, network, *chosen)
    fine = _estimate(Granular(per, name, 10), task, network, *chosen)
    scale = whole.values.max()
    np.testing.assert_allclose(_added(fine), whole.values, rtol=1e-5, atol=1e-6 * scale)
    assert fine.unit == whole.unit
    assert (fine.stderr is None) == (whole.stderr is None)
    assert (fine.values[:, -1] == 0).all()


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("context", ["w2a32", "random"])
def test_places_add_up_in_a_context_too(name: str, context: Context) -> None:
    model, batches, _ = networks.mixed()
    task, network = Task(model, batches), trace(model, batches[0])
    chosen, score = options("w2a32", "w3a32"), SCORES[name]
    settings = {"context": context, "draws": 2, "seed": 1}
    own = {key: value for key, value in settings.items() if hasattr(score, key)}
    whole = _estimate(replace(score, **own), task, network, *chosen)  # type: ignore[type-var]
    fine = _estimate(Granular("channel", name, **settings), task, network, *chosen)  # type: ignore[arg-type]
    np.testing.assert_allclose(_added(fine), whole.values, rtol=1e-5)
    alone = _estimate(Granular("channel", name), task, network, *chosen)
    assert np.array_equal(alone.values, fine.values) == (name == "weight-error")


@pytest.mark.parametrize("score", [Salience("spqr"), Fisher(), Taylor(), HessianTrace(probes=3)])
def test_they_do_with_settings_and_labels(score: Estimator) -> None:
    model, batches, _ = networks.mixed()
    labelled = [(batch, torch.arange(8) % 5) for batch in batches]
    task = Task(model, labelled, loss=lambda output, batch: F.cross_entropy(output, batch[1]))
    network, chosen = trace(model, labelled[0]), options("w2a32", "w4a32")
    whole = _estimate(score, task, network, *chosen)
    fine = _estimate(Granular("channel", score), task, network, *chosen)
    np.testing.assert_allclose(_added(fine), whole.values, rtol=1e-5)
    assert fine.unit == whole.unit


def test_the_standard_error_of_a_layer_of_one_place_is_its_own() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 3)), torch.randn(7, 6)
    task, network = Task(model, [x, x.flip(1)]), trace(model, x)
    for name in ("fisher", "taylor", "hessian-trace", "kl"):
        score = {**SCORES, "kl": KL()}[name]
        whole = _estimate(score, task, network, *options("w2a32"))
        fine = _estimate(Granular("channel", name), task, network, *options("w2a32"))
        assert whole.stderr is not None
        assert fine.stderr is not None
        np.testing.assert_allclose(fine.values[0], whole.values[0], rtol=1e-6)
        np.testing.assert_allclose(fine.stderr[0], whole.stderr[0], rtol=1e-6)
        assert fine.unit == whole.unit


def test_a_shared_scale_is_one_for_each_place() -> None:
    model, (x, *_), _ = networks.mixed()
    task, network = Task(model, [x]), trace(model, x)
    groups = _estimate(Granular("group", group=5), task, network, *options("int3/int8"))
    whole = _estimate(WeightError(), task, network, *options("int3g5/int8"))
    np.testing.assert_allclose(_added(groups), whole.values, rtol=1e-6)


@pytest.mark.parametrize("recipe", [PLAIN, Recipe()])
def test_kl_is_that_of_a_network_with_one_place_rounded(recipe: Recipe) -> None:
    model, batches, _ = networks.mixed()
    task, network, chosen = Task(model, batches), trace(model, batches[0]), options("w2a8", "w4a8")
    table = _estimate(Granular("channel", "kl"), task, network, *chosen, recipe=recipe)
    mixed = Mixed.of(model, batches, finer(network, "channel"), recipe)
    for place, column in [(0, 0), (7, 1), (20, 0), (42, 1)]:
        choice = np.full(len(table.layers), KEPT)
        choice[place] = column
        with torch.no_grad(), mixed.at(choice, options("w2a32", "w4a32")) as rounded:
            each = [divergence(model(batch), rounded(batch)) for batch in batches]
        assert table.values[place, column] == pytest.approx(float(torch.cat(each).mean()), rel=1e-9)
    assert table.values.max() > 0


def test_kl_by_hand_with_a_loss_of_the_tasks_own() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2, bias=False)), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    model[0].weight.data = torch.tensor([[1.0, 0.25], [-2.0, 2.0]])
    task = Task(model, [x], loss=lambda output, _: output.square().mean())
    table = _estimate(
        Granular(score="kl"), task, trace(model, x), *options("w2a32"), recipe=Recipe("minmax", corrections=())
    )  # fmt: skip
    np.testing.assert_allclose(table.values, [[-0.0625 / 4], [0.0]], atol=1e-9)
    assert table.unit == "loss"


class Mixture(nn.Module):
    """Two of three experts for each sample, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.head = nn.Linear(4, 3), nn.Linear(4, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        share, index = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(index == number)
            if len(token):
                out = out.index_add(0, token, share[token, place, None] * expert(x[token]))
        found: Tensor = self.head(out)
        return found


@pytest.mark.parametrize("name", ["weight-error", "kl", "mse", "taylor"])
def test_experts_are_scored_as_layers_of_several_modules(name: str) -> None:
    model = Mixture()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    task, network, chosen = Task(model, [x]), trace(model, x), options("w2a8", "w4a8")
    table = _estimate(Granular("expert", name), task, network, *chosen)
    names = ["router", "experts.0", "experts.1", "experts.2", "head"]
    assert [layer.name for layer in table.layers] == names
    assert (table.values[1:, 0] > table.values[1:, 1]).all()  # a router may be lucky
    if name == "weight-error":
        whole = _estimate(WeightError(), task, network, *chosen)
        np.testing.assert_allclose(table.values.sum(0), whole.values.sum(0))
        np.testing.assert_allclose(table.values[1], whole.values[1:3].sum(0))


def test_a_network_of_places_is_taken_as_it_is() -> None:
    model, (x, *_), _ = networks.mixed()
    fine = finer(trace(model, x, pin={"stem": "w8a8"}), "channel")
    table = _estimate(Granular(), Task(model, [x]), fine, *options("w4a8", "w8a8"))
    assert table.layers is fine.layers
    assert (table.allowed == fine.mask(table.options)).all()
    assert not table.allowed[0, 0]
    for other in (Granular("group"), Granular("expert")):
        with pytest.raises(
            ValueError, match="places per channel of 128, granular is set to one per"
        ):
            _estimate(other, Task(model, [x]), fine, *options("w4a8"))


@pytest.mark.parametrize("name", ["hessian-trace", "salience", "fisher", "taylor", "kl"])
def test_the_model_is_left_as_it_was_when_it_fails_midway(name: str) -> None:
    def estimate(task: Task, network: Network) -> Table:
        return _estimate(Granular("group", name, 4), task, network, *options("w2a8", "w4a8"))

    left_as_it_was(estimate, 1, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per": "row"}, "per is 'row'; there are channel, group, expert"),
        ({"group": 0}, "group is 0; wanted at least one weight"),
        ({"score": "lrp"}, "score is 'lrp'; one per channel is known for 'weight-error', 'hessian"),
        (
            {"score": WeightError(relative=True)},
            "is no sum over weights, or has a context of its own",
        ),
        ({"score": Salience("slim")}, "wanted weight-error that is not relative"),
        ({"score": Fisher("outputs")}, "no sum over weights"),
        ({"score": Taylor("second-order")}, "no sum over weights"),
        ({"score": KL("w8a8")}, "no sum over weights, or has a context of its own"),
        ({"score": "kl", "context": "w8a8"}, "and 'kl' of one channel is measured with all else"),
    ],
)
def test_settings_that_no_place_follows_are_an_error(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Granular(**settings)


def test_what_the_scores_cannot_work_with_is_an_error() -> None:
    model, (x, *_), _ = networks.mixed()
    network = trace(model, x)
    with pytest.raises(ValueError, match="no layer is part of an expert"):
        _estimate(Granular("expert"), Task(model, [x]), network, *options("w4a8"))
    with pytest.raises(ValueError, match="names method 'gptq'"):
        _estimate(Granular(), Task(model, [x]), network, Option.parse("int4/fp16+gptq"))
    model.get_parameter("head.weight").data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer 'head': it holds NaN"):
        _estimate(Granular(), Task(model, [x]), network, *options("w4a8"))


@pytest.mark.parametrize("name", ["fisher", "taylor"])
def test_gradients_out_of_range_name_the_layer(name: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.ones(3, 2)
    task = Task(model, [x], loss=lambda output, _: (output * 0).abs().sqrt().sum())
    with pytest.raises(
        ValueError, match="layer '0': a gradient is not finite; run the model in float32"
    ):
        _estimate(Granular(score=name), task, trace(model, x), *options("w2a32"))


@pytest.mark.parametrize("name", ["fisher", "taylor"])
def test_a_layer_the_loss_does_not_see_is_named(name: str) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.cut = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.seen(x) + self.cut(x).detach()
            return out

    model, x = Cut(), torch.ones(3, 2)
    with pytest.raises(ValueError, match="the loss has no gradient in layer 'cut'"):
        _estimate(Granular(score=name), Task(model, [x]), trace(model, x), *options("w2a32"))


@pytest.mark.parametrize("name", ["salience", "fisher", "taylor", "kl"])
def test_a_layer_that_never_runs_is_named(name: str) -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.rarely = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.always(x)
            return self.rarely(out) if x.sum() > 0 else out

    model, x = Choosing(), torch.ones(3, 2)
    with pytest.raises(ValueError, match="layer 'rarely'"):
        _estimate(Granular(score=name), Task(model, [-x]), trace(model, x), *options("w2a32"))


def _problem(loss: Table, network: Network, limit: float) -> Problem:
    size = Size().costs(network, loss.options)["size"]
    return Problem(loss, (Budget(size, limit),))


@pytest.mark.parametrize("name", ["weight-error", "hessian-trace", "fisher"])
@pytest.mark.parametrize(("per", "chosen"), WITHIN)
def test_places_never_lose_more_than_layers_of_the_same_size(
    name: str, per: Per, chosen: tuple[Option, ...]
) -> None:
    model, batches, _ = networks.mixed()
    task, network = Task(model, batches), trace(model, batches[0])
    fine = finer(network, per, group=10)
    assert isinstance(fine.layers, Places)
    coarse = _estimate(SCORES[name], task, network, *chosen)
    loss = _estimate(Granular(per, name, 10), task, fine, *chosen)
    size = Size().costs(network, chosen)["size"]
    gained = 0
    for share in (0.2, 0.35, 0.5, 0.8):
        limit = size.least() + share * (size.total([0] * len(size.layers)) - size.least())
        limit = int(limit + share * 2000)
        best = Exact().solve(_problem(coarse, network, limit))
        spread = np.asarray(best.choice)[fine.layers.tensors]
        room = Size().costs(fine, chosen)["size"].total(spread)  # with the padding of places
        solvers: list[Solver] = [Exact(), TwoLevel(fine.layers.tensors)]
        for solver in solvers:
            problem = _problem(loss, fine, room)
            found = solver.solve(problem)
            assert found.status in (Status.OPTIMAL, Status.FEASIBLE)
            assert problem.budgets[0].cost.total(found.choice) <= room
            assert found.loss <= best.loss * (1 + 1e-6)
            gained += found.loss < 0.99 * best.loss
    assert gained
