"""Mean trace of each layer's Hessian block times the squared error of its rounded weights.

From HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852). The Hessian is that of the divergence from the
model's own output, averaged over samples, or of the task's own loss where it has one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from mpsearch.batches import checked
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sensitivity.traces import Method, Traces
from mpsearch.sensitivity.weight_error import squared_errors
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic


@dataclass(frozen=True)
class HessianTrace:
    """``Tr(H) / n * ||Q(W) - W||^2``, summed over the weights W, of n elements each, of a layer.

    H is the block of W in the Hessian of the loss; half of the number estimates what the loss
    gains. The format of the activations does not enter. The unit of the table says how the traces
    were found:

    - ``exact``: a backward pass for each element of a sample's output. Without a loss of the task's
      own that is so in any network; for softmax cross-entropy, where it is piecewise linear.
    - ``sampled``: in the same cases, a backward pass for each of ``probes`` groups of elements.
    - ``hutchinson``: in all others, ``probes`` Hessian-vector products on each batch.

    The standard error is over samples, and for ``hutchinson`` over probes.

    Attributes:
        probes: Most backward passes on each batch, or the number of Hessian-vector products.
        seed: Of random signs, and of random options.
        method: ``auto`` takes the first of the three that applies.
        context: What all layers have where the Hessian is taken:
            :mod:`mpsearch.sensitivity.surroundings`.
        draws: How many random networks.
    """

    probes: int = 32
    seed: int = 0
    method: Method = "auto"
    context: Context = "alone"
    draws: int = 4

    def __post_init__(self) -> None:
        """Refuse settings that no method has."""
        if self.probes < 1:
            raise ValueError(f"probes is {self.probes!r}; wanted at least 1")
        if self.method not in get_args(Method):
            known = ", ".join(map(repr, get_args(Method)))
            raise ValueError(f"no method is named {self.method!r}; there are {known}")
        check_context(self.context, self.draws)

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of mean traces times squared weight errors.

        Raises:
            ValueError: Batches, a model, a loss or a format it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        layers = stored(at.task.model, at.network)
        errors = squared_errors(layers, at.options, at.recipe, at.sweep)
        traces, how = self.traces(Traces.of(at.inside, at.network), at.study)
        traces = traces / [one.weight.numel() for layer in layers for one in layer]
        rows = [mean @ error for mean, error in zip(_split(traces, layers), errors, strict=True)]
        count = len(traces)
        deviation = [row.std(axis=0, ddof=1) / count**0.5 for row in rows] if count > 1 else None
        return Table(
            at.network.layers,
            at.options,
            np.array([row.mean(axis=0) for row in rows]),
            f"mean trace x squared weight error, {how}",
            stderr=None if deviation is None else np.array(deviation),
            allowed=at.network.mask(at.options),
        )

    def traces(self, traces: Traces, sweep: Sweep) -> tuple[Floats, str]:
        """(rows, weights) traces whose mean over rows is the trace, and how they were found."""
        method = traces.method(self.method, self.probes)
        if method == "hutchinson":
            rows = traces.by_product(self.probes, self.seed, sweep)
            return rows, f"{self.probes} Hessian-vector products"
        if method == "sampled" and self.probes < traces.outputs:
            rows = traces.by_sample(self.probes, self.seed, sweep)
            return rows, f"{self.probes} passes a sample"
        return traces.by_sample(None, self.seed, sweep), "exact"


def _split(traces: Floats, layers: Sequence[Sequence[object]]) -> Iterator[Floats]:
    """The columns of each layer's weights."""
    ends = np.cumsum([len(layer) for layer in layers])
    yield from np.split(traces, ends[:-1], axis=1)
