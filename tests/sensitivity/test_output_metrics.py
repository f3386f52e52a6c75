"""Each measure against networks quantized by hand, alone and among others; the laws; the refusals."""

import contextlib
import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.batches import divergence
from mpsearch.formats import Option, options
from mpsearch.protocols import Estimator
from mpsearch.quant.model import quantize
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.jsd import JSD, jensen_shannon
from mpsearch.sensitivity.kl import KL
from mpsearch.sensitivity.loss import Loss
from mpsearch.sensitivity.mse import MSE
from mpsearch.sensitivity.sqnr import SQNR
from mpsearch.sensitivity.surroundings import Context
from mpsearch.sweep import Sweep
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace

PLAIN = Recipe(corrections=())
OPTIONS = options("w2a16", "w3a8", "w32a32")
ALL = [KL, JSD, MSE, SQNR, Loss]


class TestJSDLaws(EstimatorSuite):
    estimator: Estimator = JSD()


class TestMSELaws(EstimatorSuite):
    estimator: Estimator = MSE()


class TestSQNRLaws(EstimatorSuite):
    estimator: Estimator = SQNR()


class TestLossLaws(EstimatorSuite):
    estimator: Estimator = Loss()


class TestRandomLaws(EstimatorSuite):
    estimator: Estimator = KL(context="random", draws=2)


def _network() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    ).eval()
    x, y = torch.randn(9, 6), torch.arange(9) % 4
    return model, [(x[:4], y[:4]), (x[4:], y[4:])]


def _estimate(
    estimator: Estimator,
    task: Task,
    *,
    given: Sequence[Option] = OPTIONS,
    recipe: Recipe = PLAIN,
    sweep: Sweep | None = None,
    pin: Mapping[str, str] | None = None,
) -> Table:
    network = trace(task.model, task.batches[0], pin=pin or {})
    return estimator.estimate(task, network, given, recipe=recipe, sweep=sweep or Sweep())


def _measured(
    kind: Any, model: nn.Module, changed: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]
) -> Floats:
    """(N,) what the measure says of each sample; for SQNR (1,)."""
    x, y = (torch.cat(items) for items in zip(*batches, strict=True))
    with torch.no_grad():
        t, q = model(x).double(), changed(x).double()
    if kind is SQNR:
        noise = float((q - t).square().sum())
        ratio = 10 * math.log10(float(t.square().sum()) / noise) if noise else 120.0
        return np.array([120.0 - ratio])
    found = {
        KL: lambda: divergence(t, q),
        JSD: lambda: torch.from_numpy(
            np.asarray(jensenshannon(t.softmax(-1), q.softmax(-1), axis=-1)) ** 2  # type: ignore[no-untyped-call]
        ),
        MSE: lambda: (q - t).square().mean(1),
        Loss: lambda: (
            F.cross_entropy(q, y, reduction="none") - F.cross_entropy(t, y, reduction="none")
        ),
    }[kind]()
    return np.asarray(found)


@pytest.mark.parametrize("samples", [256, 5])
@pytest.mark.parametrize("kind", ALL)
def test_is_what_the_network_with_one_layer_quantized_shows(kind: Any, samples: int) -> None:
    model, batches = _network()
    recipe = Recipe(corrections=(), samples=samples)
    made = Loss(floor=None) if kind is Loss else kind()
    table = _estimate(made, Task(model, batches), recipe=recipe)
    assert table.stderr is not None
    for row, layer in enumerate(table.layers):
        for column, option in enumerate(OPTIONS):
            changed = quantize(model, {layer.name: option}, batches, recipe)
            each = _measured(kind, model, changed, batches)
            assert table.values[row, column] == pytest.approx(each.mean(), rel=1e-3, abs=1e-7)
            if len(each) > 1:
                error = each.std(ddof=1) / 3
                assert table.stderr[row, column] == pytest.approx(error, rel=1e-3, abs=1e-7)
    assert table.fixed == 0
    assert not table.values[:, 2].any()


@pytest.mark.parametrize(
    ("estimator", "unit"),
    [
        (KL(), "KL (nats)"),
        (JSD(), "JSD (nats)"),
        (MSE(), "MSE"),
        (SQNR(), "rank score (SQNR: dB short of 120)"),
        (Loss(), "cross-entropy (nats)"),
    ],
)
def test_says_what_it_counts(estimator: Estimator, unit: str) -> None:
    model, batches = _network()
    assert _estimate(estimator, Task(model, batches)).unit == unit


@pytest.mark.shared
def test_is_the_divergence_that_amq_computes(shared: Path) -> None:
    case = np.load(shared / "oracles/golden/amq_jsd.npz")
    p, q = (torch.from_numpy(case[name]) for name in ("p", "q"))
    assert float(jensen_shannon(p, q).mean()) == pytest.approx(float(case["jsd"]), rel=1e-6)
    assert float(jensen_shannon(p[None], q[None])) == pytest.approx(float(case["jsd"]), rel=1e-6)


def test_jsd_is_symmetric_bounded_and_takes_masked_classes() -> None:
    p = torch.tensor([[0.0, 1.0, -math.inf], [50.0, -50.0, -math.inf]])
    q = torch.tensor([[2.0, 0.0, -math.inf], [-50.0, 50.0, -math.inf]])
    found = jensen_shannon(p, q)
    assert torch.equal(found, jensen_shannon(q, p))
    assert 0 < float(found[0]) < math.log(2)
    assert float(found[1]) == pytest.approx(math.log(2), rel=1e-12)
    assert not jensen_shannon(p, p).any()
    assert jensen_shannon(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).shape == (2,)


def test_the_error_of_a_ratio_is_that_of_resampling() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).eval()
    x = torch.randn(400, 6) * torch.rand(400, 1).exp().square()
    table = _estimate(SQNR(), Task(model, [x]), given=options("w2a16"))
    changed = quantize(model, {"0": options("w2a16")[0]}, [x], PLAIN)
    with torch.no_grad():
        t, q = model(x).double(), changed(x).double()
    signal, noise = t.square().sum(1).numpy(), (q - t).square().sum(1).numpy()
    random = np.random.default_rng(0)
    drawn = random.integers(400, size=(2000, 400))
    ratios = 10 * np.log10(signal[drawn].sum(1) / noise[drawn].sum(1))
    assert table.stderr is not None
    assert table.stderr[0, 0] == pytest.approx(ratios.std(), rel=0.1)


def test_a_ceiling_counts_as_no_noise() -> None:
    model, batches = _network()
    low = _estimate(SQNR(ceiling=10.0), Task(model, batches))
    high = _estimate(SQNR(), Task(model, batches))
    wanted = np.maximum(high.values - 110, 0)
    np.testing.assert_allclose(low.values, wanted, atol=1e-9)


def test_a_floor_raises_what_falls_and_only_that() -> None:
    model, batches = _network()
    task = Task(model, batches)
    free = _estimate(Loss(floor=None), task).values
    assert free.min() < 0 < free.max()
    for floor in (0.0, 1e-3):
        wanted = np.where(free == 0, 0, np.maximum(free, floor))
        assert (_estimate(Loss(floor=floor), task).values == wanted).all()


def test_a_loss_of_the_tasks_own_is_asked_instead_of_the_labels() -> None:
    model, batches = _network()
    task = Task(model, [x for x, _ in batches], loss=lambda z, _: z.square().mean())
    table, kl = _estimate(Loss(floor=None), task), _estimate(KL(), task)
    assert table.unit == "loss"
    assert (table.values == kl.values).all()


def test_tokens_without_a_label_count_for_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).eval()
    words = torch.randint(7, (3, 5))
    labels = words.roll(-1, 1)
    labels[:, -1] = -100
    table = _estimate(Loss(floor=None), Task(model, [(words, labels)]), given=options("w2a16"))
    for layer, value in zip(table.layers, table.values[:, 0], strict=True):
        changed = quantize(model, dict.fromkeys(layer.modules, options("w2a16")[0]), [words], PLAIN)
        with torch.no_grad():
            gains = [
                float(F.cross_entropy(m(words).flatten(0, 1), labels.flatten()))
                for m in (changed, model)
            ]
        assert value == pytest.approx(gains[0] - gains[1], rel=1e-3)


def test_a_language_model_loses_on_the_next_token() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).eval()
    words = torch.randint(7, (3, 5))
    shifted = torch.cat([words[:, 1:], torch.full((3, 1), -100)], 1)
    given = options("w2a16")
    tables = [
        _estimate(Loss(floor=None), Task(model, [batch]), given=given)
        for batch in (words, (words, shifted))
    ]
    np.testing.assert_allclose(tables[0].values, tables[1].values, rtol=1e-12)


def _named(*names: str) -> dict[str, Option]:
    return dict(zip(("0", "2", "4"), options_of(names), strict=True))


def options_of(names: Sequence[str]) -> list[Option]:
    return [Option.parse(name) for name in names]


@pytest.mark.parametrize("recipe", [PLAIN, Recipe()])
@pytest.mark.parametrize("kind", ALL)
def test_round_an_allocation_it_is_what_changing_one_layer_adds(kind: Any, recipe: Recipe) -> None:
    model, batches = _network()
    around = _named("w3a8", "w2a16", "w4a8")
    made = Loss(context=around, floor=None) if kind is Loss else kind(context=around)
    table = _estimate(made, Task(model, batches), recipe=recipe)

    def measured(given: Mapping[str, Option]) -> float:
        changed = quantize(model, given, batches, recipe)
        return float(_measured(kind, model, changed, batches).mean())

    own = measured(around)
    assert table.fixed == pytest.approx(own, rel=1e-3)
    for row, layer in enumerate(table.layers):
        for column, option in enumerate(OPTIONS):
            wanted = measured(around | {layer.name: option}) - own
            assert table.values[row, column] == pytest.approx(wanted, rel=1e-2, abs=1e-4 * abs(own))
    assert table.values[0, 1] == table.values[1, 0] == 0
    assert table.stderr is not None


def test_the_total_of_the_allocation_is_what_was_measured_of_it() -> None:
    model, batches = _network()
    around = _named("w3a8", "w2a16", "w32a32")
    table = _estimate(JSD(context=around), Task(model, batches))
    changed = quantize(model, around, batches, PLAIN)
    wanted = _measured(JSD, model, changed, batches).mean()
    assert table.total([1, 0, 2]) == table.fixed == pytest.approx(wanted, rel=1e-3)


def test_an_option_as_context_is_that_of_all_layers_but_pinned_ones() -> None:
    model, batches = _network()
    task, pin = Task(model, batches), {"4": "w2a16"}
    named = _estimate(KL(context="w4a16"), task, pin=pin)
    given = _estimate(KL(context=_named("w4a16", "w4a16", "w2a16")), task, pin=pin)
    assert (named.values == given.values).all()
    assert named.fixed == given.fixed > 0
    assert named.values[2, 0] == 0


def test_layers_the_allocation_does_not_name_stay_unquantized() -> None:
    model, batches = _network()
    task = Task(model, batches)
    part = _estimate(MSE(context={"2": Option.parse("w2a16")}), task)
    whole = _estimate(MSE(context=_named("w32a32", "w2a16", "w32a32")), task)
    assert (part.values == whole.values).all()
    assert (_estimate(MSE(context={}), task).values == _estimate(MSE(), task).values).all()


@pytest.mark.parametrize("kind", ALL)
def test_among_random_options_it_is_the_mean_gain_over_the_layer_left_alone(kind: Any) -> None:
    model, batches = _network()
    free: dict[str, Any] = {"floor": None} if kind is Loss else {}
    made = kind(context="random", draws=3, seed=5, **free)
    table = _estimate(made, Task(model, batches))
    gains = np.zeros((3, 3, 3))
    for draw in range(3):
        random = np.random.default_rng([5, draw])
        drawn = {name: OPTIONS[random.choice(3)] for name in ("0", "2", "4")}
        for row, name in enumerate(drawn):
            found = [
                _measured(
                    kind, model, quantize(model, drawn | {name: option}, batches, PLAIN), batches
                ).mean()
                for option in OPTIONS
            ]
            gains[draw, row] = np.array(found) - found[2]
    assert np.abs(gains[0] - gains[1]).max() > 0
    np.testing.assert_allclose(
        table.values, gains.mean(axis=0), rtol=1e-2, atol=1e-4 * np.abs(gains).max()
    )
    assert table.stderr is not None
    least = gains.std(axis=0, ddof=1) / 3**0.5
    assert (table.stderr >= least * 0.99 - 1e-6).all()


def test_seeds_draw_other_networks_and_pinned_layers_keep_their_option() -> None:
    model, batches = _network()
    task, pin = Task(model, batches), {"4": "w3a8"}
    one, same, other = (
        _estimate(KL("random", draws=2, seed=seed), task, pin=pin) for seed in (0, 0, 1)
    )
    assert (one.values == same.values).all()
    assert (one.values != other.values).any()
    only = _estimate(KL("random", draws=2), task, pin={"0": "w2a16", "2": "w3a8", "4": "w3a8"})
    assert only.stderr is not None
    alone = _estimate(KL("random", draws=1), task, pin={"0": "w2a16", "2": "w3a8", "4": "w3a8"})
    np.testing.assert_allclose(only.values, alone.values, rtol=1e-12)


def _stopped_and_resumed(estimator: Estimator, task: Task, sweep: Sweep) -> Table:
    for _ in range(10):
        with contextlib.suppress(KeyboardInterrupt):
            return _estimate(estimator, task, sweep=sweep)
    raise AssertionError("it never got to its end")


def test_goes_on_where_it_was_stopped_and_contexts_share_no_results() -> None:
    model, batches = _network()
    task = Task(model, batches)
    made: list[Estimator] = [
        KL(),
        KL("random", draws=2),
        KL("random", draws=2, seed=1),
        KL("w4a16"),
        KL(_named("w4a16", "w4a16", "w2a16")),
        SQNR(ceiling=20.0),
        SQNR(),
    ]
    wanted = [_estimate(each, task) for each in made]

    class Stopping(dict[str, Any]):
        left = itertools.cycle(range(7))

        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            if next(self.left) == 6:
                raise KeyboardInterrupt

    sweep = Sweep(cache=Stopping())
    for each, table in zip(made, wanted, strict=True):
        found = _stopped_and_resumed(each, task, sweep)
        assert (found.values == table.values).all()
        assert found.fixed == table.fixed


class _Counted(nn.Linear):
    calls: ClassVar[int] = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        type(self).calls += 1
        return super().forward(input)


@pytest.mark.parametrize("kind", ALL)
def test_what_lies_before_a_layer_is_computed_once(kind: Any) -> None:
    torch.manual_seed(0)
    layers = 8
    model = nn.Sequential(*(_Counted(4, 4) for _ in range(layers)))
    task = Task(model, [(torch.randn(16, 4), torch.arange(16) % 4)])
    calls = []
    for given in (options("w2a16"), options("w2a16", "w3a16", "w4a16")):
        _Counted.calls = 0
        _estimate(kind(), task, given=given)
        calls.append(_Counted.calls)
    assert calls[1] - calls[0] == layers * (layers + 1)


class _Breaking(nn.Module):
    """Raises at a call to come."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.left = inner, [10**9]

    def __deepcopy__(self, memo: Any) -> "_Breaking":
        made = _Breaking(copy.deepcopy(self.inner, memo))
        made.left = self.left
        return made

    def forward(self, x: Tensor) -> Any:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise RuntimeError("broke midway")
        return self.inner(x)


@pytest.mark.parametrize("context", ["alone", "random", "w4a8"])
@pytest.mark.parametrize("kind", ALL)
def test_the_model_is_left_as_it_was_when_it_raises_midway(kind: Any, context: Context) -> None:
    inner, batches = _network()
    model = _Breaking(inner)
    network = trace(model, batches[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def estimate() -> None:
        kind(context=context).estimate(
            Task(model, batches), network, OPTIONS, recipe=Recipe(), sweep=Sweep()
        )

    model.left[0] = 1000
    estimate()
    model.left[0] = 1000 - model.left[0] - 3
    with pytest.raises(RuntimeError, match="broke midway"):
        estimate()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class _Sometimes(nn.Module):
    """Its second layer runs on batches of more than two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.second(x) if len(x) > 2 else x
        return out


@pytest.mark.parametrize("kind", ALL)
def test_a_layer_that_never_runs_is_an_error(kind: Any) -> None:
    torch.manual_seed(0)
    model, few = _Sometimes(), (torch.randn(2, 4), torch.tensor([0, 1]))
    network = trace(model, torch.randn(3, 4))
    with pytest.raises(ValueError, match="layer 'second' never runs on these batches"):
        kind().estimate(Task(model, [few]), network, options("w4a16"), recipe=PLAIN, sweep=Sweep())


@pytest.mark.parametrize("kind", ALL)
def test_a_dead_layer_loses_nothing(kind: Any) -> None:
    model, batches = _network()
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(-1e3)  # nothing gets through the ReLU
    for recipe in (PLAIN, Recipe()):
        table = _estimate(kind(), Task(model, batches), given=options("w2a16", "w4a8"))
        assert not table.values[0].any(), recipe
        assert np.isfinite(table.values).all()


@pytest.mark.parametrize("kind", ALL)
def test_overflow_in_half_precision_is_an_error(kind: Any) -> None:
    model, batches = _network()
    halves = [(x.half(), y) for x, y in batches]
    with torch.no_grad():
        for name in ("0.weight", "2.weight", "4.weight"):
            model.get_parameter(name).mul_(300)
    task = Task(model.half(), halves)
    with pytest.raises(
        ValueError,
        match=r"the loss of the float model is (nan|inf).*in float16, which ends at 65504",
    ):
        _estimate(kind(), task, given=options("w4a16"))


@pytest.mark.parametrize("kind", ALL)
def test_overflow_of_a_quantized_layer_is_an_error(kind: Any) -> None:
    class Steep(nn.Linear):
        known: Tensor

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            z = super().forward(input)
            return z + torch.where((z - self.known).abs() > 1e-3, math.inf, 0.0)

    torch.manual_seed(0)
    model, x = Steep(4, 3), torch.randn(2, 4)
    model.known = F.linear(x, model.weight, model.bias).detach()
    task = Task(nn.Sequential(model), [(x, torch.tensor([0, 1]))])
    with pytest.raises(
        ValueError, match=r"layer '0' at 'int2/fp16': the loss is (nan|inf); wanted"
    ):
        _estimate(kind(), task, given=options("w2a16"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KL("current"), "no context is named 'current'; write 'alone', 'random' or"),
        (lambda: JSD(5), "no context is named 5; write"),  # type: ignore[arg-type]
        (lambda: MSE({"0": "w8a8"}), "the context gives layer '0' 'w8a8'; wanted an option"),  # type: ignore[dict-item]
        (lambda: SQNR("random", draws=0), "draws is 0; wanted at least 1"),
        (lambda: SQNR(ceiling=0.0), "ceiling is 0.0 dB; wanted a positive number"),
        (lambda: SQNR(ceiling=math.inf), "ceiling is inf dB; wanted a positive number"),
        (lambda: Loss(floor=-1.0), "floor is -1.0; wanted a number from 0 up, or None"),
        (lambda: Loss(floor=math.nan), "floor is nan; wanted"),
        (lambda: Loss("w8"), "no context is named 'w8'"),
    ],
)
def test_settings_no_method_has_are_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_allocation_of_another_network_is_an_error() -> None:
    model, batches = _network()
    with pytest.raises(ValueError, match="an option for 'conv', which is no layer of this network"):
        _estimate(KL({"conv": OPTIONS[0]}), Task(model, batches))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, _: x, r"no labels that fit logits of shape \(4, 4\); give .*'kl' needs neither"),
        (lambda x, _: {"input": x}, "the batch has no labels"),
        (lambda x, y: (x, y.double()), "the batch has no labels"),
        (lambda x, y: (x, y[:, None]), "the batch has no labels that fit"),
        (lambda x, y: (x, y + 1), r"labels are \[.*4\] and so on; wanted some from 0 to 3"),
    ],
)
def test_a_loss_that_wants_labels_says_so(change: Any, message: str) -> None:
    model, batches = _network()
    with pytest.raises(ValueError, match=message):
        _estimate(Loss(), Task(model, [change(*batch) for batch in batches]))


def test_jsd_wants_logits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1)).eval()
    task = Task(model, [torch.randn(4, 2, 3, 3)])
    with pytest.raises(
        ValueError, match=r"shape \(4, 3, 3, 3\); wanted logits.*use 'mse' or 'sqnr'"
    ):
        _estimate(JSD(), task)
    assert _estimate(MSE(), task).unit == "MSE"
    assert (_estimate(SQNR(), task).values[:, 0] > 0).all()


def test_sqnr_wants_an_output() -> None:
    model, batches = _network()
    with torch.no_grad():
        for parameter in model[4].parameters():  # type: ignore[index]
            parameter.zero_()
    with pytest.raises(ValueError, match="the output is zero on all batches, so it has no signal"):
        _estimate(SQNR(), Task(model, batches))
