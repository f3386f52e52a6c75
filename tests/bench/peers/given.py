"""What every scorer is given, ResNet-56 and labelled images, and how it says what it took.

It also runs in environments where mpsearch is not installed, so it imports nothing of it.
"""

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

Batch = tuple[Tensor, Tensor]
Score = Callable[[nn.Module, list[Batch]], dict[str, Any]]
RUNS = {"forward": "aten::convolution", "backward": "aten::convolution_backward"}


class Seconds:
    """CPU seconds of this process in some calls."""

    def __init__(self) -> None:
        self.spent = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent += time.process_time() - start

        return run


def told(named: dict[str, Score]) -> None:
    """Run the scorer that the command line names and print what it took, a line of JSON.

    First on one image a batch, not timed: that warms up, and counts convolutions.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=named)
    parser.add_argument("shared", type=Path)
    parser.add_argument("images", type=int)
    parser.add_argument("batch", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, batches = _given(asked.shared, asked.images, asked.batch)
    answer = os.dup(1)
    os.dup2(2, 1)  # peers print there, too
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        named[asked.name](model, [(x[:1], y[:1]) for x, y in batches])
    model, batches = _given(asked.shared, asked.images, asked.batch)
    found = named[asked.name](model, batches)
    counts = {event.key: event.count for event in seen.key_averages()}
    found |= {way: counts.get(key, 0) for way, key in RUNS.items()}
    os.write(answer, json.dumps(found).encode())


def _given(shared: Path, count: int, each: int) -> tuple[nn.Module, list[Batch]]:
    definition = _imported(shared / "models/definitions/resnet_cifar.py")
    torch.set_num_threads(1)  # the definition sets it, too
    model: nn.Module = definition.ResNetCifar(56)
    model.load_state_dict(load_file(shared / "models/cifar10/weights/resnet56.safetensors"))
    held = np.load(shared / "models/cifar10/calib.npz")
    images, labels = definition.prep(held["x"][:count]), torch.from_numpy(held["y"][:count]).long()
    return model.eval(), list(zip(images.split(each), labels.split(each), strict=True))


def _imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
