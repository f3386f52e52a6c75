"""What a network's samples take, and how many of them a limit on memory allows at once.

Counted in bytes of tensors: the most that are alive at a time, those in graphs included.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mpsearch.batches import joined, parts, samples
from mpsearch.quant.replay import kept_bytes

_FEW, _FEWER = 16, 4  # samples that are looked at
_COPIES = 4  # of the largest tensor: rounded, in another layout, squared for its variance
_ENOUGH = 1 << 28  # bytes; larger parts save no time


class _Alive(TorchDispatchMode):
    """Counts the storages that operations make, and those of them that are gone again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.largest = 0
        self._held: set[int] = set()  # addresses

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(x) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        output = func(*args, **(kwargs or {}))
        for made in tree_leaves(output):
            if isinstance(made, Tensor):
                self._add(made, given)
        return output

    def _add(self, made: Tensor, given: set[int]) -> None:
        storage, address = made.untyped_storage(), _address(made)
        if address in self._held or address in given:
            return  # a view of what was there before
        self._held.add(address)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        self.largest = max(self.largest, storage.nbytes())
        weakref.finalize(storage, self._drop, address, storage.nbytes())  # tensors die in graphs

    def _drop(self, address: int, size: int) -> None:
        self._held.discard(address)
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


def fitting(compute: Callable[[Any], object], batches: Sequence[Any], memory: float) -> int:
    """How many samples something can be computed of at once within a limit; at least one.

    As it shows on a few of the batch whose samples are largest.
    """
    few = joined([max(batches, key=_each)], _FEWER)
    if samples(few) == 1:
        return 1
    with _Alive() as alive:
        compute(few)
    return max(1, int(min(memory, _ENOUGH) * samples(few) / max(alive.peak, 1)))


def divided(batches: Sequence[Any], most: int) -> dict[tuple[int, ...], Any]:
    """Parts of so many samples, by their batch, their first sample and the one after the last."""
    return {
        (number, first, first + samples(part)): part
        for number, batch in enumerate(batches)
        for first, part in zip(range(0, samples(batch), most), parts(batch, most), strict=True)
    }


def _each(batch: Any) -> float:
    """Bytes of a sample."""
    return sum(x.nbytes for x in tree_leaves(batch) if isinstance(x, Tensor)) / samples(batch)


def readable(size: float) -> str:
    """Bytes as a limit is written, rounded up.

    >>> readable(1_234_567)
    '1.3MB'
    """
    unit, scale = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    return f"{math.ceil(10 * size / scale) / 10:g}{unit}"
