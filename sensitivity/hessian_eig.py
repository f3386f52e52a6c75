"""The largest eigenvalue of every layer's block of the Hessian, and the two orders it makes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mpsearch.batches import checked
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.eigenvalues import Blocks
from mpsearch.sensitivity.slopes import check_read, one_of
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sensitivity.weight_error import squared_errors
from mpsearch.sensitivity.weights import stored
from mpsearch.sensitivity.zd import quarters
from mpsearch.sweep import Sweep
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Order = Literal["bits", "fine-tuning"]


@dataclass(frozen=True)
class HessianEig:
    """HAWQ's two orders of layers (Dong et al. 2019, arXiv 1905.03696, section 3).

    With lambda the eigenvalue of largest magnitude of the layer's block of the Hessian, by power
    iteration, and n the number of elements:

    - ``bits``: ``S = |lambda| / n``, and more bits where it is larger. The paper picks them by
      hand; here S is multiplied by ``4^-bits``, the same for all layers, so that S orders them.
    - ``fine-tuning``: ``|lambda| ||Q(W) - W||^2``; the largest is fine-tuned first.

    For inputs the Hessian is that of each sample in what the layer reads; the mean over samples
    counts, and its standard error. An option that rounds both has the sum. The loss is the task's,
    by default the divergence from the model's own output.

    Attributes:
        order: Which of the two.
        iterations: Most products for each eigenvalue, and most backward passes where these give it.
        tolerance: Relative change, over all samples, at which the iteration stops.
        seed: Of the vectors it starts from, and of random options.
        context: What all layers have where the Hessian is taken:
            :mod:`mpsearch.sensitivity.surroundings`.
        draws: How many random networks.
    """

    order: Order = "bits"
    iterations: int = 100
    tolerance: float = 1e-3
    seed: int = 0
    context: Context = "alone"
    draws: int = 4

    def __post_init__(self) -> None:
        """Refuse settings that nothing follows."""
        one_of("order", self.order, get_args(Order))
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations!r}; wanted at least 1")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance!r}; wanted at least 0 and below 1")
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
        """Table of scores that order layers.

        Raises:
            ValueError: Batches, a model, a loss or a format it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        network, options = at.network, at.options
        rounds = [option for option in options if changes(option)]
        names = [name for layer in network.layers for name in layer.modules]
        check_read(at.bench, names, options)
        blocks = Blocks(
            at.task, network, at.bench, at.model, self.iterations, self.tolerance, self.seed
        )
        values, stderr = np.zeros((len(network.layers), len(options))), None
        if any(option.weight.quantized for option in rounds):
            layers = stored(at.bench.model, network)
            each = squared_errors(layers, options, at.recipe, at.sweep)
            errors = np.stack([error.sum(axis=0) for error in each])
            errors *= [option.weight.quantized for option in options]
            steps = [quarters(option.weight) for option in options]
            sizes = np.array([sum(one.weight.numel() for one in layer) for layer in layers])
            values += self._scores(blocks.of_weights(at.study), sizes, errors, steps)
        if any(option.activation.quantized for option in rounds):
            steps = [quarters(option.activation) for option in options]
            rows = self._scores(*blocks.of_inputs(options, at.study), steps)
            values += rows.mean(axis=0)
            stderr = rows.std(axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else None
        unit = f"rank score (HAWQ, order for {self.order})"
        allowed = network.mask(options)
        return Table(network.layers, options, values, unit, stderr=stderr, allowed=allowed)

    def _scores(
        self, found: Floats, sizes: NDArray[Any], errors: Floats, steps: Sequence[float]
    ) -> Floats:
        """(..., layers, options) of one role, from its eigenvalues."""
        largest = abs(found)[..., None]
        if self.order == "fine-tuning":
            return largest * errors
        scores: Floats = largest / np.maximum(sizes, 1)[..., None] * np.array(steps)
        return scores
