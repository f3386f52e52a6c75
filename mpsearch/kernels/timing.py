"""CPU time of calls on one thread, each call after those of all others.

A call that follows itself finds its code and its weight in the caches, which in a network it does
not: networks of small layers take up to a third more than a sum of such calls. So in every round
each kernel is called once, its input just written, after as many floats as the network has weights
were read.
"""

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch import __version__

Key = TypeVar("Key")
ROUNDS = 5  # that are run, and kept, together
_MOST = 1 << 24  # floats read before a call: 64 MiB, more than most caches hold


@dataclass(frozen=True)
class Taken:
    """Seconds of repeated calls.

    Attributes:
        seconds: Their median.
        spread: The distance of their quartiles, as a part of the median.
        calls: How many there were.
    """

    seconds: float
    spread: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Taken":
        """From the seconds of each call."""
        low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
        return cls(middle, (high - low) / middle, len(seconds))

    @property
    def stderr(self) -> float:
        """Standard error of the median: 1.2533 sigma / sqrt(n), sigma from the quartiles."""
        return 1.2533 * self.spread * self.seconds / 1.349 / math.sqrt(self.calls)


@dataclass(frozen=True, eq=False)
class Call:
    """A module, and what it reads."""

    module: nn.Module
    x: Tensor

    @classmethod
    def of(cls, module: nn.Module, x: Tensor) -> "Call":
        """With the input laid out as the module writes: in a network its like wrote it."""
        y = module(x)
        last = torch.channels_last
        if x.dim() == 4 and y.is_contiguous(memory_format=last) and not y.is_contiguous():
            x = x.contiguous(memory_format=last)
        return cls(module, x)

    def __call__(self) -> object:
        """Run it."""
        return self.module(self.x)


def footprint(weights: int) -> int:
    """Floats read before each call in a network of so many weights: the power of two below."""
    return min(_MOST, 1 << max(weights, 1).bit_length() - 1)


def rounds(calls: Mapping[Key, Call], count: int, floats: int) -> dict[Key, list[float]]:
    """Seconds of each call in each of so many rounds, after one that is not counted."""
    scratch = torch.ones(floats)
    taken: dict[Key, list[float]] = {key: [] for key in calls}
    idle = min(once(lambda: None) for _ in range(20))
    for number in range(count + 1):
        for key, each in calls.items():
            scratch.sum()
            each.x.mul_(1)
            seconds = once(each) - idle
            if number:
                taken[key].append(max(seconds, 1e-9))
    return taken


def once(run: Callable[[], object]) -> float:
    """CPU seconds of this process in one call."""
    before = time.process_time_ns()
    run()
    return (time.process_time_ns() - before) * 1e-9


@contextmanager
def pinned() -> Iterator[None]:
    """One thread, no gradients, and a seed of its own; all three as before on the way out."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def machine() -> str:
    """What a time depends on beside the call: the processor and the versions."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name
        )
    return json.dumps(
        [name, torch.backends.cpu.get_cpu_capability(), torch.__version__, __version__]
    )
