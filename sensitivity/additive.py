"""A sum over layers fitted to a transform of the losses of whole allocations, and its certificate.

With f a loss the transform is ``-log(1 - k f) / k``: f itself where k = 0, and near it where f is
small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsearch.tables import Floats, Mask

Choices = NDArray[np.int64]
R2, MISORDERED = 0.85, 0.02
"""What Hill 2026 finds at 4-bit weights and activations, and what is asked of a fit here."""


@dataclass(frozen=True)
class Certificate:
    """How predictions of losses did on allocations that they were not fitted to.

    Attributes:
        allocations: How many there were.
        r2: ``1 - sum (measured - predicted)^2 / sum (measured - mean)^2``.
        misordered: Which share of pairs of different loss was put in the wrong order; a pair
            predicted equal counts half.
        residual: Mean of measured - predicted.
        stderr: Its standard error.
    """

    allocations: int
    r2: float
    misordered: float
    residual: float
    stderr: float

    @classmethod
    def of(cls, predicted: Floats, measured: Floats) -> "Certificate":
        """Compare predictions with measurements of the same two or more allocations."""
        if predicted.shape != measured.shape or predicted.ndim != 1 or len(measured) < 2:
            raise ValueError(
                f"got {predicted.shape} predictions and {measured.shape} measurements; wanted one"
                " of each for two allocations or more"
            )
        error = measured - predicted
        spread = float(np.square(measured - measured.mean()).sum())
        missed = float(np.square(error).sum())
        return cls(
            len(measured),
            1 - missed / spread if spread else float(missed == 0),
            misordered(predicted, measured),
            float(error.mean()),
            float(error.std(ddof=1)) / len(error) ** 0.5,
        )

    @property
    def holds(self) -> bool:
        """Whether the predictions may stand for measurements when allocations are compared."""
        return self.r2 >= R2 and self.misordered <= MISORDERED

    def __str__(self) -> str:
        """A sentence, which says what to do where it does not hold."""
        figures = (
            f"{self.allocations} held-out allocations have R2 {self.r2:.3f} and"
            f" {100 * self.misordered:.1f}% of pairs misordered"
        )
        if self.holds:
            return figures
        return f"{figures}; wanted {R2} and at most {100 * MISORDERED:.0f}%: choose by measuring"


def misordered(predicted: Floats, measured: Floats) -> float:
    """The share of pairs of different measurement that predictions put in the wrong order."""
    order = np.sign(measured[:, None] - measured)
    wrong = 1 - order * np.sign(predicted[:, None] - predicted)
    pairs = order != 0
    return float(wrong[pairs].mean() / 2) if pairs.any() else 0.0


def bent(losses: Floats, curvature: float) -> Floats:
    """``-log(1 - k f) / k``, infinite where that has no value."""
    if curvature == 0:
        return losses
    with np.errstate(divide="ignore", invalid="ignore"):
        out: Floats = -np.log1p(-curvature * losses) / curvature
    return np.where(np.isfinite(out), out, math.inf)


def unbent(totals: Floats, curvature: float) -> Floats:
    """The losses f of ``-log(1 - k f) / k``."""
    if curvature == 0:
        return totals
    with np.errstate(over="ignore"):
        out: Floats = -np.expm1(-curvature * totals) / curvature
    return out


@dataclass(frozen=True, eq=False)
class Additive:
    """A sum over layers.

    Attributes:
        curvature: k of the transform whose values it predicts.
        values: (L, K), each layer's numbers up to a constant.
        level: What is added to the sum.
        covariance: (L K, L K) of the values.
        alone: (N,) what it predicts for each allocation when fitted to all others.
    """

    curvature: float
    values: Floats
    level: float
    covariance: Floats
    alone: Floats

    @classmethod
    def fitted(cls, choices: Choices, losses: Floats, options: int, curvature: float) -> "Additive":
        """By least squares. ``ValueError`` where the choices leave some number undetermined."""
        layers = choices.shape[1]
        wanted = bent(losses, curvature)
        x = np.zeros((len(choices), layers, options))
        np.put_along_axis(x, choices[..., None], 1, axis=2)
        seen = x.any(axis=0).ravel()
        center = x.mean(axis=0)
        x = (x - center).reshape(len(choices), -1)
        inverse = np.linalg.pinv(x, rcond=1e-10)
        numbers = inverse @ (wanted - wanted.mean())
        hat = x @ inverse
        rank = round(float(np.trace(hat)))
        if rank < seen.sum() - layers:
            raise ValueError(
                f"{len(choices)} allocations tell only {rank + 1} of {seen.sum() - layers + 1}"
                " numbers apart; give more draws, or another seed"
            )
        left = wanted - wanted.mean() - x @ numbers
        freedom = len(choices) - rank - 1
        variance = float(np.square(left).sum()) / freedom if freedom else 0.0
        leverage = np.minimum(np.diag(hat) + 1 / len(choices), 1 - 1e-9)
        return cls(
            curvature,
            numbers.reshape(layers, options),
            float(wanted.mean() - center.ravel() @ numbers),
            variance * (inverse @ inverse.T),
            wanted - left / (1 - leverage),
        )

    @classmethod
    def best(
        cls, choices: Choices, losses: Floats, options: int, bends: Sequence[float]
    ) -> "Additive":
        """The curvature that misorders fewest allocations, each left out of its own prediction.

        ``bends`` are curvatures times the largest loss; among equals the least bend is taken.
        """
        largest = float(np.abs(losses).max()) or 1.0
        bends = [b for b in bends if np.isfinite(bent(losses, b / largest)).all()] or [0.0]
        fits = [cls.fitted(choices, losses, options, bend / largest) for bend in bends]
        return min(fits, key=lambda f: (misordered(f.alone, losses), abs(f.curvature)))

    def totals(self, choices: Choices) -> Floats:
        """(N,) the sum of each choice."""
        chosen: Floats = np.take_along_axis(self.values[None], choices[..., None], axis=2)
        totals: Floats = chosen.sum(axis=(1, 2)) + self.level
        return totals

    def losses(self, choices: Choices) -> Floats:
        """(N,) the predicted loss of each choice."""
        return unbent(self.totals(choices), self.curvature)

    def anchored(self, zero: Sequence[bool], mask: Mask) -> tuple[Floats, Floats, float]:
        """Values, standard errors and level with one option of each layer at 0.

        It is the one that ``zero`` marks, or where a layer may take none of these its least one.
        """
        rows = np.arange(len(mask))
        marked = mask & np.asarray(zero)
        least = np.where(mask, self.values, np.inf).argmin(axis=1)
        anchor = np.where(marked.any(axis=1), marked.argmax(axis=1), least)
        base = self.values[rows, anchor]
        values = np.where(mask & ~marked, self.values - base[:, None], 0.0)
        each = self.covariance.reshape(*mask.shape, *mask.shape)[rows, :, rows]  # (L, K, K)
        own = np.diagonal(each, axis1=1, axis2=2)
        shared = each[rows, anchor]
        variance = own + own[rows, anchor][:, None] - 2 * shared
        stderr = np.where(mask & ~marked, np.sqrt(np.maximum(variance, 0)), 0.0)
        stderr[rows, anchor] = 0
        return values, stderr, self.level + float(base.sum())
