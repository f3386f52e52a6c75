"""The rising map against its closed form, what is measured against ``kl``, and the laws."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpsearch.formats import Option, options
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.calibrated import Calibrated, rising
from mpsearch.sensitivity.kl import KL
from mpsearch.sensitivity.weight_error import WeightError
from mpsearch.sweep import Sweep
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.sensitivity.midway import left_as_it_was

PLAIN = Recipe(corrections=())
OPTIONS = options("w2a8", "w3a8", "w4a8", "w8a8", "fp32/fp32")


class TestLaws(EstimatorSuite):
    estimator: Estimator = Calibrated("weight-error", measurements=6)


class TestLawsOfAMeasuredScore(EstimatorSuite):
    estimator: Estimator = Calibrated(KL(context="random", draws=2))


@dataclass(frozen=True)
class Scored:
    """An estimator that gives another's scores, changed."""

    change: Callable[[Floats], Floats]
    by: Estimator = WeightError()  # noqa: RUF009  (frozen)

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        table = self.by.estimate(task, network, options, recipe=recipe, sweep=Sweep())
        values = self.change(table.values)
        return Table(table.layers, table.options, values, "rank score", allowed=table.allowed)


def _same(values: Floats) -> Floats:
    return values


def _small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    linear = [nn.Linear(8, 8) for _ in range(5)]
    model = nn.Sequential(*[m for layer in linear for m in (layer, nn.ReLU())], nn.Linear(8, 4))
    return model.eval(), torch.randn(40, 8)


def _estimate(
    estimator: Estimator,
    *,
    given: tuple[Option, ...] = OPTIONS,
    sweep: Sweep | None = None,
    loss: Any = None,
    pin: dict[str, str] | None = None,
) -> Table:
    model, x = _small()
    task, network = Task(model, [x[:30], x[30:]], loss=loss), trace(model, x, pin=pin)
    return estimator.estimate(task, network, given, recipe=PLAIN, sweep=sweep or Sweep())


def _min_max(y: Sequence[float]) -> list[float]:
    """The rising map of least squares, by its formula."""
    return [
        max(
            min(float(np.mean(y[low : high + 1])) for high in range(i, len(y)))
            for low in range(i + 1)
        )
        for i in range(len(y))
    ]


numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


@given(numbers)
def test_the_map_is_the_rising_one_of_least_squares(y: list[float]) -> None:
    at = np.arange(len(y), dtype=float)
    np.testing.assert_allclose(rising(at, np.array(y), at), _min_max(y), atol=1e-9)


@given(numbers, st.lists(st.floats(-5, 20), min_size=2, max_size=9))
def test_the_map_rises_and_is_flat_outside(y: list[float], wanted: list[float]) -> None:
    at = np.arange(len(y), dtype=float)
    found = rising(at, np.array(y), np.array([*sorted(wanted), -100, 100]))
    assert (np.diff(found[:-2]) >= 0).all()
    ends = rising(at, np.array(y), at[[0, -1]])
    assert found[-2:].tolist() == ends.tolist()


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12).map(sorted))
def test_what_already_rises_is_met_exactly_and_straight_between(y: list[float]) -> None:
    at = np.arange(len(y), dtype=float)
    np.testing.assert_allclose(rising(at, np.array(y), at), y, rtol=1e-14)
    between = rising(at, np.array(y), at[:-1] + 0.25)
    np.testing.assert_allclose(between, 0.75 * np.array(y[:-1]) + 0.25 * np.array(y[1:]), atol=1e-9)


def test_measurements_at_one_rank_count_each() -> None:
    at, y = np.array([1.0, 1.0, 1.0, 2.0]), np.array([3.0, 6.0, 6.0, 1.0])
    assert rising(at, y, np.array([1.0, 2.0])).tolist() == [4.0, 4.0]


def test_measured_places_of_a_perfect_score_have_the_loss_itself() -> None:
    losses, sweep = _estimate(KL()), Sweep()
    table = _estimate(Calibrated(Scored(_same, KL()), measurements=9), sweep=sweep)
    measured = {tuple(json.loads(key)[2:]) for key in sweep.cache}
    assert len(measured) == len(sweep.cache) == 9
    for row, layer in enumerate(table.layers):
        for column, option in enumerate(table.options):
            if (layer.name, str(option)) in measured:
                found = table.values[row, column]
                assert found == pytest.approx(losses.values[row, column], rel=1e-12)
    assert table.unit == "KL (nats)"
    np.testing.assert_allclose(table.values, losses.values, rtol=1.5)  # in order, from 9 of 24


def test_losses_rise_with_the_scores() -> None:
    scores, table = _estimate(WeightError()).values, _estimate(Calibrated("weight-error")).values
    order = scores[:, :-1].ravel().argsort()
    assert (np.diff(table[:, :-1].ravel()[order]) >= 0).all()
    assert len(np.unique(table[:, :-1])) > 6


@pytest.mark.parametrize("change", [np.log1p, np.cbrt, lambda v: 7 * v - 3, np.exp])
def test_at_measured_places_only_the_order_of_scores_counts(
    change: Callable[[Floats], Floats],
) -> None:
    one, other = Sweep(), Sweep()
    plain = _estimate(Calibrated(Scored(_same), measurements=8), sweep=one)
    changed = _estimate(Calibrated(Scored(change), measurements=8), sweep=other)
    assert one.cache == other.cache
    for key in one.cache:
        _, _, layer, option = json.loads(key)
        row = [each.name for each in plain.layers].index(layer)
        column = [str(each) for each in plain.options].index(option)
        assert changed.values[row, column] == pytest.approx(plain.values[row, column], rel=1e-9)
    spread = np.abs(np.log(changed.values[:, :-1] / plain.values[:, :-1]))
    assert spread.max() < 3  # between them, no further than from one measured place to the next


def test_powers_of_a_score_count_the_same() -> None:
    plain = _estimate(Calibrated(Scored(_same), measurements=8))
    changed = _estimate(Calibrated(Scored(lambda v: 5 * v**3), measurements=8))
    np.testing.assert_allclose(changed.values, plain.values, rtol=1e-9)
    assert plain.stderr is not None
    assert changed.stderr is not None
    np.testing.assert_allclose(changed.stderr, plain.stderr, rtol=1e-9)


def test_a_score_that_says_nothing_gives_the_mean() -> None:
    losses = _estimate(KL())
    table = _estimate(Calibrated(Scored(np.zeros_like), measurements=24))
    mean = np.exp(np.log(losses.values[:, :-1]).mean())
    np.testing.assert_allclose(table.values[:, :-1], mean)
    ((note, _),) = table.notes.items()
    assert note == "24 were measured; scores put 50% of their pairs in the wrong order"
    assert table.stderr is None  # no place is between the ends


def test_a_score_the_wrong_way_round_is_said_to_be() -> None:
    table = _estimate(Calibrated(Scored(np.negative, KL()), measurements=24))
    ((note, where),) = table.notes.items()
    assert note == "24 were measured; scores put 100% of their pairs in the wrong order"
    assert where[:, :-1].all()
    assert not where[:, -1].any()


def test_standard_errors_are_of_maps_fitted_without_a_place() -> None:
    losses = _estimate(KL(), given=OPTIONS[1:3]).values
    table = _estimate(Calibrated(Scored(_same), measurements=99), given=OPTIONS[1:3])
    scores = _estimate(WeightError(), given=OPTIONS[1:3]).values.ravel()
    order = scores.argsort()
    x, y = np.log(scores[order]), np.log(losses.ravel()[order])
    missed = []
    for i in range(1, len(y) - 1):
        low, high = _min_max([*y[:i], *y[i + 1 :]])[i - 1 : i + 1]
        share = (x[i] - x[i - 1]) / (x[i + 1] - x[i - 1])
        missed.append(y[i] - (low + share * (high - low)))
    wanted = np.sqrt(np.mean(np.square(missed))) * table.values
    assert table.stderr is not None
    np.testing.assert_allclose(table.stderr, wanted)


def test_losses_that_are_not_all_positive_are_fitted_as_they_are() -> None:
    losses = _estimate(KL(), loss=lambda z, _: -z.square().mean())
    task_loss = Calibrated(Scored(_same), measurements=24)
    table = _estimate(task_loss, loss=lambda z, _: -z.square().mean())
    assert losses.values.min() < 0 < losses.values.max()
    order = _estimate(WeightError()).values[:, :-1].ravel().argsort(kind="stable")
    wanted = _min_max(losses.values[:, :-1].ravel()[order].tolist())
    np.testing.assert_allclose(table.values[:, :-1].ravel()[order], wanted)
    assert table.unit == "loss"
    assert table.stderr is not None
    assert len(np.unique(table.stderr[:, :-1])) == 1


def test_what_changes_nothing_loses_nothing() -> None:
    table = _estimate(Calibrated(Scored(lambda v: v + 5)))
    assert (table.values[:, -1] == 0).all()
    assert table.stderr is not None
    assert (table.stderr[:, -1] == 0).all()
    assert (table.values[:, :-1] > 0).all()
    kept = _estimate(Calibrated("weight-error"), given=options("fp32/fp32"))
    assert not kept.values.any()


def test_places_cover_the_order() -> None:
    scores = np.random.default_rng(0).permutation(50).astype(float)
    few = Calibrated("kl", measurements=10)._few(scores)
    ranks = scores[few]
    assert ranks[0] == 0
    assert ranks[-1] == 49
    assert (np.diff(ranks) > 0).all()
    assert [int((rank - 1) // 6) for rank in ranks[1:-1]] == list(range(8))
    again = Calibrated("kl", measurements=10)._few(scores)
    assert (few == again).all()
    assert (few != Calibrated("kl", measurements=10, seed=1)._few(scores)).any()
    assert sorted(Calibrated("kl", measurements=60)._few(scores)) == list(range(50))


def test_pinned_layers_are_measured_at_their_option_only() -> None:
    sweep = Sweep()
    table = _estimate(Calibrated(Scored(_same)), pin={"2": "w4a8"}, sweep=sweep)
    assert table.allowed[1].tolist() == [False, False, True, False, False]
    assert table.values[1].tolist() == [0, 0, table.values[1, 2], 0, 0]
    assert {json.loads(key)[3] for key in sweep.cache if json.loads(key)[2] == "2"} <= {"int4/int8"}


def test_names_stand_for_estimators_with_its_seed() -> None:
    named = _estimate(Calibrated("kl"))
    assert named.values.tobytes() == _estimate(Calibrated(KL())).values.tobytes()
    seeded = Calibrated("noise", seed=3, measurements=6)
    again = _estimate(seeded)
    assert again.values.tobytes() == _estimate(seeded).values.tobytes()


def test_in_random_networks_it_is_the_gain_in_those() -> None:
    context: Any = {"context": "random", "draws": 2, "seed": 3}
    losses = _estimate(KL(**context))
    made = Calibrated(Scored(_same, KL(**context)), measurements=24, **context)
    rising_alone = _estimate(Calibrated(Scored(_same, KL(**context)), measurements=24, seed=3))
    np.testing.assert_allclose(_estimate(made).values, losses.values, rtol=1e-12)
    assert not np.allclose(rising_alone.values, losses.values, rtol=1e-3)


def test_a_context_round_an_allocation_is_an_error() -> None:
    with pytest.raises(ValueError, match="context is 'w8a8'; wanted 'alone' or 'random': round an"):
        Calibrated("kl", context="w8a8")  # type: ignore[arg-type]


def test_goes_on_where_it_was_stopped() -> None:
    class Stopping(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            if len(self) == 7:
                raise KeyboardInterrupt

    cache, asked = Stopping(), Calibrated(Scored(_same), measurements=12)
    with pytest.raises(KeyboardInterrupt):
        _estimate(asked, sweep=Sweep(cache=cache))
    resumed = _estimate(asked, sweep=Sweep(cache=cache))
    assert len(cache) == 12
    assert resumed.values.tobytes() == _estimate(asked).values.tobytes()


def test_the_model_is_left_as_it_was_when_it_fails_midway() -> None:
    def estimate(task: Task, network: Network) -> Table:
        asked = Calibrated("weight-error", measurements=3)
        return asked.estimate(task, network, OPTIONS, recipe=Recipe(), sweep=Sweep())

    left_as_it_was(estimate, 0, 2, 6, 9)


def test_too_few_measurements_are_an_error() -> None:
    with pytest.raises(ValueError, match="measurements is 2; wanted 3 or more: the ends of"):
        Calibrated("kl", measurements=2)


def test_a_name_that_is_none_is_an_error() -> None:
    with pytest.raises(LookupError, match="nothing in sensitivity is named 'tailor'; there are"):
        _estimate(Calibrated("tailor"))


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    calls = iter(range(1000))
    with pytest.raises(ValueError, match="the loss is nan; wanted a finite number"):
        _estimate(
            Calibrated("weight-error"),
            loss=lambda z, _: z.sum() * (math.nan if next(calls) > 6 else 1),
        )
