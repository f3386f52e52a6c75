"""What the output loses where one layer alone is quantized, as measured: the divergence from float.

As in ZeroQ (Cai et al. 2020, arXiv 2001.00281), with the layer's activations rounded too and the
recipe's corrections made, so that the figure is that of a network one could run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.batches import call, checked, divergence, samples, tensor_of
from mpsearch.batches import unit as unit_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.weights import allowed
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Given = dict[str, Option]
"""An option for each of some modules."""


@dataclass(frozen=True)
class KL:
    """The mean over samples of the divergence between the output with one layer quantized and the
    float output, by the layer and the option; or, where the task has a loss of its own, what that
    gains over the float model's.

    The standard error is over samples; for a task's own loss, over batches.
    """

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of divergences, such as ``KL (nats)``, or of gains in ``loss``.

        Raises:
            ValueError: Batches, a model, a loss or a format it cannot work with; a loss that is not
                finite.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        members = {layer.name: layer.modules for layer in network.layers}
        bench = Bench(task.model, task.batches, [m for ms in members.values() for m in ms], recipe)
        scores = _Scores(task, bench)
        named = {str(option): option for option in options}
        mask = allowed(network, options)
        units: list[Unit] = [
            (layer.name, str(option))
            for layer, row in zip(network.layers, mask, strict=True)
            for option, may in zip(options, row, strict=True)
            if may
        ]

        def compute(unit: Unit) -> list[float]:
            name, option = map(str, unit)
            return scores.gain({m: named[option] for m in members[name]}, f"layer {name!r} at {option}")

        found = sweep.run("kl", units, compute)
        values, stderr = np.zeros((2, *mask.shape))
        values[mask], stderr[mask] = np.array(found).T
        ...
