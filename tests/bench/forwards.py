"""How much of the naive loop's work ``kl`` does: one whole forward per layer, option and batch.

Run as ``python -m tests.bench.forwards [depth ...]``; needs ``../shared`` (or ``MPSEARCH_SHARED``).
Every convolution, linear layer and batch norm is counted wherever it runs: calibration, moments,
recording and checks are in it. A call counts for its samples, a multiplication for itself. CPU time
is of this process on one thread, beside that of as many float forwards on the same batch.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity import KL
from mpsearch.sweep import Sweep

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
OPTIONS = mp.options("w2a8", "w3a8", "w4a8", "w8a8")
SAMPLES = 64
COUNTED: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


@dataclass
class Work:
    """Calls of innermost modules, times samples; and multiplications."""

    calls: int = 0
    macs: int = 0


@contextmanager
def counted() -> Iterator[Work]:
    """What runs meanwhile, in any model."""
    work = Work()

    def counting(forward: Any) -> Any:
        def run(module: nn.Module, x: Tensor) -> Any:
            output = forward(module, x)
            weight = module.get_parameter("weight")
            work.calls += len(x)
            work.macs += output.numel() * (weight[0].numel() if weight.dim() > 1 else 0)
            return output

        return run

    before = {kind: kind.forward for kind in COUNTED}
    try:
        for kind, forward in before.items():
            kind.forward = counting(forward)
        yield work
    finally:
        for kind, forward in before.items():
            kind.forward = forward


def shares(model: nn.Module, x: Tensor, recipe: Recipe) -> tuple[float, float, float]:
    """Work and CPU time of the estimate over those of naive forwards: calls, MACs, seconds."""
    network, task = mp.trace(model, x), mp.Task(model, [x])
    with torch.no_grad(), counted() as one:
        model(x)
    units = len(network.layers) * len(OPTIONS)
    start = time.process_time()
    with counted() as work:
        KL().estimate(task, network, OPTIONS, recipe=recipe, sweep=Sweep())
    seconds = time.process_time() - start
    naive = units * min(_forward(model, x) for _ in range(5))
    return work.calls / one.calls / units, work.macs / one.macs / units, seconds / naive


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor) -> float:
    start = time.process_time()
    model(x)
    return time.process_time() - start


def main(depths: list[int]) -> None:
    """A line for each network and recipe."""
    import cifar10  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    print(f"{SAMPLES} samples, {len(OPTIONS)} options; shares of the naive loop")
    print("network    corrections  calls   MACs   CPU time")
    for depth in depths:
        model, x = cifar10.network(depth), cifar10.images("calib", SAMPLES)[0]
        for name, recipe in {"moments": Recipe(), "none": Recipe(corrections=())}.items():
            calls, macs, seconds = shares(model, x, recipe)
            print(
                f"resnet{depth:<4d} {name:>11s}  {calls:5.3f}  {macs:5.3f}  {seconds:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main([int(depth) for depth in sys.argv[1:]] or [20, 56])
