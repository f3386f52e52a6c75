"""ResNet-20 in ONNX Runtime, 8 bits beside 32: one process, one thread, rounds that interleave.

``python -m tests.bench.onnx_runtime``: needs the trained weights and images that
``examples/cifar10.py`` reads.
"""

import argparse
import importlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from examples import cifar10
from mpsearch.kernels import timing
from mpsearch.kernels.onnx_runtime import session
from tests.bench.measured import Line, load, machine

TARGET = 1.9


def written(option: str, folder: Path) -> Any:
    """The network at one option, and what ran."""
    model = cifar10.network(20)
    kinds = (nn.Conv2d, nn.Linear)
    names = [name for name, each in model.named_modules() if isinstance(each, kinds)]
    options = dict.fromkeys(names, option) if option else {}
    path = folder / f"{option or 'fp32'}.onnx"
    export: Any = importlib.import_module("mpsearch.export.onnx").onnx
    return export(model, options, [cifar10.images("calib", 256)], path)


def top1(path: Path, judge: int) -> float:
    """Share of the test images that are named right."""
    x, y = cifar10.images("test", judge)
    found = session(path, 1).run(None, {"x": x.numpy()})[0]
    return float((found.argmax(1) == y.numpy()).mean())


def main(argv: list[str] | None = None) -> None:
    """Print what ran, and the ratios."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--options", default="w8a8,w4a8,w4a4")
    arguments.add_argument("--batches", default="1,8,32")
    arguments.add_argument("--judge", type=int, default=1000, help="test images")
    chosen = arguments.parse_args(argv)
    torch.set_num_threads(1)
    print(machine(), "load", load())
    with tempfile.TemporaryDirectory() as folder:
        files = {
            option or "fp32": written(option, Path(folder))
            for option in ("", *chosen.options.split(","))
        }
        print("\n".join(f"  {name}: {kernel}" for name, kernel in files["w8a8"].layers.items()))
        sessions = {}
        for name, each in files.items():
            sessions[name] = session(each.path, 1)
            size, right = each.path.stat().st_size, top1(each.path, chosen.judge)
            kinds = dict(Counter(each.layers.values()))
            print(f"{name:6} {size:8} byte  top-1 {right:.4f}  {kinds}  beside {each.others}")
        convolutions = [k for n, k in files["w8a8"].layers.items() if "conv" in n]
        whole = sum(kernel == "QLinearConv" for kernel in convolutions)
        print(Line("convolutions in integers", whole, len(convolutions), "", least=True))
        for batch in map(int, chosen.batches.split(",")):
            compared(sessions, cifar10.images("test", batch)[0].numpy(), chosen.rounds)


def compared(sessions: dict[str, Any], x: Any, rounds: int) -> None:
    """Print how many times faster than floats each is."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        for name, each in sessions.items():
            seconds = timing.once(lambda each=each: each.run(None, {"x": x}))  # type: ignore[misc]
            if number:
                taken[name].append(seconds)
    floats = np.array(taken.pop("fp32"))
    for name, every in taken.items():
        medians = np.median(floats), np.median(every)
        target, what = TARGET if name == "w8a8" else 1.0, f"{name} beside fp32, batch {len(x)}"
        note = "{:.3f} and {:.3f} ms".format(*(each * 1e3 for each in medians))
        print(Line(what, float(medians[0] / medians[1]), target, "x", least=True, note=note))


if __name__ == "__main__":
    main()
