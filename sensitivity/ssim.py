"""Structural similarity of output images, one layer quantized (Wang et al. 2004).

MixDQ (Zhao et al. 2024, arXiv 2405.17873) judges its content layers by it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mpsearch.batches import call, tensor_of
from mpsearch.sensitivity.measures import Measure
from mpsearch.task import Task
from mpsearch.tracing import evaluating


@dataclass(frozen=True)
class SSIM:
    """``1 - mean of (2 m_t m_q + c1)(2 s_tq + c2) / ((m_t^2 + m_q^2 + c1)(s_t^2 + s_q^2 + c2))``.

    Means m and (co)variances s are over each square window that lies wholly in the image, all of
    its n pixels counting the same, variances with n - 1; the mean is over windows and channels, for
    each sample. ``c = (k range)^2``. That is scikit-image's default, which MixDQ calls with windows
    of 511 on 8-bit images of 512 (rounding to 8 bits is left out here); the Gaussian window of the
    2004 paper is another. Images are the last two axes of the output; what lies between these and
    the samples are channels.

    Attributes:
        window: Pixels along a side.
        k1: Of c1.
        k2: Of c2.
        data_range: Largest pixel - smallest; by default that of all float outputs together.
    """

    window: int = 7
    k1: float = 0.01
    k2: float = 0.03
    data_range: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"window is {self.window!r}; wanted an odd number from 3 up")
        for name in ("k1", "k2", "data_range"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; wanted a positive number")

    @property
    def measure(self) -> Measure:
        """What it reads off outputs: 0 where nothing changed, at most 2."""
        separate = self.data_range is not None
        return Measure(self.dissimilarity, lambda _: "rank score (1 - SSIM)", separate=separate)

    def on(self, task: Task) -> "SSIM":
        """With the data range of a task's float outputs, where none is set."""
        if self.data_range is not None:
            return self
        with evaluating(task.model):
            outputs = (tensor_of(call(task.model, batch)) for batch in task.batches)
            found = self._spread(outputs)
        return replace(self, data_range=found) if math.isfinite(found) else self

    def dissimilarity(self, reference: Sequence[Any], outputs: Sequence[Any]) -> Tensor:
        """(N,) of each sample, from lists of the float network's outputs and of another's."""
        pairs = [(tensor_of(a), tensor_of(b)) for a, b in zip(reference, outputs, strict=True)]
        spread = self._spread(images for images, _ in pairs)
        each = (one for a, b in pairs for one in zip(a.split(1), b.split(1), strict=True))
        return torch.cat([1 - self._similarity(t, q, spread) for t, q in each])

    def _spread(self, images: Iterable[Tensor]) -> float:
        """The data range, by default of all these images together."""
        low, high = math.inf, -math.inf
        for each in images:
            self._check(each)
            low, high = min(low, float(each.min())), max(high, float(each.max()))
        if self.data_range is None and low == high:
            raise ValueError(
                f"every pixel of the float output is {low}, so it has no range to compare on; give"
                " batches the model answers to, or data_range"
            )
        return self.data_range or high - low

    def _similarity(self, reference: Tensor, output: Tensor, spread: float) -> Tensor:
        """(N,) mean over windows and channels."""
        count = len(reference)
        t, q = (x.double().reshape(count, -1, *x.shape[-2:]) for x in (reference, output))
        mt, mq = self._mean(t), self._mean(q)
        unbiased = self.window**2 / (self.window**2 - 1)
        stt, sqq, stq = (
            unbiased * (self._mean(a * b) - ma * mb)
            for a, b, ma, mb in ((t, t, mt, mt), (q, q, mq, mq), (t, q, mt, mq))
        )
        c1, c2 = (self.k1 * spread) ** 2, (self.k2 * spread) ** 2
        above = (2 * mt * mq + c1) * (2 * stq + c2)
        below = (mt * mt + mq * mq + c1) * (stt + sqq + c2)
        return (above / below).reshape(count, -1).mean(1)

    def _mean(self, x: Tensor) -> Tensor:
        """Over each window: along columns, then along rows."""
        columns = F.avg_pool2d(x, (self.window, 1), stride=1)
        return F.avg_pool2d(columns, (1, self.window), stride=1)

    def _check(self, images: Tensor) -> None:
        if images.dim() < 4:
            raise ValueError(
                f"the output has shape {tuple(images.shape)}; SSIM compares images (samples,"
                " channels, rows, columns): use 'sqnr' or 'mse' for other outputs"
            )
        if min(images.shape[-2:]) < self.window:
            raise ValueError(
                f"window is {self.window} and the output images have"
                f" {' x '.join(map(str, images.shape[-2:]))} pixels; give a smaller window"
            )
