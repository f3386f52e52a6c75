"""What the task's loss gains when a layer is quantized: weights and input together.

As the degradations of CalibTIP (Hubara et al. 2020, arXiv 2006.10518), ``max(L_b - L_base, floor)``
where all layers of the base have 8 bits: ``Loss(context="w8a8", floor=1e-6)``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mpsearch.batches import tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Measure, judged
from mpsearch.sensitivity.one_at_a_time import OneAtATime
from mpsearch.sensitivity.surroundings import Context, check_context
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task

_IGNORED = -100  # the label of what counts for nothing, as in torch


@dataclass(frozen=True)
class Loss:
    """Gain of the task's loss, or where it has none of the cross-entropy with the batches' labels.

    Labels are the second item of batches ``(x, y)``. The standard error is over batches, for
    cross-entropy over samples; it is that of the gain before the floor.

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
    labels = [_labels(number, batch) for number, batch in enumerate(task.batches)]

    def rows(_: Sequence[Any], outputs: Sequence[Any]) -> Tensor:
        pairs = zip(outputs, labels, strict=True)
        return torch.cat([cross_entropy(tensor_of(output), each) for output, each in pairs])

    return Measure(rows, lambda _: "cross-entropy (nats)", by_batch=True)


def _labels(number: int, batch: Any) -> Tensor:
    found = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if not isinstance(found, Tensor) or found.is_floating_point() or isinstance(batch, Mapping):
        raise ValueError(
            f"batch {number} has no labels, and the task no loss of its own; give batches (x, y)"
            " with y the number of each class, or Task(..., loss=...); 'kl' needs neither"
        )
    return found


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) of each sample, averaged over its tokens that have a label."""
    labels, classes = labels.to(logits.device), logits.shape[-1]
    kept = labels != _IGNORED
    if labels.shape != logits.shape[:-1] or ((labels < 0) | (labels >= classes))[kept].any():
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} go up to {int(labels.max())}, the output has"
            f" shape {tuple(logits.shape)}; wanted {tuple(logits.shape[:-1])} labels from 0 to"
            f" {classes - 1}, or a task with a loss of its own"
        )
    each = F.cross_entropy(
        logits.double().flatten(0, -2), labels.long().flatten(), reduction="none"
    )
    counts = kept.reshape(len(kept), -1).sum(1).clamp_min(1)
    return each.reshape(len(kept), -1).sum(1) / counts
