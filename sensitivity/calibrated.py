"""A score that only ranks, brought to the unit of the loss by a few real measurements.

By isotonic regression (Ayer, Brunk, Ewing, Reid and Silverman 1955): of all rising maps from scores
to the losses that were measured, the one of least squares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from mpsearch.batches import checked
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.protocols import Estimator
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.registry import make
from mpsearch.sensitivity.additive import misordered
from mpsearch.sensitivity.kl import measure_of
from mpsearch.sensitivity.one_at_a_time import OneAtATime
from mpsearch.sensitivity.surroundings import check_context
from mpsearch.sweep import Sweep
from mpsearch.tables import Floats, Mask, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Calibrated:
    """Losses that rise with the scores of another estimator: ``calibrated:taylor``, say.

    A place is a layer at an option; one that changes nothing has no loss. The others are put in the
    order of their scores. The first and the last are measured, as ``kl`` does, and one drawn from
    each of ``measurements`` - 2 equal parts of what is between. A rising map is fitted to these, so
    that at measured places the order of the scores is all that counts; between them it is straight.
    Scores are taken by their logarithms where all are above 0, losses where all measured ones are.

    The standard error is the root mean square of what is missed at measured places other than the
    ends by maps fitted without them; where logarithms were fitted it is a share of the loss.

    Attributes:
        score: An estimator or its name; larger is more sensitive.
        measurements: How many places are measured, at most.
        seed: Of those drawn, and of an estimator given by its name.
        context: What the other layers have while a place is measured, and where an estimator given
            by its name takes its score: nothing done to them, or ``random`` options.
        draws: How many random networks.
    """

    score: str | Estimator
    measurements: int = 16
    seed: int = 0
    context: Literal["alone", "random"] = "alone"
    draws: int = 4

    def __post_init__(self) -> None:
        """Refuse fewer places than one can be left out of, and other contexts."""
        if self.measurements < 3:
            raise ValueError(
                f"measurements is {self.measurements!r}; wanted 3 or more: the ends of the order"
                " and something between them"
            )
        if self.context not in ("alone", "random"):
            raise ValueError(
                f"context is {self.context!r}; wanted 'alone' or 'random': round an allocation what"
                " is gained has no least place, so no score ranks it"
            )
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
            LookupError: No estimator has this name.
            ValueError: What the estimator refuses; batches, a model or a format it cannot work
                with; a loss that is not finite.
        """
        by = self.score
        settings = {"seed": self.seed, "context": self.context, "draws": self.draws}
        estimator = make("sensitivity", by, **settings) if isinstance(by, str) else by
        check_deterministic(task.model, checked(task.batches)[0])
        scores: Table = estimator.estimate(task, network, options, recipe=recipe, sweep=sweep)
        where = scores.allowed & [changes(option) for option in options]
        places = np.argwhere(where)
        given = scores.values[where].astype(np.float64)
        few = self._few(given)
        measured = self._measured(where, places[few])
        really = measured.estimate(task, network, options, recipe=recipe, sweep=sweep)
        losses = really.values[tuple(places[few].T)]
        values, stderr = np.zeros(where.shape), np.zeros(where.shape)
        values[where], errors = _risen(given[few], losses, given)
        if errors is not None:
            stderr[where] = errors
        wrong = misordered(given[few], losses)
        note = f"{len(few)} were measured; scores put {wrong:.0%} of their pairs in the wrong order"
        return Table(
            network.layers,
            tuple(options),
            values,
            really.unit,
            stderr=None if errors is None else stderr,
            allowed=scores.allowed,
            notes={note: where},
        )

    def _measured(self, where: Mask, few: Places) -> OneAtATime:
        """As ``kl`` does, at (N, 2) few of the places: the numbers of a layer and an option."""
        only = np.zeros_like(where)
        only[tuple(few.T)] = True
        return OneAtATime("kl", measure_of, self.context, self.draws, self.seed, only)

    def _few(self, scores: Floats) -> Places:
        """Which of the places are measured."""
        order = np.argsort(scores, kind="stable")
        if len(order) <= self.measurements:
            return order
        random = np.random.default_rng(self.seed)
        parts = np.array_split(order[1:-1], self.measurements - 2)
        return np.array([order[0], *map(random.choice, parts), order[-1]])


def _risen(at: Floats, losses: Floats, wanted: Floats) -> tuple[Floats, Floats | None]:
    """Losses at the wanted scores and, where there is what to judge by, their standard errors."""
    if not len(losses):
        return losses, None
    if (wanted > 0).all():
        at, wanted = np.log(at), np.log(wanted)
    share = bool((losses > 0).all())
    y = np.log(losses) if share else losses
    fit = rising(at, y, wanted)
    values = np.exp(fit) if share else fit
    inner = np.flatnonzero((at > at.min()) & (at < at.max()))
    missed = [y[i] - rising(np.delete(at, i), np.delete(y, i), at[i : i + 1])[0] for i in inner]
    if not missed:
        return values, None
    error = float(np.sqrt(np.mean(np.square(missed))))
    return values, error * (values if share else np.ones(len(values)))


def rising(at: Floats, y: Floats, wanted: Floats) -> Floats:
    """The rising map nearest to ``y`` at positions ``at``, at those wanted; flat beyond."""
    positions, which, counts = np.unique(at, return_inverse=True, return_counts=True)
    means = np.bincount(which, y) / counts
    fit: Floats = np.interp(wanted, positions, isotonic_regression(means, weights=counts).x)
    return fit
