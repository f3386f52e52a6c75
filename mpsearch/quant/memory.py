"""What running a network takes for each sample, and how many samples a limit on memory allows.

Counted in bytes of tensors: the most that one forward has alive at a time.
"""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpsearch.batches import joined, samples
from mpsearch.quant.replay import kept_bytes

_FEW = 16
_COPIES = 4  # of the largest tensor: rounded, in another layout, squared for its variance


class _Alive(TorchDispatchMode):
    """Counts the storages that operations make, and those of them that are gone again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.largest = 0
        self._held: dict[int, int] = {}  # tensors of each storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(x) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        output = func(*args, **(kwargs or {}))
        for made in tree_leaves(output):
            if isinstance(made, Tensor):
                self._add(made, given)
        return output

    def _add(self, made: Tensor, given: set[int]) -> None:
        address = _address(made)
        if address not in self._held:
            if address in given:
                return  # a view of what was there before
            self._held[address] = 0
            size = made.untyped_storage().nbytes()
            self.now += size
            self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
        self._held[address] += 1
        weakref.finalize(made, self._drop, address, made.untyped_storage().nbytes())

    def _drop(self, address: int, size: int) -> None:
        self._held[address] -= 1
        if not self._held[address]:
            del self._held[address]
            self.now -= size


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Needs:
    """Bytes for each sample.

    Attributes:
        running: A forward, with a layer quantized and corrected; and the samples, put together.
        kept: What a replay keeps of one so that nothing is computed again.
    """

    running: float
    kept: float

    @classmethod
    def of(cls, model: nn.Module, batch: Any, names: Sequence[str]) -> "Needs":
        """As one forward of some of a batch's samples shows."""
        batch = joined([batch], _FEW)
        alive = _Alive()
        with alive:
            kept = kept_bytes(model, batch, names)
        inputs = sum(x.nbytes for x in tree_leaves(batch) if isinstance(x, Tensor))
        running = alive.peak + _COPIES * alive.largest + inputs
        return cls(running / samples(batch), kept / samples(batch))

    def most(self, memory: float) -> int:
        """How many samples can be run within a limit, and all of it kept; at least one."""
        return max(1, int(min(memory / max(self.running + self.kept, 1), 1 << 62)))


def readable(size: float) -> str:
    """Bytes as a limit is written, rounded up.

    >>> readable(1_234_567)
    '1.3MB'
    """
    unit, scale = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    return f"{math.ceil(10 * size / scale) / 10:g}{unit}"
