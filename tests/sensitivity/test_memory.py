"""Calibration sets in parts: the same numbers, within a limit on memory, at half the work."""

import gc
import json
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Format, options
from mpsearch.protocols import Estimator
from mpsearch.quant.activations import Grid, Seen
from mpsearch.quant.recipe import ActivationRanges, Recipe
from mpsearch.sensitivity import (
    KL,
    LRP,
    SQNR,
    SSIM,
    Coverage,
    Fisher,
    HessianEig,
    HessianTrace,
    Interactions,
    Loss,
    MetricDecoupled,
    Noise,
)
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.tracing import trace
from tests.bench.memory import peaks
from tests.sensitivity.midway import left_as_it_was

PLAIN, TWENTY = Recipe(corrections=()), Recipe(samples=20)
OPTIONS = options("w2a8", "w4a4")
SMALL = "0.4MB"  # all 20 samples that are corrected on can be run in it, and few are kept


def _network() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 10),
    )
    model(torch.randn(64, 3, 8, 8))
    return model.eval(), torch.randn(100, 3, 8, 8), torch.arange(100) % 10


def _table(task: Task, recipe: Recipe, sweep: Sweep, estimator: Estimator | None = None) -> Table:
    network = trace(task.model, task.batches[0])
    made = KL() if estimator is None else estimator
    return made.estimate(task, network, OPTIONS, recipe=recipe, sweep=sweep)


def _parts(sweep: Sweep) -> int:
    """Of how many parts rows are in the cache."""
    keys = [json.loads(key) for key in sweep.cache]
    return len({tuple(key[3:]) for key in keys if key[1].endswith(" rows")})


def _same(one: Table, other: Table) -> None:
    np.testing.assert_allclose(one.values, other.values, rtol=1e-4)
    assert one.stderr is not None
    assert other.stderr is not None
    np.testing.assert_allclose(one.stderr, other.stderr, rtol=1e-4)
    assert one.unit == other.unit
    assert one.fixed == pytest.approx(other.fixed, rel=1e-4)


def _distance(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch[1])


@pytest.mark.parametrize("recipe", [PLAIN, TWENTY])
@pytest.mark.parametrize("context", ["alone", "random", "w8a8"])
def test_a_small_memory_gives_the_numbers_of_a_large_one(context: str, recipe: Recipe) -> None:
    model, x, _ = _network()
    task, small, large = Task(model, x.split(8)), Sweep(memory=SMALL), Sweep()
    given = KL(context=context, draws=2)
    _same(_table(task, recipe, small, given), _table(task, recipe, large, given))
    assert _parts(small) > 5
    assert _parts(large) == (recipe is TWENTY)  # what is beyond the first 20


@pytest.mark.parametrize("recipe", [PLAIN, TWENTY, Recipe(samples=17)])
@pytest.mark.parametrize("own", [True, False])
def test_so_do_losses_of_whole_batches(recipe: Recipe, own: bool) -> None:
    model, x, y = _network()
    batches = list(zip(x.split(10), y.split(10), strict=True))
    task = Task(model, batches, loss=_distance if own else None)
    small = Sweep(memory=SMALL)
    found = _table(task, recipe, small, Loss(floor=None))
    _same(found, _table(task, recipe, Sweep(memory="1000GB"), Loss(floor=None)))
    assert _parts(small) > 3
    wanted = [_loss(model, batches, recipe, option) for option in ("w2a8", "w4a4")]
    np.testing.assert_allclose(found.values[1], wanted, rtol=1e-3)


def _loss(model: nn.Module, batches: list[Any], recipe: Recipe, option: str) -> float:
    """What layer ``3`` loses in a network that is quantized for good."""
    from mpsearch.quant.model import quantize

    changed = quantize(model, {"3": options(option)[0]}, batches, recipe)
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    with torch.no_grad():
        return float(F.cross_entropy(changed(x), y) - F.cross_entropy(model(x), y))


def test_corrections_look_at_the_same_samples_whatever_the_batches() -> None:
    model, x, _ = _network()
    recipe = Recipe(samples=20)
    tables = [
        _table(Task(model, x.split(size)), recipe, Sweep(memory=memory))
        for size, memory in [(100, "4GB"), (7, "4GB"), (7, SMALL), (20, SMALL)]
    ]
    for table in tables[1:]:
        _same(table, tables[0])
    other = _table(Task(model, x.split(7)), Recipe(samples=21), Sweep())
    assert not np.allclose(other.values, tables[0].values, rtol=1e-3)


OTHERS = "entropy:luq", "lim", "salience", "sqnr", "zero-cost:ompq"
GRADIENTS = "fisher", "hessian-trace", "lrp", "noise:uncorrected"


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse"])
def test_grids_are_the_same_however_samples_are_split(ranges: ActivationRanges) -> None:
    x = torch.randn(101, 999, generator=torch.Generator().manual_seed(0))
    recipe, grids = Recipe(activation_ranges=ranges), set[Grid | None]()
    for size in (101, 50, 7, 1):
        seen = Seen()
        for part in x.split(size):
            seen.add(part, len(x) / len(part))
        assert sum(map(len, seen.body)) == len(x.flatten()[2::4])
        grids.add(seen.grid(Format.parse("int4a"), recipe))
    assert len(grids) == 1


WHOLE: dict[str, Estimator] = {
    "sqnr": SQNR(),
    "sqnr in context": SQNR(context="random", draws=2),
    "ssim": MetricDecoupled({"all": "."}, {"all": SSIM(window=3)}),
    "coverage": Coverage(draws=12, link="additive"),
}


@pytest.mark.parametrize("recipe", [PLAIN, TWENTY])
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_of_the_whole_set_is_put_together_of_parts(name: str, recipe: Recipe) -> None:
    model, x, _ = _network()
    estimator = WHOLE[name]
    task = Task(model[:5] if name == "ssim" else model, x.split(8))
    small = Sweep(memory=SMALL)
    _same(_table(task, recipe, small, estimator), _table(task, recipe, Sweep(), estimator))
    assert _parts(small) > 3


BY_GRADIENTS: dict[str, Estimator] = {
    "fisher": Fisher(),
    "fisher of outputs": Fisher(at="outputs"),
    "exact traces": HessianTrace(),
    "sampled traces": HessianTrace(probes=2),
    "eigenvalues": HessianEig(),
}


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_gradients_of_parts_are_those_of_the_whole(name: str) -> None:
    model, x, _ = _network()
    task, cache = Task(model, x[:32].split(16)), dict[str, Any]()
    large, small = Sweep(cache=cache), Sweep(cache=cache, memory=SMALL)
    wanted = _table(task, TWENTY, large, BY_GRADIENTS[name])
    before = set(cache)
    _same(_table(task, TWENTY, small, BY_GRADIENTS[name]), wanted)
    assert len(set(cache) - before) > len(task.batches)  # none of another size is taken for one


@pytest.mark.parametrize("estimator", [Fisher(), HessianTrace(), HessianEig(), LRP()])
def test_no_cycle_of_references_keeps_tensors_alive(estimator: Estimator) -> None:
    model, x, _ = _network()
    task = Task(model, x[:16].split(8))
    _table(task, PLAIN, Sweep(), estimator)  # what is set up once
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        _table(task, PLAIN, Sweep(), estimator)
        gc.collect()
        kept = [one.shape for one in gc.garbage if isinstance(one, Tensor)]
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    assert not kept


def test_noise_is_put_on_parts() -> None:
    model, x, _ = _network()
    task, cache = Task(model, x.split(8)), dict[str, Any]()
    weights = options("w2a16", "w4a16")  # noise on inputs is drawn for each part
    network, estimator = trace(model, x), Noise(draws=1)

    def table(memory: float | str) -> Table:
        sweep = Sweep(cache=cache, memory=memory)
        return estimator.estimate(task, network, weights, recipe=PLAIN, sweep=sweep)

    wanted = table("4GB")
    before = len(cache)
    _same(table(SMALL), wanted)
    assert len(cache) > before + 3 * len(network.layers)


@pytest.mark.parametrize("context", ["alone", "random", "w8a8"])
def test_pairs_are_put_together_of_parts(context: str) -> None:
    model, x, _ = _network()
    task, estimator = Task(model, x.split(8)), Interactions(context=context, draws=2)
    network = trace(model, x)
    small = Sweep(memory=SMALL)
    found, wanted = (
        [pair.loss for pair in estimator.pairs(task, network, OPTIONS, recipe=TWENTY, sweep=sweep)]
        for sweep in (small, Sweep())
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    titles = {json.loads(key)[1] for key in small.cache}
    assert titles == {"kl", "kl rows", "pairs", "interactions rows"}


def test_goes_on_in_the_part_where_it_was_stopped() -> None:
    model, x, _ = _network()
    task = Task(model, x.split(8))

    class Stopping(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            if len(self) == 11:
                raise KeyboardInterrupt

    cache = Stopping()
    with pytest.raises(KeyboardInterrupt):
        _table(task, TWENTY, Sweep(cache=cache, memory=SMALL))
    before = dict(cache)
    resumed = _table(task, TWENTY, Sweep(cache=cache, memory=SMALL))
    assert all(cache[key] == value for key, value in before.items())
    assert (resumed.values == _table(task, TWENTY, Sweep(memory=SMALL)).values).all()


@pytest.mark.parametrize("recipe", [PLAIN, Recipe(samples=3)])
def test_the_model_is_as_it_was_when_a_part_fails(recipe: Recipe) -> None:
    def estimate(task: Task, network: Any) -> Table:
        sweep = Sweep(memory=15_000)
        return KL().estimate(task, network, OPTIONS, recipe=recipe, sweep=sweep)

    left_as_it_was(estimate, 0, 3, 6, 9, 14)


def test_a_loss_that_is_no_number_is_an_error_in_any_part() -> None:
    model, x, y = _network()
    batches = list(zip(x.split(10), y.split(10), strict=True))
    broken = Task(model, batches, loss=lambda z, b: z.sum() * (torch.nan if b[1][0] else 1))
    with pytest.raises(ValueError, match="the loss of the float model is nan; wanted a finite"):
        _table(Task(model, [(a, b + 1) for a, b in batches], loss=broken.loss), PLAIN, _tight())


def _tight() -> Sweep:
    return Sweep(memory=SMALL)


@pytest.mark.parametrize("memory", ["lots", "25%", "4.0bit", "uniform:w4a8", "4s", "0", "-1GB", 0])
def test_says_how_a_memory_is_written(memory: Any) -> None:
    with pytest.raises(ValueError, match=r"memory is .*; wanted a positive number of bytes, such"):
        Sweep(memory=memory)


def test_says_what_memory_is_too_small() -> None:
    model, x, _ = _network()
    with pytest.raises(
        ValueError, match=r"a memory of 0.1MB is too small: to run 20 samples at on"
    ):
        _table(Task(model, x.split(8)), TWENTY, Sweep(memory="50kB"))


class _Counted(nn.Linear):
    calls: ClassVar[int] = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        type(self).calls += len(input)
        return super().forward(input)


@pytest.mark.parametrize("recipe", [Recipe(), PLAIN, Recipe(samples=32)])
def test_half_of_the_naive_loop_s_work_is_done(recipe: Recipe) -> None:
    torch.manual_seed(0)
    layers, batches = 40, 4
    model = nn.Sequential(*(_Counted(4, 4) for _ in range(layers)))
    task = Task(model, list(torch.randn(16 * batches, 4).split(16)))
    _Counted.calls = 0
    _table(task, recipe, Sweep())
    naive = layers * layers * len(OPTIONS) * 16 * batches
    assert _Counted.calls <= 0.6 * naive


TIGHT = 8_000_000  # bytes; 256 samples take 29 MB, and as much again to run


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_resident_memory_stays_within_the_limit_whatever_the_number_of_samples() -> None:
    found = peaks(["kl"], (64, 128, 256), TIGHT)["kl"]
    assert max(found) <= 1.25 * TIGHT  # a part for what is no tensor
    assert max(found) - found[0] < TIGHT / 4
    assert peaks(["kl"], (256,), 1e12)["kl"][0] > 3 * TIGHT  # without a limit


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_others_keep_nothing_of_all_samples_either() -> None:
    for name, (few, many) in peaks(OTHERS, (32, 128), TIGHT).items():
        assert many - few < TIGHT / 4, name  # what one layer reads in 96 samples is 1.6 MB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_gradients_stay_within_the_limit_too() -> None:
    for name, (few, many) in peaks(GRADIENTS, (32, 128), TIGHT).items():
        assert many <= 1.25 * TIGHT, name
        assert many - few < TIGHT / 4, name  # cycles of references that keep tensors count
