"""Each group's layers against networks quantized by hand in its own metric; the laws; refusals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.formats import Option, options
from mpsearch.network import Layer, Network
from mpsearch.protocols import Estimator
from mpsearch.quant.model import quantize
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.metric_decoupled import MetricDecoupled
from mpsearch.sensitivity.mse import MSE
from mpsearch.sensitivity.sqnr import SQNR
from mpsearch.sensitivity.ssim import SSIM
from mpsearch.sensitivity.surroundings import Context
from mpsearch.split_budget import Grid, split
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.sensitivity.midway import left_as_it_was

PLAIN = Recipe(corrections=())
OPTIONS = options("w2a16", "w3a8", "w32a32")
PARTS = {"first": "^(0|4)$", "rest": "."}


class TestMetricDecoupledLaws(EstimatorSuite):
    estimator: Estimator = MetricDecoupled()


class TestTwoMetricsLaws(EstimatorSuite):
    estimator: Estimator = MetricDecoupled(
        {"convolutions": "kind:conv", "rest": "."}, {"convolutions": "mse", "rest": "kl"}
    )


class Painter(nn.Module):
    """Images to images: convolutions, and a block named as a diffusion network's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 4, 3, padding=1)
        self.block = nn.ModuleDict({"attn2": nn.Conv2d(4, 4, 1), "ff": nn.Conv2d(4, 4, 1)})
        self.diffuse = nn.Conv2d(4, 4, 1)
        self.conv_out = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x).relu()
        x = x + self.block["ff"](self.block["attn2"](x).relu())
        out: Tensor = self.conv_out(self.diffuse(x).relu())
        return out


def _painter() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model, x = Painter().eval(), torch.randn(5, 2, 9, 10)
    return model, [x[:2], x[2:]]


def _estimate(
    estimator: Estimator,
    model: nn.Module,
    batches: Sequence[Any],
    *,
    given: Sequence[Option] = OPTIONS,
    pin: Mapping[str, str] | None = None,
    sweep: Sweep | None = None,
) -> Table:
    network = trace(model, batches[0], pin=pin)
    return estimator.estimate(
        Task(model, batches), network, given, recipe=PLAIN, sweep=sweep or Sweep()
    )


def _by_hand(model: nn.Module, batches: Sequence[Tensor], layer: str, option: Option) -> Any:
    """What the network says in float, and with a layer quantized."""
    changed = quantize(model, {layer: option}, batches, PLAIN)
    with torch.no_grad():
        return model(torch.cat(list(batches))), changed(torch.cat(list(batches)))


def test_each_group_is_judged_by_its_own_metric() -> None:
    model, batches = _painter()
    table = _estimate(MetricDecoupled(), model, batches)
    assert [layer.name for layer in table.layers] == [
        "conv_in",
        "block.attn2",
        "block.ff",
        "diffuse",
        "conv_out",
    ]
    for row, layer in enumerate(table.layers):
        for column, option in enumerate(OPTIONS):
            t, q = _by_hand(model, batches, layer.name, option)
            if layer.name in ("block.attn2", "block.ff"):
                wanted = float(SSIM().dissimilarity([t], [q]).mean())
            else:
                noise = float((q - t).square().sum())
                ratio = 10 * np.log10(float(t.square().sum()) / noise) if noise else 120.0
                wanted = 120 - ratio
            assert table.values[row, column] == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert table.stderr is not None
    assert (table.stderr[:, :2] > 0).all()


def test_says_which_layers_are_in_which_unit_and_that_these_do_not_compare() -> None:
    model, batches = _painter()
    table = _estimate(MetricDecoupled(), model, batches)
    assert table.unit == (
        "rank score (not comparable between groups: content in 1 - SSIM, quality in SQNR: dB short"
        " of 120)"
    )
    content = np.array([False, True, True, False, False])[:, None] & table.allowed
    assert list(table.notes) == [
        "group 'content': rank score (1 - SSIM)",
        "group 'quality': rank score (SQNR: dB short of 120)",
    ]
    for where, wanted in zip(table.notes.values(), (content, ~content), strict=True):
        assert (where == wanted).all()


def test_groups_of_one_metric_are_the_table_of_that_metric() -> None:
    model, batches = _painter()
    made = MetricDecoupled({"a": "conv", "b": "."}, {"a": "sqnr", "b": "sqnr"})
    table, whole = _estimate(made, model, batches), _estimate(SQNR(), model, batches)
    assert table.unit == whole.unit
    np.testing.assert_array_equal(table.values, whole.values)
    assert table.stderr is not None
    np.testing.assert_array_equal(table.stderr, np.asarray(whole.stderr))


@pytest.mark.parametrize(
    "context", ["w3a8", "random", {"block.attn2": OPTIONS[0], "conv_out": OPTIONS[1]}]
)
def test_in_a_context_it_is_each_metric_s_own_table_of_its_layers(context: Context) -> None:
    model, batches = _painter()
    groups = {"content": "block", "quality": "."}
    kinds = {"content": "mse", "quality": "sqnr"}
    made = MetricDecoupled(groups, kinds, context, draws=2, seed=3)
    table = _estimate(made, model, batches)
    of_content = _estimate(MSE(context, draws=2, seed=3), model, batches)
    of_quality = _estimate(SQNR(context, draws=2, seed=3), model, batches)
    np.testing.assert_array_equal(table.values[1:3], of_content.values[1:3])
    np.testing.assert_array_equal(table.values[[0, 3, 4]], of_quality.values[[0, 3, 4]])
    assert table.fixed == 0
    same = MetricDecoupled(groups, dict.fromkeys(groups, "mse"), context, draws=2, seed=3)
    whole = _estimate(same, model, batches)
    np.testing.assert_array_equal(whole.values, of_content.values)
    assert whole.fixed == of_content.fixed


def test_the_first_group_that_matches_takes_a_layer_by_name_module_role_or_kind() -> None:
    layers = (
        Layer("qkv", role="attention", kind="linear", members=("a.q", "a.k", "a.v")),
        Layer("mlp.up", role="mlp", kind="linear"),
        Layer("stem", role="first", kind="conv2d"),
    )
    groups = {"keys": r"\.k$", "attention": "role:attention", "conv": "kind:^conv", "rest": "."}
    metrics = dict.fromkeys(groups, "mse")
    found = MetricDecoupled(
        {k: groups[k] for k in ("keys", "conv", "rest")},
        {k: metrics[k] for k in ("keys", "conv", "rest")},
    )._rows(layers)
    assert found == {"keys": [0], "conv": [2], "rest": [1]}
    found = MetricDecoupled(
        {k: groups[k] for k in ("attention", "rest")},
        {k: metrics[k] for k in ("attention", "rest")},
    )._rows(layers)
    assert found == {"attention": [0], "rest": [1, 2]}


def test_a_function_of_two_outputs_is_a_metric() -> None:
    def largest(t: Tensor, q: Tensor) -> Tensor:
        return (q - t).abs().flatten(1).amax(1)

    model, batches = _painter()
    made = MetricDecoupled({"conv": "^conv", "rest": "."}, {"conv": largest, "rest": "mse"})
    table = _estimate(made, model, batches)
    assert list(table.notes) == ["group 'conv': rank score (largest)", "group 'rest': MSE"]
    t, q = _by_hand(model, batches, "conv_in", OPTIONS[0])
    assert table.values[0, 0] == pytest.approx(float(largest(t, q).mean()), rel=1e-3)
    t, q = _by_hand(model, batches, "diffuse", OPTIONS[0])
    assert table.values[3, 0] == pytest.approx(float((q - t).square().mean()), rel=1e-3)


def test_windows_of_another_size_are_a_metric_and_keep_their_own_results() -> None:
    model, batches = _painter()
    sweep, groups = Sweep(), {"all": "."}
    small, large, measure = (
        _estimate(MetricDecoupled(groups, {"all": metric}), model, batches, sweep=sweep)
        for metric in (SSIM(window=3), SSIM(window=9), SSIM(window=9).measure)
    )
    assert small.unit == large.unit == "rank score (1 - SSIM)"
    assert (small.values[:, 0] != large.values[:, 0]).all()
    assert (large.values == measure.values).all()
    assert len(sweep.cache) == 2 * 5 * 3  # those of a measure without a name are not kept


def test_functions_of_one_name_share_no_results() -> None:
    def times(factor: float) -> Any:
        def metric(t: Tensor, q: Tensor) -> Tensor:
            return factor * (q - t).square().flatten(1).mean(1)

        return metric

    model, batches = _painter()
    sweep = Sweep()
    found = [
        _estimate(MetricDecoupled({"a": "."}, {"a": times(k)}), model, batches, sweep=sweep).values
        for k in (1.0, 2.0, 4.0)
    ]
    np.testing.assert_allclose(found[1:], [2 * found[0], 4 * found[0]])


def test_pinned_layers_keep_their_mask_in_table_and_notes() -> None:
    model, batches = _painter()
    table = _estimate(MetricDecoupled(), model, batches, pin={"block.ff": "w3a8"})
    assert table.allowed[2].tolist() == [False, True, False]
    assert table.notes["group 'content': rank score (1 - SSIM)"][2].tolist() == [False, True, False]


@pytest.mark.shared
def test_mixdq_s_own_layers_fall_into_its_two_groups(shared: Path) -> None:
    read = json.loads((shared / "oracles/mixdq/sdxl_turbo_sensitivity.json").read_text())
    names = list(read["sensitivity"]["weight_sqnr"])
    found = MetricDecoupled()._rows([Layer(name) for name in names])
    assert {names[row] for row in found["content"]} == set(read["sensitivity"]["weight_ssim"])
    assert {group: len(rows) for group, rows in found.items()} == {"content": 420, "quality": 374}


@pytest.mark.shared
def test_vidit_q_s_layers_fall_into_its_four_groups_and_its_bits_follow_them(shared: Path) -> None:
    read = json.loads((shared / "oracles/viditq/opensora_configs.json").read_text())
    groups = {name: rf"\.{name}\." for name in ("attn_temp", "cross_attn", "mlp", "attn")}
    made = MetricDecoupled(groups, dict.fromkeys(groups, "mse"))
    for steps in ("14-10", "9-5"):  # it has no solver: mlp at 8 bits, the rest at 4
        published = read["final_weight"][steps]
        found = made._rows([Layer(name) for name in published])
        bits = list(published.values())
        assert sum(map(len, found.values())) == 364
        for group, rows in found.items():
            assert {bits[row] for row in rows} == {8 if group == "mlp" else 4}


def test_end_to_end_the_answer_is_judged_on_quantized_networks() -> None:
    model, batches = _painter()
    network = trace(model, batches[0])
    given = options("w2a16", "w4a16", "w8a16")
    task = Task(model, batches)
    loss = mp.estimate(task, given, MetricDecoupled(), network=network, recipe=PLAIN)
    size = mp.cost(network, given)
    whole = torch.cat(batches)

    def pixels(allocation: mp.Allocation) -> float:
        changed = quantize(model, allocation, batches, PLAIN)
        with torch.no_grad():
            return float((changed(whole) - model(whole)).square().mean())

    found = split(
        loss, {size: "uniform:w4a16"}, grid=Grid(2.0, 6, (0.5, 0.75, 1.0, 1.5)), judge=pixels
    )
    assert found.allocation.cost["size"] <= size.total([1] * 5)
    assert len(found.candidates) > 2
    scores = [pixels(each.allocation) for each in found.candidates]
    np.testing.assert_allclose([each.objective for each in found.candidates], scores)
    uniform = dict.fromkeys((layer.name for layer in network.layers), given[1])
    best = float(found.allocation.provenance["objective"])
    assert best == pytest.approx(pixels(found.allocation))
    assert best <= min(scores)
    changed = quantize(model, uniform, batches, PLAIN)
    with torch.no_grad():
        assert best <= float((changed(whole) - model(whole)).square().mean())


@pytest.mark.parametrize("calls", range(4, 12, 2))
def test_the_model_is_left_as_it_was_when_it_raises_midway(calls: int) -> None:
    made = MetricDecoupled({"a": "inner.0", "b": "."}, {"a": "kl", "b": "sqnr"})

    def estimate(task: Task, network: Network) -> None:
        made.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())

    left_as_it_was(estimate, calls)


@pytest.mark.parametrize(
    ("groups", "metrics", "message"),
    [
        ("conv", None, "groups is 'conv'; wanted one entry for each group's name"),
        ({}, {}, "groups is {}; wanted one entry"),
        ({"a": "."}, None, "groups are 'a' and the metrics are of 'content', 'quality'; name one"),
        ({"a": "("}, {"a": "mse"}, r"pattern of group 'a' is '\(', no regular expression: missing"),
        ({"a": 5}, {"a": "mse"}, "pattern of group 'a' is 5, no regular expression"),
        ({"a": "."}, {"a": "fid"}, "metric of group 'a' is 'fid'; wanted kl, mse, sqnr, ssim, a"),
        ({"a": "."}, {"a": 3}, "metric of group 'a' is 3; wanted"),
    ],
)
def test_settings_it_cannot_work_with_are_errors(groups: Any, metrics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetricDecoupled(groups, metrics)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": "attn"}, r"layer 'conv_in' is in none of the groups 'a'; add a last group with"),
        ({"a": "lstm", "b": "."}, "group 'a' has no layer: its pattern is 'lstm', and the layers"),
    ],
)
def test_groups_that_do_not_fit_the_network_are_errors(
    groups: dict[str, str], message: str
) -> None:
    model, batches = _painter()
    with pytest.raises(ValueError, match=message):
        _estimate(MetricDecoupled(groups, dict.fromkeys(groups, "mse")), model, batches)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda t, q: float((t - q).sum()), "group 'a' returned float; wanted a tensor of shape"),
        (lambda t, q: t - q, r"returned Tensor of shape \(5, 3, 9, 10\); wanted .* \(5,\), one"),
    ],
)
def test_a_metric_gives_one_number_a_sample(metric: Any, message: str) -> None:
    model, batches = _painter()
    with pytest.raises(ValueError, match=message):
        _estimate(MetricDecoupled({"a": "."}, {"a": metric}), model, batches)


def test_a_metric_that_overflows_in_half_precision_is_an_error() -> None:
    model, batches = _painter()
    halves = [1e3 * x.half() for x in batches]
    with torch.no_grad():
        model.get_parameter("conv_out.weight").mul_(1e4)
    with pytest.raises(ValueError, match="in float16, which ends at 65504: try float32"):
        _estimate(MetricDecoupled(), model.half(), halves)


def test_ssim_of_what_is_no_image_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    with pytest.raises(ValueError, match=r"the output has shape \(6, 3\); SSIM compares images"):
        _estimate(MetricDecoupled({"a": "."}, {"a": "ssim"}), model, [torch.randn(6, 4)])


def test_a_layer_that_never_runs_is_an_error_in_its_group() -> None:
    model, batches = _painter()
    network = trace(model, batches[0])
    model.diffuse = nn.Identity()
    model.spare = nn.Conv2d(4, 4, 1)
    layers = tuple(
        Layer("spare", members=("spare",)) if layer.name == "diffuse" else layer
        for layer in network.layers
    )
    with pytest.raises(ValueError, match="layer 'spare' never runs on these batches"):
        MetricDecoupled().estimate(
            Task(model, batches), Network(layers), OPTIONS, recipe=PLAIN, sweep=Sweep()
        )


def test_a_dead_layer_loses_nothing() -> None:
    model, batches = _painter()
    with torch.no_grad():
        for name in ("block.ff.weight", "block.ff.bias"):
            model.get_parameter(name).zero_()
    table = _estimate(MetricDecoupled(), model, batches)
    assert not table.values[1:3].any()  # what feeds it, too
