"""What one layer alone does to the output once it is quantized, measured against float.

As in ZeroQ (Cai et al. 2020, arXiv 2001.00281), but with the layer's input rounded too and with the
recipe's corrections, so that each number is that of a network one could run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch import batches
from mpsearch.batches import call, checked, divergence, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench
from mpsearch.quant.recipe import Recipe
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Given = Mapping[str, Option]
"""An option for each of some modules."""


@dataclass(frozen=True)
class KL:
    """Mean divergence of the output from the float output, each layer at each option alone.

    Where the task has a loss of its own it is what that gains over the float model's. The standard
    error is over samples, for a loss of the task's own over batches.
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
        """Table in ``KL (nats)`` or the like, or in ``loss``.

        Raises:
            ValueError: Batches, a model or a format it cannot work with, or a loss that is not
                finite.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        members = {layer.name: layer.modules for layer in network.layers}
        names = [name for modules in members.values() for name in modules]
        scores = _Scores(task, Bench(task.model, task.batches, names, recipe))
        named = {str(option): option for option in options}
        mask = network.mask(options)
        units: list[Unit] = [
            (list(members)[row], list(named)[column]) for row, column in np.argwhere(mask)
        ]

        def compute(unit: Unit) -> list[float]:
            layer, option = map(str, unit)
            return scores.gain(layer, option, dict.fromkeys(members[layer], named[option]))

        found = np.array(sweep.run("kl", units, compute))
        values, stderr = np.zeros(mask.shape), np.zeros(mask.shape)
        values[mask] = found[:, 0]
        stderr[mask] = found[:, -1]
        return Table(
            network.layers,
            tuple(options),
            values,
            scores.unit,
            stderr=stderr if found.shape[1] > 1 else None,
            allowed=mask,
        )


@dataclass(frozen=True, eq=False)
class _Scores:
    """Losses of a bench's model, a row for each sample or, by the task's own loss, each batch."""

    task: Task
    bench: Bench

    def gain(self, layer: str, option: str, given: Given) -> list[float]:
        """The mean gain over float and, from several rows, its standard error."""
        rows = self._rows(self._outputs(given)) - self._float_rows
        share = self._share.to(rows)
        mean = float((share * rows).sum())
        if not math.isfinite(mean):
            raise ValueError(
                f"layer {layer!r} at {option!r}: the loss is {mean}; wanted a finite number: leave"
                " the layer or the option out, or give another loss"
            )
        if len(rows) < 2:
            return [mean]
        spread = (share * (rows - mean)).square().sum() * len(rows) / (len(rows) - 1)
        return [mean, float(spread.sqrt())]

    @property
    def unit(self) -> str:
        """What the rows are counted in."""
        return "loss" if self.task.loss else batches.unit(tensor_of(self._float[0]))

    @cached_property
    def _sizes(self) -> list[int]:
        return [samples(batch) for batch in self.task.batches]

    @cached_property
    def _share(self) -> Tensor:
        sizes = self._sizes if self.task.loss else [1] * len(self._float_rows)
        return torch.tensor(sizes, dtype=torch.float64) / sum(sizes)

    @cached_property
    def _joined(self) -> bool:
        """Whether the bench's one batch holds all samples, so that it gives every output."""
        if samples(self.bench.batch) < sum(self._sizes):
            return False
        if self.task.loss is None:
            return True
        with torch.no_grad():
            whole = call(self.bench.model, self.task.batches[0])
        return isinstance(whole, Tensor) and len(whole) == self._sizes[0]

    def _outputs(self, given: Given) -> list[Any]:
        """What the model returns with some modules quantized, batch by batch or at once."""
        if not self._joined:
            with torch.no_grad(), self.bench.at(given) as model:
                return [call(model, batch) for batch in self.task.batches]
        output = self.bench.outputs(given)
        return list(output.split(self._sizes)) if self.task.loss else [output]

    @cached_property
    def _float(self) -> list[Any]:
        return self._outputs({})

    @cached_property
    def _float_rows(self) -> Tensor:
        rows = self._rows(self._float)
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"the loss of the float model is {float(rows.sum())}; wanted a finite number: check"
                " the model's output and the loss on these batches"
            )
        return rows

    def _rows(self, outputs: Sequence[Any]) -> Tensor:
        if self.task.loss is None:
            pairs = zip(self._float, outputs, strict=True)
            return torch.cat([divergence(tensor_of(a), tensor_of(b)) for a, b in pairs])
        pairs = zip(outputs, self.task.batches, strict=True)
        return torch.tensor([_number(self.task.loss(*pair)) for pair in pairs], dtype=torch.float64)


def _number(value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(
            f"the loss returned {type(value).__name__}{shape}; wanted one number a batch"
        ) from None
