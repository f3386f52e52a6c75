"""What one layer does to the output once it is quantized, measured against float.

As in ZeroQ (Cai et al. 2020, arXiv 2001.00281), but with the layer's input rounded too and with the
recipe's corrections, so that each number is that of a network one could run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mpsearch import batches
from mpsearch.batches import divergence
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Measure, compared, judged
from mpsearch.sensitivity.one_at_a_time import OneAtATime
from mpsearch.sensitivity.surroundings import Context, check_context
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task


@dataclass(frozen=True)
class KL:
    """Mean divergence of the output from the float output, each layer at each option.

    ``KL(float || quantized)`` of logits; of other outputs the relative squared error. Where the
    task has a loss of its own it is what that gains over the float model's. The standard error is
    over samples, for a loss of the task's own over batches.

    Attributes:
        context: What the other layers have: nothing done to them (``alone``), ``random`` options,
            one option (``w8a8``), or those of an allocation, which gains are then over.
        draws: How many random networks.
        seed: Of their options.
    """

    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no context."""
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
        """Table in ``KL (nats)`` or the like, or in ``loss``.

        Raises:
            ValueError: Batches, a model or a format it cannot work with, or a loss that is not
                finite.
        """
        asked = OneAtATime("kl", measure_of, self.context, self.draws, self.seed)
        return asked.estimate(task, network, options, recipe=recipe, sweep=sweep)


def measure_of(task: Task) -> Measure:
    """What `kl` reads off outputs: their divergence, or the task's own loss."""
    if task.loss is not None:
        return judged(task.loss, task.batches)
    return compared(divergence, batches.unit)
