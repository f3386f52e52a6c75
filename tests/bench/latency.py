"""Latency predicted from layers beside that of whole networks, for ten random allocations each.

Run as ``python -m tests.bench.latency [batch ...]``: backend ``torch-cpu``, one thread, CPU time.
Ten allocations of a network, each with its own shares of the options, are timed in turns, so that
what else the machine does meets all alike. Layers and networks are timed after each other nine
times over, and medians compared: a shared machine is now faster and now slower. ResNet-20 needs
``../shared`` (or ``MPSEARCH_SHARED``).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import numpy as np
from scipy.stats import spearmanr

import mpsearch as mp
from mpsearch import registry
from mpsearch.batches import joined, samples
from mpsearch.hwmodels.measured import Measured
from mpsearch.kernels.placing import beside
from mpsearch.kernels.running import in_turns, quantize
from mpsearch.tables import Floats

BACKEND, OPTIONS = "torch-cpu", mp.options("fp32/fp32", "bf16/bf16", "w8a8")
COUNT, ROUNDS, PASSES = 10, 10, 9


def resnet20() -> mp.Task:
    """On CIFAR-10."""
    import cifar10  # type: ignore[import-not-found]

    made: mp.Task = cifar10.task(calibrate=64, judge=250)
    return made


def language() -> mp.Task:
    """The demo's transformer."""
    made: mp.Task = registry.load("networks", "language")()
    return made


NETWORKS: Mapping[str, Callable[[], mp.Task]] = {"resnet20": resnet20, "language": language}


def choices(layers: int, seed: int = 0) -> list[list[int]]:
    """Ten allocations, each of its own shares, so that their latencies differ."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(len(OPTIONS)), COUNT)
    return [rng.choice(len(OPTIONS), layers, p=share).tolist() for share in shares]


def compare(task: mp.Task, batch: int) -> tuple[Floats, Floats]:
    """Seconds predicted and measured of each allocation, medians over the passes."""
    x = joined(task.batches, batch)
    network = mp.trace(task.model, x)
    made = choices(len(network.layers))
    models = []
    for choice in made:
        options = {
            module: OPTIONS[column]
            for layer, column in zip(network.layers, choice, strict=True)
            for module in layer.modules
        }
        models.append(quantize(task.model, options, task.batches, backend=BACKEND))
    predicted, measured = [], []
    for _ in range(PASSES):
        rest = beside(task.model, network, x, ROUNDS).seconds
        table = Measured(BACKEND, samples(x), ROUNDS, rest).costs(network, OPTIONS)["latency"]
        predicted.append([table.total(choice) for choice in made])
        measured.append([taken.seconds for taken in in_turns(models, x, ROUNDS)])
    return np.median(predicted, axis=0), np.median(measured, axis=0)


def main(batches: list[int]) -> None:
    """The table, for these batch sizes."""
    print(f"load {os.getloadavg()[0]:.1f}; milliseconds; errors of the prediction in percent")
    print("network   batch  predicted        measured         rank  error: median, range")
    for name, make in NETWORKS.items():
        task = make()
        for batch in batches:
            predicted, measured = compare(task, batch)
            ranks: Any = spearmanr(predicted, measured)
            off = 100 * (predicted / measured - 1)
            ranges = [
                f"{1e3 * each.min():6.2f}..{1e3 * each.max():<7.2f}"
                for each in (predicted, measured)
            ]
            print(
                f"{name:9s} {batch:5d}  {'  '.join(ranges)}  {ranks.statistic:+.2f} "
                f" {np.median(abs(off)):.0f}, {off.min():+.0f} to {off.max():+.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [1, 16])
