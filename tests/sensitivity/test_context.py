"""Every estimator in the surroundings of a context: laws by name, and cases computed by hand."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch import registry
from mpsearch.batches import divergence
from mpsearch.formats import Option, options
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.bench import Bench
from mpsearch.quant.model import quantize
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.coverage import Coverage
from mpsearch.sensitivity.entropy import Entropy
from mpsearch.sensitivity.fisher import Fisher
from mpsearch.sensitivity.hessian_eig import HessianEig
from mpsearch.sensitivity.hessian_trace import HessianTrace
from mpsearch.sensitivity.interactions import Interactions
from mpsearch.sensitivity.lim import Lim
from mpsearch.sensitivity.lrp import LRP
from mpsearch.sensitivity.noise import Noise
from mpsearch.sensitivity.salience import Salience
from mpsearch.sensitivity.surroundings import Context
from mpsearch.sensitivity.taylor import Taylor
from mpsearch.sensitivity.weight_error import WeightError
from mpsearch.sensitivity.zd import Zd
from mpsearch.sensitivity.zero_cost import ZeroCost
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.tracing import trace
from tests.sensitivity.midway import left_as_it_was

PLAIN = Recipe(corrections=())
OPTIONS = options("w2a4", "w8a8", "w32a32")
W2, W8, _ = OPTIONS
SEEING: dict[str, tuple[Any, dict[str, Any]]] = {
    "hessian-trace": (HessianTrace, {"probes": 4}),
    "hessian-trace by products": (HessianTrace, {"probes": 4, "method": "hutchinson"}),
    "hessian-eig": (HessianEig, {"iterations": 5}),
    "hessian-eig to fine-tune": (HessianEig, {"order": "fine-tuning", "iterations": 5}),
    "fisher": (Fisher, {}),
    "fisher of outputs": (Fisher, {"at": "outputs"}),
    "taylor": (Taylor, {}),
    "llm-mq": (Taylor, {"variant": "llm-mq"}),
    "taylor to second order": (Taylor, {"variant": "second-order"}),
    "lim": (Lim, {}),
    "lrp": (LRP, {"rule": "epsilon"}),
    "salience": (Salience, {}),
    "gptq": (Salience, {"method": "gptq"}),
    "spqr": (Salience, {"method": "spqr"}),
    "gwq": (Salience, {"method": "gwq"}),
    "entropy": (Entropy, {}),
    "luq": (Entropy, {"method": "luq", "clusters": 3}),
    "q-vlm": (Entropy, {"method": "q-vlm"}),
    "noise": (Noise, {}),
    "snip": (ZeroCost, {"method": "snip"}),
    "orm": (ZeroCost, {"method": "orm"}),
    "ompq": (ZeroCost, {"method": "ompq"}),
    "interactions": (Interactions, {}),
}
BLIND: dict[str, tuple[Any, dict[str, Any]]] = {
    "weight-error": (WeightError, {}),
    "zd": (Zd, {}),
    "magnitude": (Salience, {"method": "magnitude"}),
    "synflow": (ZeroCost, {"method": "synflow", "initial": "trained"}),
    "qe": (ZeroCost, {"method": "qe"}),
    "bparams": (ZeroCost, {"method": "bparams"}),
}
EVERY = SEEING | BLIND
WRAPPING = {"calibrated"}  # needs a score, and takes no allocation


class Saturating(nn.Module):
    """What the first layers write decides how flat the tanh is that the others read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(2 * self.first(x))
        x = x + torch.tanh(2 * self.blocks(x))
        out: Tensor = self.last(F.relu(x))
        return out


def _task(name: str = "") -> Task:
    torch.manual_seed(0)
    model = Saturating().eval()
    x, y = torch.randn(12, 6), torch.arange(12) % 4

    def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output, batch[1])

    own = name not in ("noise", "interactions")  # these are steadier with the divergence
    return Task(model, [(x[:6], y[:6]), (x[6:], y[6:])], loss=loss if own else None)


@cache
def _network() -> Network:
    task = _task()
    return trace(task.model, task.batches[0])


def _table(name: str, sweep: Sweep | None = None, **context: Any) -> Table:
    made, settings = EVERY[name]
    if context.get("context") == "random":
        context.setdefault("draws", 2)
    estimator: Estimator = made(**settings, **context)
    given: Any = {"recipe": PLAIN, "sweep": sweep or Sweep()}
    return estimator.estimate(_task(name), _network(), OPTIONS, **given)


@cache
def _found(name: str, context: str) -> Table:
    return _table(name, context=context)


def _bytes(table: Table) -> tuple[bytes, bytes]:
    return table.values.tobytes(), b"" if table.stderr is None else table.stderr.tobytes()


@pytest.mark.parametrize("name", EVERY)
def test_alone_is_the_default_and_what_a_context_of_nothing_quantized_is(name: str) -> None:
    alone = _bytes(_found(name, "alone"))
    assert _bytes(_table(name)) == alone
    assert _bytes(_table(name, context="w32a32")) == alone


@pytest.mark.parametrize("name", BLIND)
def test_what_sees_no_network_is_the_same_in_any(name: str) -> None:
    table = _table(name, context="w2a4")
    np.testing.assert_array_equal(table.values, _found(name, "alone").values)


@pytest.mark.parametrize("name", SEEING)
def test_eight_bits_around_change_little(name: str) -> None:
    alone, eight = _found(name, "alone").values, _table(name, context="w8a8").values
    assert not np.array_equal(alone, eight)
    if name == "taylor":  # whose gradient is that of a network of the option's own
        np.testing.assert_array_equal(eight[:, 1], alone[:, 1])
    else:
        np.testing.assert_allclose(eight, alone, rtol=0, atol=0.15 * np.abs(alone).max())


@pytest.mark.parametrize("name", SEEING)
def test_random_options_around_show_the_saturation_and_are_repeatable(name: str) -> None:
    sweep = Sweep()
    alone = _table(name, sweep)  # whose results are not those of others
    random = _table(name, sweep, context="random")
    assert _bytes(alone) == _bytes(_found(name, "alone"))
    assert not np.allclose(random.values, alone.values, rtol=1e-4, atol=0)
    assert _bytes(_table(name, context="random")) == _bytes(random)


def test_random_is_the_mean_of_its_draws_with_their_spread() -> None:
    for name in ("gptq", "fisher"):
        one, two = (_table(name, context="random", draws=draws) for draws in (1, 2))
        assert two.stderr is not None
        second = 2 * two.values - one.values  # the first of two networks is that of one
        spread = np.abs(one.values - second) / 2
        if one.stderr is None:
            np.testing.assert_allclose(two.stderr, spread, rtol=1e-6, atol=1e-15)
        assert (two.stderr >= spread * (1 - 1e-9)).all()
        assert (spread[:, :2] > 0).all()


@pytest.mark.parametrize("name", SEEING)
def test_the_model_is_left_as_it_was_midway(name: str) -> None:
    made, settings = SEEING[name]
    estimator = made(**settings, context="random", **({} if name == "noise" else {"draws": 2}))

    def estimate(task: Task, network: Network) -> Table:
        table: Table = estimator.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())
        return table

    left_as_it_was(estimate, 1, 4, 8)


@pytest.mark.parametrize("name", sorted({*registry.names("sensitivity")} - WRAPPING))
def test_every_name_takes_a_context_and_refuses_what_is_none(name: str) -> None:
    made = registry.make("sensitivity", name, context="w8a8")
    assert made.context == "w8a8"
    assert registry.make("sensitivity", name).context == "alone"
    with pytest.raises(ValueError, match="no context is named 'nearby'; write 'alone'"):
        registry.make("sensitivity", name, context="nearby")
    with pytest.raises(ValueError, match=r"layer '0' 'w8a8'; wanted an option, such as"):
        registry.make("sensitivity", name, context={"0": "w8a8"})


@pytest.mark.parametrize("name", SEEING)
def test_refuses_a_layer_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=r"an option for 'nowhere', which is no layer"):
        _table(name, context={"nowhere": W8})


def test_refuses_no_draws() -> None:
    with pytest.raises(ValueError, match="draws is 0; wanted at least 1"):
        Fisher(context="random", draws=0)


def _linear() -> tuple[nn.Sequential, Tensor, Network]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)).eval()
    x = torch.randn(7, 5)
    return model, x, trace(model, x)


def _squares(output: Tensor, _: Any) -> Tensor:
    return output.square().sum() / (2 * len(output))


def _estimated(made: Estimator, model: nn.Module, x: Tensor, *, loss: Any = _squares) -> Table:
    task = Task(model, [x], loss=loss)
    return made.estimate(task, trace(model, x), OPTIONS, recipe=PLAIN, sweep=Sweep())


def _rounded(model: nn.Sequential, x: Tensor, name: str, option: Option) -> Tensor:
    quantized = quantize(model, {name: option}, [x], PLAIN).get_submodule(name)
    weight: Any = quantized.weight
    found: Tensor = weight.detach()
    return found


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").detach()


def test_slopes_are_those_behind_a_rounded_layer() -> None:
    model, x, _ = _linear()
    context: Context = {"0": Option.parse("w2a32"), "1": Option.parse("w3a32")}
    table = _estimated(Taylor(variant="llm-mq", context=context), model, x)
    hidden = x @ _rounded(model, x, "0", Option.parse("w2a32")).T
    weight = _rounded(model, x, "1", Option.parse("w3a32"))
    slope = (hidden @ weight.T).T @ hidden / len(x)
    change = _rounded(model, x, "1", Option.parse("w2a32")) - _weight(model, "1")
    grid = _grid(model, x, "1", W2)
    inputs = (hidden @ weight.T) @ weight / len(x)
    moved = torch.fake_quantize_per_tensor_affine(hidden, *grid) - hidden
    wanted = float((slope * change).sum().abs() + (inputs * moved).sum().abs())
    assert table.values[1, 0] == pytest.approx(wanted, rel=1e-4)
    alone = _estimated(Taylor(variant="llm-mq"), model, x)
    assert abs(alone.values[1, 0] - wanted) > 0.05 * wanted


def test_slopes_pass_straight_through_rounded_inputs_that_are_not_clipped() -> None:
    model, x, _ = _linear()
    recipe = Recipe(corrections=(), activation_ranges="percentile", percentile=90.0)
    context: Context = {"1": Option.parse("w32a4")}
    task = Task(model, [x], loss=_squares)
    made = Taylor(variant="llm-mq", context=context)
    table = made.estimate(task, trace(model, x), OPTIONS, recipe=recipe, sweep=Sweep())
    hidden, weight = x @ _weight(model, "0").T, _weight(model, "1")
    grid = _grid(model, x, "1", Option.parse("w32a4"), recipe)
    read = torch.fake_quantize_per_tensor_affine(hidden, *grid)
    scale, zero, low, high = grid
    inside = ((hidden / scale).round() + zero).clamp(low, high) == (hidden / scale).round() + zero
    assert 0 < int((~inside).sum()) < inside.numel() / 2
    slope = (((read @ weight.T) @ weight) * inside).T @ x / len(x)
    change = _rounded(model, x, "0", Option.parse("w2a32")) - _weight(model, "0")
    moved = _moved(model, x, "0", W2, recipe)
    inputs = ((read @ weight.T) @ weight * inside) @ _weight(model, "0") / len(x)
    wanted = float((slope * change).sum().abs() + (inputs * moved).sum().abs())
    assert table.values[0, 0] == pytest.approx(wanted, rel=1e-4)


def _grid(
    model: nn.Module, x: Tensor, name: str, option: Option, recipe: Recipe = PLAIN
) -> tuple[float, int, int, int]:
    found = Bench(model, [x], ["0", "1"], recipe).grid(name, option.activation)
    assert found is not None
    return found.scale, found.zero, found.low, found.high


def _moved(model: nn.Module, x: Tensor, name: str, option: Option, recipe: Recipe) -> Tensor:
    grid = _grid(model, x, name, option, recipe)
    return torch.fake_quantize_per_tensor_affine(x, *grid) - x


def test_errors_of_inputs_are_those_before_they_are_rounded() -> None:
    model, x, _ = _linear()
    context: Context = {"0": Option.parse("w32a4")}
    alone = _estimated(Entropy(method="q-vlm"), model, x)
    found = _estimated(Entropy(method="q-vlm", context=context), model, x)
    np.testing.assert_array_equal(found.values[0], alone.values[0])  # it reads what it did
    assert not np.array_equal(found.values[1], alone.values[1])


@pytest.mark.parametrize("method", ["exact", "hutchinson"])
def test_curvature_is_that_behind_a_rounded_layer(method: Any) -> None:
    model, x, _ = _linear()
    context: Context = {"0": Option.parse("w2a32")}
    loss = None if method == "exact" else _squares
    made = HessianTrace(method=method, probes=400, context=context)
    table = _estimated(made, model, x, loss=loss)
    hidden = x @ _rounded(model, x, "0", Option.parse("w2a32")).T
    weight = _weight(model, "1")
    error = float((_rounded(model, x, "1", Option.parse("w2a32")) - weight).square().sum())
    if loss is None:
        p = (hidden @ weight.T).softmax(-1)
        traces = (1 - p.square().sum(-1)) * hidden.square().sum(-1)
    else:
        traces = 3 * hidden.square().sum(-1)
    wanted = float(traces.mean()) / weight.numel() * error
    assert table.values[1, 0] == pytest.approx(wanted, rel=1e-4 if loss is None else 0.1)


def test_outputs_err_against_the_float_weight() -> None:
    model, x, _ = _linear()
    context: Context = dict.fromkeys(["0", "1"], Option.parse("w2a4"))
    table = _estimated(Fisher(at="outputs", context=context), model, x)
    before = torch.fake_quantize_per_tensor_affine(x, *_grid(model, x, "0", W2))
    hidden = before @ _rounded(model, x, "0", W2).T
    read = torch.fake_quantize_per_tensor_affine(hidden, *_grid(model, x, "1", W2))
    slope = read @ _rounded(model, x, "1", W2).T  # of each sample's own loss, half a square
    error = slope - hidden @ _weight(model, "1").T
    assert table.values[1, 0] == pytest.approx(
        float((slope * error).square().sum(1).mean()), rel=1e-4
    )


@pytest.mark.parametrize("context", ["alone", {"0": W8, "1": W2}])
def test_pairs_and_table_add_up_to_what_was_measured(context: Context) -> None:
    model, x, network = _linear()
    task, made = Task(model, [x]), Interactions(context=context)
    sweep = Sweep()
    given: Any = {"recipe": PLAIN, "sweep": sweep}
    table = made.estimate(task, network, OPTIONS, **given)
    pairs = {
        (p.first_option, p.second_option): p for p in made.pairs(task, network, OPTIONS, **given)
    }
    with torch.no_grad():
        reference = model(x)
        for a, b in ((0, 1), (1, 1), (0, 0)):
            changed = quantize(model, {"0": OPTIONS[a], "1": OPTIONS[b]}, [x], PLAIN)
            measured = float(divergence(reference, changed(x)).mean())
            total = table.fixed + table.values[0, a] + table.values[1, b] + pairs[a, b].loss
            assert total == pytest.approx(measured, rel=1e-3, abs=1e-6)


def test_pairs_among_random_layers_have_a_standard_error() -> None:
    made = Interactions(context="random", draws=2, significance=1e6)
    given: Any = {"recipe": PLAIN, "sweep": Sweep()}
    assert made.pairs(_task("interactions"), _network(), OPTIONS, **given) == ()
    every = Interactions(context="random", draws=2)
    found = every.pairs(_task("interactions"), _network(), OPTIONS, **given)
    alone = Interactions().pairs(_task("interactions"), _network(), OPTIONS, **given)
    assert len(found) == len(alone) == 6 * 4
    assert found != alone


def test_coverage_round_an_allocation_stays_near_it() -> None:
    made = Coverage(context="w2a4", draws=24)
    mask = _network().mask(OPTIONS)
    choices, _ = made._drawn(mask, made._near(_network(), OPTIONS, mask))
    assert 0.5 < float((choices == 0).mean()) < 0.8
    plain, _ = Coverage(draws=24)._drawn(mask)
    assert float((plain == 0).mean()) < 0.5
    with pytest.raises(ValueError, match=r"gives layer 'first' 'int4/int4', which it may not take"):
        Coverage(context="w4a4")._near(_network(), OPTIONS, mask)


def test_coverage_among_random_layers_is_its_own() -> None:
    given: Any = {"recipe": PLAIN, "sweep": Sweep()}
    one, other = (
        Coverage(context=context, draws=24).estimate(_task(), _network(), OPTIONS, **given)
        for context in ("alone", "random")
    )
    assert _bytes(one) == _bytes(other)
