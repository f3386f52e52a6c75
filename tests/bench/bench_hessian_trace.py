"""CPU time of Hessian traces on ResNet-20 against PyHessian's, at equal standard error.

Run as ``python tests/bench/bench_hessian_trace.py`` or ``pytest -s`` with this file's name; needs
the models of ``../shared``. One thread, one process, medians over rounds in which both take turns.
PyHessian is run as it comes, one layer's weight at a time; the probes it needs for a standard error
follow from the spread of its own. The rows of ours that are left to chance are held to their own
standard error, layer by layer; the exact one to one percent, which flatters PyHessian.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from mpsearch.sensitivity.traces import Traces
from mpsearch.sweep import Sweep
from mpsearch.task import Task
from mpsearch.tracing import module_weight, trace
from tests.conftest import SHARED
from tests.sensitivity.networks import resnet20

IMAGES, ROUNDS, PROBES = 64, 3, 10
Floats = NDArray[np.float64]


@dataclass
class Ours:
    """One way of ours: seconds of each round, and (rounds, layers) traces."""

    run: Callable[[int], Floats]
    seconds: list[float] = field(default_factory=list)
    traces: list[Floats] = field(default_factory=list)
    errors: list[Floats] = field(default_factory=list)

    def turn(self, seed: int) -> None:
        start = time.process_time()
        rows = self.run(seed)
        self.seconds.append(time.process_time() - start)
        self.traces.append(rows.mean(axis=0))
        self.errors.append(rows.std(axis=0, ddof=1) / len(rows) ** 0.5)


@dataclass
class Theirs:
    """PyHessian on one layer: seconds before the first probe, seconds a probe, and the probes."""

    model: nn.Module
    name: str
    data: tuple[Tensor, Tensor]
    before: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)

    def turn(self) -> None:
        from pyhessian import hessian

        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        module_weight(self.model, self.name).requires_grad_()
        start = time.process_time()
        computed = hessian(self.model, nn.CrossEntropyLoss(), data=self.data, cuda=False)
        middle = time.process_time()
        self.probes += computed.trace(maxIter=PROBES, tol=0)
        self.before.append(middle - start)
        self.each.append((time.process_time() - middle) / PROBES)

    def seconds(self, error: float) -> float:
        """What a standard error takes; never less than one probe."""
        needed = max(1.0, (statistics.stdev(self.probes) / error) ** 2)
        return statistics.median(self.before) + needed * statistics.median(self.each)


def measure(shared: Path) -> dict[str, float]:
    """Print the comparison; the ratio of every way of ours."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = resnet20(shared, IMAGES)
    with torch.no_grad():
        target = model(x).softmax(-1)
    network = trace(model, x)
    own = Traces.of(Task(model, [x]), network)
    labelled = Task(model, [(x, target)], loss=lambda z, batch: F.cross_entropy(z, batch[1]))
    curved = Traces.of(labelled, network)
    ours = {
        "exact": Ours(lambda _: own.by_sample(None, 0, Sweep())),
        "3 passes a sample": Ours(lambda seed: own.by_sample(3, seed, Sweep())),
        "32 products": Ours(lambda seed: curved.by_product(32, seed, Sweep())),
    }
    theirs = [Theirs(model, layer.name, (x, target)) for layer in network.layers]
    for seed in range(ROUNDS):
        for way in ours.values():
            way.turn(seed)
        for layer in theirs:
            layer.turn()
    return _compared(ours, theirs)


def _compared(ours: dict[str, Ours], theirs: list[Theirs]) -> dict[str, float]:
    exact = ours["exact"].traces[0]
    _check(exact, theirs)
    print(f"ResNet-20, {IMAGES} images, 20 layers, 1 thread, medians of {ROUNDS} rounds")
    print(f"{'ours':>20} {'seconds':>8} {'stderr':>8} {'PyHessian, s':>13} {'ratio':>8}")
    ratios = {}
    for name, way in ours.items():
        errors = _errors(name, way, exact)
        seconds = statistics.median(way.seconds)
        needed = sum(layer.seconds(e) for layer, e in zip(theirs, errors, strict=True))
        ratios[name] = needed / seconds
        middle = float(np.median(errors / exact))
        print(f"{name:>20} {seconds:8.2f} {middle:8.2%} {needed:13.1f} {ratios[name]:8.1f}")
    return ratios


def _errors(name: str, way: Ours, exact: Floats) -> Floats:
    """(layers,) standard error of the traces of these images."""
    if name == "exact":
        return 0.01 * exact
    if "products" in name:
        return np.median(way.errors, axis=0)
    spread: Floats = np.sqrt(np.mean((np.array(way.traces) - exact) ** 2, axis=0))
    return spread


def _check(exact: Floats, theirs: list[Theirs]) -> None:
    """Both speak of the same traces."""
    for trace_, layer in zip(exact, theirs, strict=True):
        error = statistics.stdev(layer.probes) / len(layer.probes) ** 0.5
        if abs(statistics.fmean(layer.probes) - trace_) > 5 * error:
            raise ValueError(f"PyHessian's trace of {layer.name!r} is another than {trace_}")


@pytest.mark.bench
@pytest.mark.shared
def test_is_five_times_as_fast_as_pyhessian(shared: Path) -> None:
    assert min(measure(shared).values()) > 5


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    measure(SHARED)
