"""Pairs against networks quantized by hand and a closed form, which pairs are worth it, the laws."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch.batches import divergence
from mpsearch.formats import Option, options
from mpsearch.hwmodels.size import Size
from mpsearch.network import Layer, Network
from mpsearch.problem import Budget, Interaction, Problem
from mpsearch.protocols import Estimator
from mpsearch.quant.integers import round_trip
from mpsearch.quant.model import quantize
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.interactions import Interactions, block
from mpsearch.solvers.quadratic import Quadratic
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace

PLAIN = Recipe(corrections=())
OPTIONS = options("w2a16", "w3a8", "fp32/fp32")


class TestLaws(EstimatorSuite):
    estimator: Estimator = Interactions()


def _small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    return model.eval(), torch.randn(9, 6)


def _both(
    asked: Interactions,
    task: Task,
    *,
    given: tuple[Option, ...] = OPTIONS,
    network: Network | None = None,
    sweep: Sweep | None = None,
) -> tuple[Table, tuple[Interaction, ...]]:
    network = network or trace(task.model, task.batches[0])
    sweep = sweep or Sweep()
    table = asked.estimate(task, network, given, recipe=PLAIN, sweep=sweep)
    return table, asked.pairs(task, network, given, recipe=PLAIN, sweep=sweep)


def test_totals_of_two_quantized_layers_are_what_networks_lose() -> None:
    model, x = _small()
    table, pairs = _both(Interactions(), Task(model, [x[:4], x[4:]]))
    assert len(pairs) == 3 * 2 * 2  # an unquantized layer interacts with nothing
    problem = Problem(table, interactions=pairs)
    for i, j in itertools.combinations(range(3), 2):
        for a, b in itertools.product(range(2), repeat=2):
            choice = [2, 2, 2]
            choice[i], choice[j] = a, b
            given = {table.layers[r].name: OPTIONS[k] for r, k in enumerate(choice)}
            with torch.no_grad():
                output = quantize(model, given, [x], PLAIN)(x)
                wanted = float(divergence(model(x), output).mean())
            assert problem.total(choice) == pytest.approx(wanted, rel=1e-3)


class _Branches(nn.Module):
    """(N, 2, 3, 3) images: a sum of two linear branches."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Conv2d(2, 3, 1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x) + self.other(x)
        return out


def test_errors_of_two_branches_multiply() -> None:
    torch.manual_seed(0)
    model, x = _Branches().eval(), torch.randn(5, 2, 3, 3)
    given = options("w3a16")
    apart = Network((Layer("one"), Layer("other")))  # a trace ties what is added
    _, (pair,) = _both(Interactions(), Task(model, [x]), given=given, network=apart)
    with torch.no_grad():
        norm = model(x).square().sum((1, 2, 3))
        one, other = (
            nn.functional.conv2d(x, round_trip(branch.weight, given[0].weight) - branch.weight)
            for branch in (model.one, model.other)
        )
        wanted = 2 * ((one * other).sum((1, 2, 3)) / norm).mean()
    assert pair == Interaction(0, 0, 1, 0, pair.loss)
    assert pair.loss == pytest.approx(float(wanted), rel=1e-4)


def test_the_quadratic_solver_finds_the_least_total() -> None:
    model, x = _small()
    given = options("w2a16", "w3a16", "w4a16")
    table, pairs = _both(Interactions(), Task(model, [x]), given=given)
    size = Size().costs(trace(model, x), given)["size"]
    problem = Problem(table, (Budget.of(size, "uniform:w3a16"),), interactions=pairs)
    choices = [c for c in itertools.product(range(3), repeat=3) if problem.feasible(c)]
    assert Quadratic().solve(problem).loss == pytest.approx(min(map(problem.total, choices)))


def _net(*names: str, edges: tuple[tuple[str, str], ...] = ()) -> tuple[Network, Table]:
    layers = tuple(Layer(name) for name in names)
    values = np.array([[3.0, 0], [1, 0], [4, 0], [2, 0]])
    return Network(layers, edges), Table(layers, options("w2a8", "w8a8"), values, "loss")


def test_pairs_worth_it() -> None:
    names = ("stem", "layer1.0.conv1", "layer1.0.conv2", "fc")
    network, table = _net(*names, edges=(("stem", names[1]), (names[2], "fc"), ("stem", "fc")))
    worth = {
        which: Interactions(which, count=2).worth(network, table)
        for which in ("all", "neighbours", "block", "largest")
    }
    assert worth == {
        "all": ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)),
        "neighbours": ((0, 1), (0, 3), (2, 3)),
        "block": ((1, 2),),
        "largest": ((0, 2),),
    }
    several = Interactions(("block", "largest", "neighbours"), count=2).worth(network, table)
    assert several == ((0, 1), (0, 2), (0, 3), (1, 2), (2, 3))


def test_an_option_a_layer_may_not_take_does_not_make_it_large() -> None:
    network, table = _net("a", "b", "c", "d")
    mask = np.ones((4, 2), bool)
    mask[2, 0] = False
    table = Table(table.layers, table.options, table.values, "loss", allowed=mask)
    assert Interactions(("largest",), count=2).worth(network, table) == ((0, 3),)


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        ("layer1.0.conv1", "layer1.0"),
        ("layer1.0.downsample.0", "layer1.0"),
        ("blocks.11.mlp.fc1", "blocks.11"),
        ("features.3", ""),
        ("fc", ""),
    ],
)
def test_blocks_are_named_up_to_the_first_number(module: str, wanted: str) -> None:
    assert block(module) == wanted


def test_small_interactions_can_be_left_out() -> None:
    model, x = _small()
    _, every = _both(Interactions(), Task(model, [x]))
    _, clear = _both(Interactions(significance=2.0), Task(model, [x]))
    assert 0 < len(clear) < len(every)
    assert set(clear) < set(every)
    alike = torch.cat([x[:1]] * 4)  # all samples say the same: every interaction is sure
    _, sure = _both(Interactions(significance=2.0), Task(model, [alike]))
    assert len(sure) == len(every)


def test_pinned_layers_interact_at_their_option_only() -> None:
    model, x = _small()
    network = trace(model, x, pin={"2": "w3a8"})
    _, pairs = _both(Interactions(), Task(model, [x]), network=network)
    assert {p.second_option for p in pairs if p.second == 1} == {1}
    assert len(pairs) == 2 + 4 + 2


def test_goes_on_where_it_was_stopped() -> None:
    model, x = _small()
    task = Task(model, [x])

    class Stopping(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            if len(self) == 12:
                raise KeyboardInterrupt

    cache = Stopping()
    with pytest.raises(KeyboardInterrupt):
        _both(Interactions(), task, sweep=Sweep(cache=cache))
    _, resumed = _both(Interactions(), task, sweep=Sweep(cache=cache))
    assert sum(json.loads(key)[1] == "pairs" for key in cache) == len(resumed) == 12
    assert resumed == _both(Interactions(), task)[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"which": ()}, r"which is \(\); wanted one or several of 'all', 'neighbours'"),
        ({"which": ("near",)}, r"which is \('near',\); wanted one or several of"),
        ({"which": "near"}, "which is 'near'; wanted one or several of"),
        ({"count": 1}, "count is 1; a pair is of two layers: give 2 or more"),
        ({"significance": -1}, "significance is -1; wanted a number of standard errors from 0"),
    ],
)
def test_settings_without_a_meaning_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Interactions(**settings)


def test_only_pairs_that_add_to_the_loss_are_kept_where_asked() -> None:
    model, x = _small()
    _, every = _both(Interactions(), Task(model, [x]))
    _, kept = _both(Interactions(positive=True), Task(model, [x]))
    assert min(pair.loss for pair in every) < 0
    assert kept == tuple(pair for pair in every if pair.loss > 0)


def test_one_sample_has_no_significance() -> None:
    model, x = _small()
    with pytest.raises(ValueError, match="the loss is one number, which has no standard error to"):
        _both(Interactions(significance=1.0), Task(model, [x[:1]]))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    model, x = _small()
    calls = iter(range(1000))
    task = Task(model, [x], loss=lambda z, _: z.sum() * (1 if next(calls) < 12 else float("nan")))
    with pytest.raises(ValueError, match="the loss is nan; wanted a finite number"):
        _both(Interactions(), task)
