"""ResNet-20 in 8 bits on torch's kernels, codes between layers beside floats, and ONNX Runtime.

``python -m tests.bench.torch_codes``: one process, one thread, rounds that interleave; needs the
trained weights and images that ``examples/cifar10.py`` reads.
"""

import argparse
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mpsearch as mp
from examples import cifar10
from mpsearch.kernels import timing
from mpsearch.kernels.onnx_runtime import session
from mpsearch.kernels.running import ran
from tests.bench.measured import Line, load, machine

CODES = "torch-cpu:codes"
NETWORKS = ("fp32", "torch-cpu", CODES, "onnx")
Run = Callable[[Tensor], Tensor]


def networks(option: str, path: Path) -> dict[str, Run]:
    """Each by its name: from images to logits."""
    model = cifar10.network(20).eval()
    kinds = (nn.Conv2d, nn.Linear)
    names = [name for name, each in model.named_modules() if isinstance(each, kinds)]
    options, batches = dict.fromkeys(names, option), [cifar10.images("calib", 256)]
    found: dict[str, Run] = {"fp32": model.to(memory_format=torch.channels_last)}  # type: ignore[call-overload]
    for name in NETWORKS[1:3]:
        found[name] = real = mp.quantize(model, options, batches, backend=name)
        print(name, *(f"  {layer}: {kernel}" for layer, kernel in ran(real).items()), sep="\n")
    export: Any = importlib.import_module("mpsearch.export.onnx").onnx
    made = session(export(model, options, batches, path).path, 1)
    found["onnx"] = lambda x: torch.from_numpy(made.run(None, {"x": x.numpy()})[0])
    found["mp.quantize"] = mp.quantize(model, options, batches)
    return found


def judged(runs: dict[str, Run], judge: int) -> None:
    """Print how right each is, and how far its outputs are from those of ``mp.quantize``."""
    x, y = cifar10.images("test", judge)
    logits = {name: run(x).log_softmax(1) for name, run in runs.items()}
    for name, found in logits.items():
        right = float((found.argmax(1) == y).float().mean())
        kl = [
            float((p.exp() * (p - found)).sum(1).mean())
            for p in (logits["mp.quantize"], logits["fp32"])
        ]
        print(
            f"{name:16} top-1 {right:.4f}  KL from mp.quantize's {kl[0]:.2e}, from fp32 {kl[1]:.2e}"
        )


def compared(runs: dict[str, Run], x: Tensor, rounds: int) -> None:
    """Print what each takes, and how many times faster codes between layers are than the others."""
    taken: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for number in range(rounds + 1):
        for name in NETWORKS:
            seconds = timing.once(lambda name=name: runs[name](x))  # type: ignore[misc]
            if number:
                taken[name].append(seconds)
    median = {name: float(np.median(every)) for name, every in taken.items()}
    print(
        f"batch {len(x)}:", *(f"{name} {seconds * 1e3:.3f} ms" for name, seconds in median.items())
    )
    for name, least in (("fp32", 1.0), ("torch-cpu", 1.2)):
        what = f"codes beside {name}, batch {len(x)}"
        print(Line(what, median[name] / median[CODES], least, "x", least=True))
    print(f"  codes beside onnx, batch {len(x)}: {median['onnx'] / median[CODES]:.3g} x")


def main(argv: list[str] | None = None) -> None:
    """Print what ran, what it computes and what it takes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--option", default="w8a8")
    arguments.add_argument("--batches", default="1,8,32")
    arguments.add_argument("--judge", type=int, default=1000, help="test images")
    chosen = arguments.parse_args(argv)
    print(machine(), "load", load())
    with tempfile.TemporaryDirectory() as folder, timing.pinned():
        runs = networks(chosen.option, Path(folder) / "net.onnx")
        judged(runs, chosen.judge)
        for batch in map(int, chosen.batches.split(",")):
            compared(runs, cifar10.images("test", batch)[0], chosen.rounds)


if __name__ == "__main__":
    main()
