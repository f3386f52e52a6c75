"""What is drawn, the fitted table against networks quantized by hand, and the laws."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch.batches import divergence
from mpsearch.formats import Option, options
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.model import quantize
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.additive import R2
from mpsearch.sensitivity.coverage import Coverage, Covered
from mpsearch.sweep import Sweep
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace

PLAIN = Recipe(corrections=())
OPTIONS = options("w2a16", "w4a16", "w8a16")


class TestLaws(EstimatorSuite):
    estimator: Estimator = Coverage()


def _small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    linear = [nn.Linear(8, 8) for _ in range(4)]
    model = nn.Sequential(*[m for layer in linear for m in (layer, nn.ReLU())], nn.Linear(8, 4))
    return model.eval(), torch.randn(40, 8)


def _covered(
    coverage: Coverage,
    *,
    given: tuple[Option, ...] = OPTIONS,
    network: Network | None = None,
    sweep: Sweep | None = None,
    loss: Any = None,
) -> Covered:
    model, x = _small()
    network = network or trace(model, x)
    task = Task(model, [x[:30], x[30:]], loss=loss)
    return coverage.covered(task, network, given, recipe=PLAIN, sweep=sweep or Sweep())


def test_predicts_networks_it_has_not_seen() -> None:
    model, x = _small()
    found = _covered(Coverage())
    drawn, held = Coverage()._drawn(found.table.allowed)
    errors, losses = [], []
    for choice in drawn[:held]:
        given = {
            layer.name: OPTIONS[k] for layer, k in zip(found.table.layers, choice, strict=True)
        }
        with torch.no_grad():
            output = quantize(model, given, [x], PLAIN)(x)
            losses.append(float(divergence(model(x), output).mean()))
        errors.append(losses[-1] - found.predicted([int(k) for k in choice]))
    r2 = 1 - np.square(errors).sum() / np.square(np.array(losses) - np.mean(losses)).sum()
    assert found.certificate.r2 == pytest.approx(r2, abs=1e-3)
    assert found.certificate.allocations == held
    assert r2 > R2


def test_a_total_is_the_transformed_loss() -> None:
    found = _covered(Coverage())
    total, k = found.table.total([0, 1, 2, 0, 1]), found.curvature
    assert k != 0
    assert found.predicted([0, 1, 2, 0, 1]) == pytest.approx((1 - math.exp(-k * total)) / k)
    assert found.table.unit == f"-log(1 - k f) / k, f in KL (nats), k = {k:.4g}"
    plain = _covered(Coverage(link="additive"))
    assert (plain.curvature, plain.table.unit) == (0, "KL (nats)")
    assert plain.predicted([0] * 5) == pytest.approx(plain.table.total([0] * 5))


def test_saturating_links_only_bend_one_way() -> None:
    assert _covered(Coverage(link="coverage")).curvature > 0


def test_the_table_notes_its_certificate() -> None:
    found = _covered(Coverage())
    ((note, where),) = found.table.notes.items()
    assert note == f"fitted in context: {found.certificate}"
    assert where.all()
    assert found.table.stderr is not None
    assert (found.table.stderr >= 0).all()


def test_unquantized_options_are_zero() -> None:
    found = _covered(Coverage(), given=options("w2a16", "w4a16", "fp32/fp32")).table
    assert (found.values[:, 2] == 0).all()
    assert (found.values[:, 0] > 0).all()


def test_a_loss_of_the_tasks_own() -> None:
    found = _covered(Coverage(link="additive"), loss=lambda z, _: z.square().mean())
    assert found.table.unit == "loss"


def test_pinned_layers_keep_their_option() -> None:
    model, x = _small()
    network = trace(model, x, pin={"2": "w4a16"})
    sweep = Sweep()
    table = _covered(Coverage(), network=network, sweep=sweep).table
    assert table.allowed[1].tolist() == [False, True, False]
    assert table.values[1].tolist() == [0, 0, 0]
    assert all("2=int4/fp16" in json.loads(key) for key in sweep.cache)


def test_goes_on_where_it_was_stopped() -> None:
    class Stopping(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            if len(self) == 7:
                raise KeyboardInterrupt

    cache = Stopping()
    with pytest.raises(KeyboardInterrupt):
        _covered(Coverage(), sweep=Sweep(cache=cache))
    resumed = _covered(Coverage(), sweep=Sweep(cache=cache)).table
    assert len(cache) == 4 * 11 + 4
    assert (resumed.values == _covered(Coverage()).table.values).all()


def test_drawn_choices_are_distinct_allowed_and_repeat() -> None:
    mask = np.ones((6, 4), bool)
    mask[2] = [True, False, True, False]
    mask[4] = [False, True, False, False]
    one, held = Coverage(seed=3)._drawn(mask)
    other, _ = Coverage(seed=3)._drawn(mask)
    assert (one == other).all()
    assert len(one) == len({tuple(row) for row in one}) == 4 * (1 + 4 * 3 + 1) + 4
    assert held == len(one) // 4
    assert mask[np.arange(6), one].all()
    assert (one != Coverage(seed=4)._drawn(mask)[0]).any()


def test_small_spaces_are_drawn_whole() -> None:
    rows, held = Coverage(held=0.3)._drawn(np.ones((3, 2), bool))
    assert len({tuple(row) for row in rows}) == 8
    assert held == 2


def test_the_diagonal_sees_every_budget() -> None:
    mask = np.ones((30, 2), bool)
    spread = {
        shares: Coverage(draws=400, shares=shares)._drawn(mask)[0].mean(axis=1).std()
        for shares in ("diagonal", "even")
    }
    assert spread["even"] == pytest.approx(0.5 / 30**0.5, rel=0.1)
    assert spread["diagonal"] == pytest.approx(12**-0.5, rel=0.1)  # of a uniform share


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": -1}, "draws is -1; wanted a number of allocations, or 0"),
        ({"held": 1.0}, "held is 1.0; wanted a share between 0 and 1"),
        ({"link": "log"}, "link is 'log'; there are 'auto', 'additive', 'coverage': take one"),
        ({"shares": "odd"}, "shares is 'odd'; there are 'diagonal', 'even': take one"),
    ],
)
def test_settings_without_a_meaning_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Coverage(**settings)


def test_too_few_draws_are_an_error() -> None:
    with pytest.raises(
        ValueError, match="8 allocations, 2 of them held out, are too few to fit 11"
    ):
        _covered(Coverage(draws=8))
    with pytest.raises(ValueError, match="numbers; give draws=48, or 0"):
        _covered(Coverage(draws=8))


def test_too_few_allocations_are_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="there are no more; use 'kl', which measures each layer"):
        Coverage().estimate(Task(model, [x]), trace(model, x), OPTIONS, recipe=PLAIN, sweep=Sweep())


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    calls = iter(range(1000))
    with pytest.raises(ValueError, match="the loss is nan; wanted a finite number"):
        _covered(Coverage(), loss=lambda z, _: z.sum() * (math.nan if next(calls) > 6 else 1))
