"""Peak resident memory of every estimator within a limit, of more and more samples.

Run as ``python -m tests.bench.memory [NAME ...]``. Each runs in a process of its own; what it takes
is what the process grows by from when model and batches are there. A run on two batches comes
first, so that what is imported or set up once is not in it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT = 16_000_000
SAMPLES = 128, 512  # all at once the latter take 80 MB
SIZE = 32  # pixels a side, and root of tokens
OPTIONS = "w4a8", "w8a8"
SPECS = {"calibrated": "calibrated:taylor"}  # one that needs a setting
MORE = (
    "entropy:luq",
    "entropy:q-vlm",
    "granular:group",
    "lim:samples",
    "metric-decoupled:ssim",
    "metric-decoupled:sqnr",
    "fisher:outputs",
    "noise:uncorrected",
    "salience:spqr",
    "taylor:second-order",
    "salience:gptq",
    "salience:gwq",
    "zero-cost:ompq",
)
PINNED = {  # freed memory goes back to the system at once, on one thread
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}


def peaks(
    names: Sequence[str], samples: Sequence[int], memory: float = LIMIT
) -> dict[str, list[int]]:
    """Bytes that each estimator takes on so many samples, each number by itself."""
    asked = json.dumps([names, samples, memory])
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.memory", "--here", asked],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env=os.environ | PINNED,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found


def here(name: str, samples: Sequence[int], memory: float) -> list[int]:
    """The same of one, in this process."""
    import gc

    import mpsearch as mp
    from mpsearch.quant.recipe import Recipe
    from mpsearch.sweep import Sweep

    found, recipe = [], Recipe(samples=32)
    if name.endswith(":uncorrected"):
        name = name.removesuffix(":uncorrected")
        recipe = Recipe(corrections=(), samples=max(samples))
    options = mp.options(*OPTIONS, *["w32a32"] * (name == "mc-moe"))  # what a router is left at
    for count in (32, *samples):
        if name == "mc-moe":
            task, network = _mixture(count)
        else:
            task, network = _images(count, head="ssim" not in name)
        sweep = Sweep(memory=memory)
        gc.collect()
        with suppress(OSError), Path("/proc/self/clear_refs").open("w") as file:
            file.write("5")  # the peak is counted from here
        before = _status("VmRSS")
        made = _estimator(name)
        mp.estimate(task, options, made, network=network, recipe=recipe, sweep=sweep)
        found.append(_status("VmHWM") - before)
    return found[1:]


def _estimator(name: str) -> Any:
    from mpsearch.sensitivity import MetricDecoupled

    kind, _, metric = name.partition(":")
    if kind == "metric-decoupled":
        return MetricDecoupled({"all": "."}, {"all": metric or "mse"})
    return SPECS.get(name, name)


def _status(field: str) -> int:
    """Bytes; of this program alone, where what ``getrusage`` says begins with the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def _images(count: int, *, head: bool) -> Any:
    import torch
    from torch import nn

    import mpsearch as mp

    torch.manual_seed(0)
    layers: list[nn.Module] = [
        layer for _ in range(3) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    ]
    if head:
        layers += [nn.Flatten(), nn.Linear(4 * SIZE * SIZE, 10)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(count, 4, SIZE, SIZE)
    batches = list(zip(x.split(16), (torch.arange(count) % 10).split(16), strict=True))
    return mp.Task(model, batches), mp.trace(model, batches[0])


def _mixture(count: int) -> Any:
    import torch

    import mpsearch as mp
    from tests.sensitivity.test_experts import PINS, Mixture

    x = torch.randn(count, SIZE * SIZE, 6)
    model = Mixture().eval()
    return mp.Task(model, x.split(16)), mp.trace(model, x[:1], pin=PINS)


def main(names: Sequence[str]) -> None:
    """A line for each estimator."""
    from mpsearch import registry

    print(f"MB beyond model and batches, limit {LIMIT / 1e6:g}; samples {SAMPLES}")
    for name in names or sorted({*registry.names("sensitivity"), *MORE}):
        try:
            taken = peaks([name], SAMPLES)[name]
        except RuntimeError as error:
            print(f"{name:24} DID NOT RUN: {str(error).splitlines()[-1]}", flush=True)
            continue
        shown = "".join(f"{each / 1e6:8.1f}" for each in taken)
        print(f"{name:24}{shown}{'' if max(taken) <= 1.25 * LIMIT else '  above'}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        given, *rest = json.loads(sys.argv[2])
        print(json.dumps({name: here(name, *rest) for name in given}))
    else:
        main(sys.argv[1:])
