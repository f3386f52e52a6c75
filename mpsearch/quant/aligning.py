"""Scale reparameterization: channels are given one range, and then one grid does for all of them.

From Li et al. 2023, RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision
Transformers (arXiv 2212.08254). Quantized by channel, what a layer norm returns has a step s_j and
a middle m_j in channel j. With s the mean step and ``r = s_j / s``, the norm is made to return
``(x - m) / r``, and what reads it to multiply by ``r W`` and add ``W m``: the values, and their
errors, are those of quantization by channel, and the step is one. A step is a range over a number
of codes, so r is that of any number of bits. The paper's zero point is the mean of the channels'
own; in the middle of the range it serves symmetric formats and floats as well.

Clipped, as in Ranjan and Savakis 2024, LRP-QViT: Mixed-Precision Vision Transformer Quantization
via Layer-wise Relevance Propagation (arXiv 2401.11243), a channel's range ends at percentiles of
its values; what lies outside is clipped as far as the recipe's range of inputs clips it. Where a
bias is missing nothing is shifted, and ranges are symmetric.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import parts
from mpsearch.quant.shifting import shift_channels, shiftable
from mpsearch.quant.smoothing import input_last, reading, scale_channels, watch

_ROWS = 1 << 12  # kept for percentiles, at most
_COLUMNS = 1 << 10  # of which percentiles are taken at once


@dataclass(eq=False)
class Channels:
    """What a norm returned, by channel.

    Attributes:
        extremes: Least and largest values, of every part that was seen.
        rows: Every so many of the rows.
    """

    extremes: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add(self, rows: Tensor) -> None:
        """Look at more (rows, channels)."""
        self.extremes.append(torch.stack(rows.aminmax(dim=0)).double())
        self.rows.append(rows[-self._seen % self._every :: self._every].clone())
        self._seen += len(rows)
        while sum(map(len, self.rows)) > _ROWS:
            self.rows = [torch.cat(self.rows)[::2]]
            self._every *= 2

    def ends(self, percent: float, *, symmetric: bool) -> Tensor:
        """(2, channels) where ranges begin and end: past ``percent`` of the values, either way."""
        if percent == 100:
            low, high = torch.cat(self.extremes).aminmax(dim=0)
            high = torch.maximum(-low, high) if symmetric else high
            return torch.stack([-high if symmetric else low, high])
        rows = torch.cat(self.rows)
        if symmetric:
            high = _quantiles(rows.abs(), [percent / 100])
            return torch.cat([-high, high])
        return _quantiles(rows, [1 - percent / 100, percent / 100])


def align(model: nn.Module, batch: Any, percent: float = 100.0) -> int:
    """Align what can be, in place; how many norms that were.

    Of a channel's values ``percent`` lie below the end of its range, as many above its beginning.
    """
    groups = reading(model, parts(batch, 1)[0])
    seen: defaultdict[nn.Module, Channels] = defaultdict(Channels)
    watch(model, batch, groups, lambda norm, rows: seen[norm].add(rows))
    for norm, layers in groups.items():
        shifts = shiftable(norm, layers)
        low, high = seen[norm].ends(percent, symmetric=not shifts)
        if shifts:
            shift_channels(norm, layers, (low + high) / 2)
        wide = high - low
        scale = torch.where(wide > 0, wide / wide.mean(), 1.0)
        scale_channels(norm, [input_last(layer) for layer in layers], scale)
    return len(groups)


def _quantiles(rows: Tensor, shares: Sequence[float]) -> Tensor:
    """(shares, channels) in float64."""
    at = torch.tensor(shares, dtype=torch.float64, device=rows.device)
    return torch.cat([part.double().quantile(at, 0) for part in rows.split(_COLUMNS, 1)], 1)
