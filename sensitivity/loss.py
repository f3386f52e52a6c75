"""What the task's loss gains when a layer is quantized: weights and input together.

As the degradations of CalibTIP (Hubara et al. 2020, arXiv 2006.10518), ``max(L_b - L_base, floor)``
where all layers of the base have 8 bits: ``Loss(context="w8a8", floor=1e-6)``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.labels import each_cross_entropy
from mpsearch.sensitivity.measures import Measure, judged
from mpsearch.sensitivity.one_at_a_time import OneAtATime
from mpsearch.sensitivity.surroundings import Context, check_context
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task


@dataclass(frozen=True)
class Loss:
    """Gain of the task's loss, or where it has none of the cross-entropy with the batches' labels.

    :func:`mpsearch.sensitivity.labels.labelled` says where labels are. The standard error is over
    batches, for cross-entropy over samples; it is that of the gain before the floor.

    Attributes:
        context: What the other layers have, as in ``KL``.
        draws: How many random networks.
        seed: Of their options.
        floor: Least gain of what changes anything, since a loss that falls by rounding is luck;
            ``None`` for none, as round an allocation that options may improve on.
    """

    context: Context = "alone"
    draws: int = 4
    seed: int = 0
    floor: float | None = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no context, and a floor below zero."""
        check_context(self.context, self.draws)
        if self.floor is not None and not 0 <= self.floor < math.inf:
            raise ValueError(f"floor is {self.floor!r}; wanted a number from 0 up, or None")

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table in ``loss``, or ``cross-entropy (nats)``.

        Raises:
            ValueError: Batches without labels, batches, a model or a format it cannot work with, or
                a loss that is not finite.
        """
        asked = OneAtATime("loss", _measure, self.context, self.draws, self.seed)
        table = asked.estimate(task, network, options, recipe=recipe, sweep=sweep)
        if self.floor is None:
            return table
        raised = np.maximum(table.values, self.floor)
        return replace(table, values=np.where(table.values == 0, 0.0, raised))


def _measure(task: Task) -> Measure:
    if task.loss is not None:
        return judged(task.loss, task.batches)

    def rows(_: Sequence[Any], outputs: Sequence[Any]) -> Tensor:
        pairs = zip(outputs, task.batches, strict=True)
        return torch.cat([each_cross_entropy(*pair) for pair in pairs])

    return Measure(rows, lambda _: "cross-entropy (nats)", by_batch=True)
