"""What layers take on this machine: CPU time of one thread, each call after those of all others.

A call that follows itself finds its code and its weight in the caches, which in a network it does
not: ResNet-20 and a small transformer take up to a third more than a sum of such calls. So in every
round each kernel is called once, after as many floats as the network has weights were read, and
with its input just written.
"""

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch import __version__
from mpsearch.formats import Option
from mpsearch.kernels.plain import running, runs_as
from mpsearch.kernels.shapes import Part, quantized
from mpsearch.network import Layer
from mpsearch.protocols import Backend

Runs = dict[str, Callable[[], object]]
MOST = 1 << 24  # floats read between two calls: 64 MiB, more than most caches hold


@dataclass(frozen=True)
class Taken:
    """Seconds of repeated calls.

    Attributes:
        seconds: Their median.
        spread: Its quartiles' distance, as a part of the median.
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
        """Standard error of the median, as if the calls were normal: 1.2533 sigma / sqrt(n)."""
        return float(1.2533 * self.spread * self.seconds / 1.349 / np.sqrt(self.calls))
