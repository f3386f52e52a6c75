"""Jensen-Shannon divergence between the outputs before and after a layer is quantized.

The objective of AMQ (Lee et al. 2025, arXiv 2509.12019), in nats. Its own sensitivities are of a
layer at 2 bits while all others have 4: ``JSD(context="w4a16")``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
class JSD:
    """``(KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2``, from 0 to ln 2.

    p is what the float network says of each sample or token, q what the quantized one does. A loss
    of the task's own is not asked. The standard error is over samples.

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
        """Table in ``JSD (nats)``, a token where there are tokens.

        Raises:
            ValueError: Batches, a model or a format it cannot work with, or outputs that are no
                logits.
        """
        asked = OneAtATime("jsd", _measure, self.context, self.draws, self.seed)
        return asked.estimate(task, network, options, recipe=recipe, sweep=sweep)


def jensen_shannon(reference: Tensor, output: Tensor) -> Tensor:
    """(N,) divergence of each sample's logits over the last axis, averaged over tokens."""
    if reference.dim() not in (2, 3):
        raise ValueError(
            f"the output has shape {tuple(reference.shape)}; wanted logits, (samples, classes) or"
            " (samples, tokens, classes): use 'mse' or 'sqnr' for other outputs"
        )
    log_p, log_q = (x.double().log_softmax(-1) for x in (reference, output))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    each = (_relative(log_p, log_m) + _relative(log_q, log_m)) / 2
    return each.reshape(len(each), -1).mean(1)


def _relative(log_p: Tensor, log_m: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_m)).sum(-1)  # a masked class is no loss


def _measure(_: Task) -> Measure:
    return compared(jensen_shannon, _unit)


def _unit(reference: Tensor) -> str:
    return "JSD (nats per token)" if reference.dim() == 3 else "JSD (nats)"
