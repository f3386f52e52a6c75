"""A network's latency as the sum of its layers', beside the measured one: one thread, CPU time.

Run as ``python tests/bench/bench_additivity.py [batch ...]``. ResNet-20 needs ``../shared`` (or
``MPSEARCH_SHARED``). ``at once`` is the same sum from calls that follow themselves, without the
cache state of a network; ``beside`` what is not a layer's.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

import numpy as np

import mpsearch as mp
from mpsearch import registry
from mpsearch.batches import joined, samples
from mpsearch.hwmodels.measured import Measured
from mpsearch.kernels import timing
from mpsearch.kernels.placing import beside, placed, whole_time
from mpsearch.kernels.plain import running
from mpsearch.kernels.shapes import parts, quantized
from mpsearch.quant import quantize

ROUNDS, TIMES = 20, 3
OPTIONS = mp.options("fp32/fp32", "bf16/bf16", "w8a8")


def resnet20() -> mp.Task:
    """On CIFAR-10."""
    import cifar10  # type: ignore[import-not-found]

    made: mp.Task = cifar10.task(calibrate=64, judge=250)
    return made


def language() -> mp.Task:
    """The demo's transformer."""
    made: mp.Task = registry.load("networks", "language")()
    return made


def hot(network: mp.Network, option: mp.Option, batch: int) -> float:
    """Seconds of all layers, each the median of calls that follow one another."""
    backend, total = registry.make("backends", "onednn"), 0.0
    with timing.pinned():
        for part, layer in {p: each for each in network.layers for p in parts(each)}.items():
            x = part.inputs(batch)
            kernel = running(backend, layer, option, quantized(part.module(), option, x))
            call = timing.Call.of(kernel, x)
            taken = timing.Taken.of([timing.once(call) for _ in range(ROUNDS)])
            total += taken.seconds * sum(parts(each)[part] for each in network.layers)
    return total


def once(task: mp.Task, network: mp.Network, x: Any) -> list[tuple[float, ...]]:
    """For each option: seconds measured, predicted, beside the layers, at once, and the spread."""
    rest = beside(task.model, network, x, ROUNDS).seconds
    batch, backend = samples(x), registry.make("backends", "onednn")
    model = Measured(batch=batch, rounds=ROUNDS, beside=rest)
    table = model.costs(network, OPTIONS)["latency"]
    found: list[tuple[float, ...]] = []
    for column, option in enumerate(OPTIONS):
        modules = {module: option for layer in network.layers for module in layer.modules}
        real = placed(
            quantize(task.model, modules, task.batches),
            network,
            {layer.name: option for layer in network.layers},
            backend,
        )
        taken = whole_time(real, x, ROUNDS)
        predicted = table.total([column] * len(network.layers))
        at_once = hot(network, option, batch) + rest
        found.append((taken.seconds, predicted, rest, at_once, taken.spread))
    return found


def compare(name: str, task: mp.Task, batch: int) -> None:
    """Print a line for each option: medians of several times."""
    x = joined(task.batches, batch)
    network = mp.trace(task.model, x)
    every = np.array([once(task, network, x) for _ in range(TIMES)])  # (times, options, figures)
    for option, runs in zip(OPTIONS, every.transpose(1, 0, 2), strict=True):
        measured, predicted, rest, _, spread = np.median(runs, axis=0).tolist()
        errors = 100 * (runs[:, 1] / runs[:, 0] - 1)
        at_once = 100 * float(np.median(runs[:, 3] / runs[:, 0]) - 1)
        print(
            f"{name:9s} {batch:5d}  {option!s:10s} {1e3 * measured:8.2f} {1e3 * predicted:9.2f}"
            f" {np.median(errors):+7.1f} [{errors.min():+.1f}, {errors.max():+.1f}]"
            f" {1e3 * rest:8.2f} {at_once:+8.1f} {100 * spread:7.0f}",
            flush=True,
        )


def main(batches: list[int]) -> None:
    """The table, for these batch sizes."""
    print(f"load {os.getloadavg()[0]:.1f}")
    print(f"milliseconds, and errors in percent: median and range of {TIMES} times")
    print("network   batch  option     measured predicted   error          beside  at once  spread")
    networks = {"resnet20": resnet20, "language": language}
    for name, make in networks.items():
        task = make()
        for batch in batches:
            compare(name, task, batch)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [1, 16])
