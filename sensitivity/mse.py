"""Mean squared error of the network's output, one layer quantized."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Measure, compared
from mpsearch.sensitivity.one_at_a_time import OneAtATime
from mpsearch.sensitivity.surroundings import Context, check_context
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task


@dataclass(frozen=True)
class MSE:
    """``mean((q - t)^2)`` over all elements of the output, t in float and q quantized.

    In the output's own scale; ``SQNR`` is relative to it. A loss of the task's own is not asked.
    The standard error is over samples.

    Attributes:
        context: What the other layers have, as in ``KL``.
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
        """Table in ``MSE``.

        Raises:
            ValueError: Batches, a model or a format it cannot work with.
        """
        asked = OneAtATime("mse", _measure, self.context, self.draws, self.seed)
        return asked.estimate(task, network, options, recipe=recipe, sweep=sweep)


def squared_error(reference: Tensor, output: Tensor) -> Tensor:
    """(N,) mean squared error of each sample."""
    error = output.double() - reference.double()
    return error.square().reshape(len(error), -1).mean(1)


def _measure(_: Task) -> Measure:
    return compared(squared_error, lambda _: "MSE")
