"""What each step of a recipe is worth: real KL of uniform weights on three trained networks.

Run as ``python -m tests.bench.recipes [network ...]``; needs ``../shared`` (or
``MPSEARCH_SHARED``). Every layer has the same option, the first and the last too; KL is in nats on
held-out data. A line that says nothing of corrections has the default's.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

import mpsearch as mp
from mpsearch.quant.bench import Bench
from mpsearch.quant.recipe import Recipe
from mpsearch.verification import measure, outputs

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = ("w2a16", "w3a16", "w4a16", "w4a4")
STEPS: Mapping[str, Mapping[str, Any]] = {
    "nearest, min-max": {"ranges": "minmax", "corrections": ()},
    "nearest, mse": {"corrections": ()},
    "+ bias": {"corrections": ("bias",)},
    "+ batchnorm": {"corrections": ("batchnorm",)},
    "+ moments (the default)": {},
    "+ spread": {"corrections": ("moments", "spread")},
    "fold": {"preparations": ("fold",)},
    "smooth": {"preparations": ("smooth",)},
    "rotate": {"preparations": ("rotate",)},
    "align": {"preparations": ("align",)},
    "clip": {"preparations": ("clip",)},
    "gptq, uncorrected": {"rounding": "gptq", "corrections": ()},
    "gptq": {"rounding": "gptq"},
    "gptq, spread": {"rounding": "gptq", "corrections": ("moments", "spread")},
    "gptq, columns as given": {"rounding": "gptq", "act_order": False},
    "decoupleq, uncorrected": {"rounding": "decoupleq", "corrections": ()},
    "decoupleq": {"rounding": "decoupleq"},
    "quantease": {"rounding": "quantease"},
    "adaround": {"rounding": "adaround"},
    "adaquant": {"rounding": "adaquant"},
    "rotate, decoupleq": {"rounding": "decoupleq", "preparations": ("rotate",)},
}
SKIPPED = {  # what has nothing to work on there, or takes long
    "resnet20": ("smooth", "rotate", "align", "clip", "rotate, decoupleq"),
    "mobilenet_v2": (  # its batch norms were folded before it was published
        *("+ batchnorm", "fold", "smooth", "rotate", "align", "clip", "rotate, decoupleq"),
    ),
    "small_llama": ("+ batchnorm", "fold"),
}
TASKS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "resnet20": ("cifar10", {"calibrate": 64, "judge": 250}),
    "mobilenet_v2": ("mobilenet_v2", {"calibrate": 32, "judge": 24}),
    "small_llama": ("small_llama", {"calibrate": 32, "judge": 32}),
}


def task_of(name: str) -> mp.Task:
    """One of the examples' tasks, with few samples."""
    file, counts = TASKS[name]
    spec = spec_from_file_location(f"example_{file}", EXAMPLES / f"{file}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"no example {file!r} in {EXAMPLES}")
    example = module_from_spec(spec)
    spec.loader.exec_module(example)
    task: mp.Task = example.task(**counts)
    return task


def judge(name: str) -> None:
    """A line for each recipe."""
    task = replace(task_of(name), evaluate=None)
    network = mp.trace(task.model, task.batches[0])
    modules = [module for layer in network.layers for module in layer.modules]
    reference = outputs(task.model, task.heldout)
    print(f"\n{name:24} " + "".join(f"{option:>9}" for option in OPTIONS) + "  seconds", flush=True)
    for label, settings in STEPS.items():
        if label in SKIPPED[name]:
            continue
        start = time.process_time()
        bench = Bench(task.model, task.batches, modules, Recipe(**settings))
        line = f"{label:24} "
        for option in OPTIONS:
            with bench.at(dict.fromkeys(modules, mp.Option.parse(option))) as quantized:
                line += f"{measure(quantized, task, reference).mean:9.4f}"
        print(f"{line}  {time.process_time() - start:7.1f}", flush=True)


def main(names: list[str]) -> None:
    """A table for each network."""
    torch.set_num_threads(1)
    for name in names:
        judge(name)


if __name__ == "__main__":
    main(sys.argv[1:] or list(TASKS))
