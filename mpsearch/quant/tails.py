"""Least and largest values of runs of samples, in a bounded number of runs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

_MOST = 1 << 12  # runs, an even number


@dataclass(eq=False)
class Tails:
    """What even spacing would miss: the ends of every sample, of every two, of every four, ...

    The more samples, the longer a run; how they are split into batches changes nothing.

    Attributes:
        length: Samples in a run.
    """

    length: int = 1
    _runs: Tensor = field(default_factory=lambda: torch.empty(2, 0))  # least, largest
    _rest: Tensor = field(default_factory=lambda: torch.empty(2, 0))  # samples of no whole run

    def add(self, ends: Tensor) -> None:
        """Take the (2, samples) least and largest values of more samples."""
        rest = torch.cat([self._rest.to(ends), ends], 1)
        while whole := min(rest.shape[1] // self.length, _MOST - self._runs.shape[1]):
            count = whole * self.length
            runs = [self._runs.to(ends), _joined(rest[:, :count], self.length)]
            self._runs, rest = torch.cat(runs, 1), rest[:, count:]
            if self._runs.shape[1] == _MOST:
                self._runs, self.length = _joined(self._runs, 2), 2 * self.length
        self._rest = rest.clone()

    def values(self) -> Tensor:
        """All that is kept, flat."""
        rest = self._rest
        last = _joined(rest, rest.shape[1]) if rest.shape[1] else rest
        return torch.cat([self._runs.to(last), last], 1).flatten()


def _joined(ends: Tensor, length: int) -> Tensor:
    """(2, samples / length) the ends of as many neighbours."""
    low, high = ends.reshape(2, -1, length)
    return torch.stack([low.amin(1), high.amax(1)])
