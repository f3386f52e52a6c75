"""Signal over quantization noise of the network's output in decibels, one layer quantized.

As in MixDQ (Zhao et al. 2024, arXiv 2405.17873), whose program adds up the decibels of all layers:
sums over the whole calibration set, then one ratio.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

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
class SQNR:
    """``ceiling - 10 log10(sum t^2 / sum (q - t)^2)``: t in float, q quantized, not below 0.

    A table holds losses, so that it is how far the ratio falls short of ``ceiling``, which an
    output without noise has not to exceed. Decibels of layers do not add up to those of the
    network: the score ranks; ``MSE`` is what adds up. A loss of the task's own is not asked. The
    standard error is over samples, by the delta method.

    Attributes:
        context: What the other layers have, as in ``KL``.
        draws: How many random networks.
        seed: Of their options.
        ceiling: Decibels that count as no noise at all.
    """

    context: Context = "alone"
    draws: int = 4
    seed: int = 0
    ceiling: float = 120.0

    def __post_init__(self) -> None:
        """Refuse what is no context, and a ceiling without a number."""
        check_context(self.context, self.draws)
        if not 0 < self.ceiling < math.inf:
            raise ValueError(f"ceiling is {self.ceiling!r} dB; wanted a positive number")

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of rank scores.

        Raises:
            ValueError: Batches, a model or a format it cannot work with, or an output that is zero
                in float.
        """
        measure = decibels(self.ceiling)
        title = f"sqnr {self.ceiling}"
        asked = OneAtATime(title, lambda _: measure, self.context, self.draws, self.seed)
        return asked.estimate(task, network, options, recipe=recipe, sweep=sweep)


def decibels(ceiling: float) -> Measure:
    """How far the ratio is below a ceiling."""
    unit = f"rank score (SQNR: dB short of {ceiling:g})"
    return compared(powers, lambda _: unit, partial(shortfall, ceiling=ceiling))


def powers(reference: Tensor, output: Tensor) -> Tensor:
    """(N, 2) signal and noise of each sample, its squares summed."""
    error = output.double() - reference.double()
    squares = [x.double().square().reshape(len(x), -1).sum(1) for x in (reference, error)]
    return torch.stack(squares, dim=1)


def shortfall(found: Tensor, ceiling: float = math.inf) -> Tensor:
    """(N,) a share for each sample of how far the ratio is below a ceiling; their mean is that.

    ``found`` are the :func:`powers` of all samples. A sample's share is the first-order change of
    the ratio by it: its spread is that of the ratio.
    """
    signal, noise = found.unbind(1)
    if signal.sum() == 0:
        raise ValueError(
            "the output is zero on all batches, so it has no signal to compare noise with; give"
            " batches the model answers to, or use 'mse'"
        )
    ratio = 10 * torch.log10(signal.sum() / noise.sum())
    if ratio >= ceiling:
        return torch.zeros_like(signal)
    shares = noise / noise.mean() - signal / signal.mean()
    return ceiling - ratio + 10 / math.log(10) * shares
