"""The multiple-choice knapsack by dynamic programming over an integer budget, as textbooks have it."""

import math
from collections.abc import Sequence


def least_loss(
    loss: Sequence[Sequence[float]], cost: Sequence[Sequence[int]], budget: int
) -> float:
    """The least sum of losses, one option a layer, of costs that sum to the budget at most."""
    best = [0.0] + [math.inf] * budget
    for losses, costs in zip(loss, cost, strict=True):
        best = [
            min(
                (best[used - c] + s for s, c in zip(losses, costs, strict=True) if c <= used),
                default=math.inf,
            )
            for used in range(budget + 1)
        ]
    return min(best)
