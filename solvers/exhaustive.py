"""Every choice tried: the reference that other solvers are judged by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import RELATIVE_TOLERANCE, Problem, Solution, Status, expand, infeasible
from mpsearch.tables import Cost, Floats, Stages

Terms = Sequence[tuple[int, int, float]]


@dataclass(frozen=True)
class Exhaustive:
    """The least loss within every budget, found by pricing every choice.

    Of equal losses the one that costs least in the first cost is taken, then the first in the
    order of layers and options.

    Attributes:
        limit: Most choices that are tried.
    """

    limit: int = 1_000_000

    def solve(self, problem: Problem) -> Solution:
        """The best choice, proven by having seen all; ``ValueError`` where they are too many."""
        merged, groups = problem.merged()
        count = math.prod(merged.loss.allowed.sum(axis=1).tolist())
        if count > self.limit:
            raise ValueError(
                f"{count:.4g} choices are more than limit={self.limit}; use Milp instead, or give"
                " Exhaustive a larger limit"
            )
        every = _Choices(merged)
        loss = every.losses()
        keys = [every.cost(merged.costs[0]), loss] if merged.costs else [loss]
        # Rounding may let a choice through that is just over a limit: the first that is not, exactly.
        for index in np.lexsort(keys):
            choice = expand(every.choice(int(index)), groups)
            if loss[index] < math.inf and problem.feasible(choice):
                best = problem.total(choice)
                return Solution(choice, best, Status.OPTIMAL, best, "exhaustive")
        return infeasible("exhaustive")
