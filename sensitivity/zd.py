"""The share of weights far above their mean: a score of Layer-Wise Quantization.

From Dumitru et al. 2024 (arXiv 2406.17415). It orders layers, and how many of the first get the
larger format is chosen by hand; here it is multiplied by ``4^-bits`` of the weights' format, the
same for all layers, so that it orders them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mpsearch.formats import Format, Option
from mpsearch.network import Network
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.surroundings import Context, check_context
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task


@dataclass(frozen=True)
class Zd:
    """``1 - ZD``, with ZD the share of a layer's weights whose z-score is above a threshold.

    "Much larger than average, smaller is better": a layer with fewer such weights matters more. The
    threshold, the side, and that the weights of one layer here are taken together, are readings.
    It is multiplied by ``4^-bits`` of the weights; inputs do not enter, and no data is seen.

    Attributes:
        threshold: Of ``(w - mean) / std``.
        sides: 1 counts weights above the mean, 2 those far from it on either side.
        context: It changes nothing, as only weights are looked at.
    """

    threshold: float = 1.0
    sides: Literal[1, 2] = 1
    context: Context = "alone"

    def __post_init__(self) -> None:
        """Refuse settings that nothing follows."""
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold is {self.threshold!r}; wanted a number from 0 up")
        if self.sides not in (1, 2):
            raise ValueError(f"sides is {self.sides!r}; wanted 1 or 2")
        check_context(self.context)

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of ``(1 - ZD) 4^-bits``; neither recipe nor sweep enters.

        Raises:
            ValueError: Weights that are all equal or not finite, or a format not supported.
        """
        del recipe, sweep
        steps = np.array([changes(o) * quarters(o.weight) for o in options])
        layers = zip(network.layers, stored(task.model, network), strict=True)
        scores = [
            1 - self._share(layer.name, [one.weight.detach() for one in weights])
            for layer, weights in layers
        ]
        allowed = network.mask(options)
        values = np.outer(scores, steps)
        return Table(network.layers, tuple(options), values, "rank score (ZD)", allowed=allowed)

    def _share(self, layer: str, weights: Sequence[Tensor]) -> float:
        flat = torch.cat([weight.double().flatten() for weight in weights])
        std = flat.std(correction=0)
        if not torch.isfinite(std):
            raise ValueError(
                f"layer {layer!r}: its weights hold NaN or infinity; give a model whose weights are"
                " finite"
            )
        if not (flat != flat[0]).any():
            raise ValueError(
                f"layer {layer!r}: all its weights are {float(flat[0])}, so they have no z-scores;"
                " leave it out (skip=), or use another score"
            )
        z = (flat - flat.mean()) / std
        return float(((z.abs() if self.sides == 2 else z) > self.threshold).double().mean())


def quarters(form: Format) -> float:
    """``4^-bits``, as the squared step of a grid falls; 0 where nothing is rounded."""
    return 4.0**-form.bits if form.quantized else 0.0
