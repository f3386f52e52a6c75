"""Every choice tried: the reference that other solvers are judged by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, Status, expand, infeasible
from mpsearch.tables import Cost, Floats, Stages

ROUNDING = 1e-12  # of the size of a sum: what passes a limit by less is looked at exactly


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
        """The best choice; ``ValueError`` where there are more than ``limit``."""
        merged, groups = problem.merged()
        count = math.prod(merged.loss.allowed.sum(axis=1).tolist())
        if count > self.limit:
            raise ValueError(
                f"{count} choices are more than limit={self.limit}; use Milp, or raise the limit"
            )
        every = _Choices(merged)
        loss = every.losses()
        kept = np.flatnonzero(every.feasible())
        keys = [every.cost(cost)[kept] for cost in merged.costs[:1]]
        for index in kept[np.lexsort([*keys, loss[kept]])]:
            choice = expand(every.choice(int(index)), groups)
            if problem.feasible(choice):
                best = problem.total(choice)
                return Solution(choice, best, Status.OPTIMAL, best, "exhaustive")
        return infeasible("exhaustive")


class _Choices:
    """Every choice of a problem without ties, in the order of layers and options."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.columns = [np.flatnonzero(row) for row in problem.loss.allowed]
        sizes = [len(columns) for columns in self.columns]
        self.strides = [math.prod(sizes[row + 1 :]) for row in range(len(sizes))]
        self.count = math.prod(sizes)

    def choice(self, index: int) -> tuple[int, ...]:
        """The choice of an index."""
        pairs = zip(self.columns, self.strides, strict=True)
        return tuple(int(columns[index // stride % len(columns)]) for columns, stride in pairs)

    def takes(self, row: int, column: int) -> Floats:
        """(count,) 1 where a choice gives a layer an option, else 0."""
        digits = np.repeat(self.columns[row] == column, self.strides[row]).astype(np.float64)
        return np.tile(digits, self.count // len(digits))

    def losses(self) -> Floats:
        """(count,) the loss of every choice."""
        pairs = (
            i.loss * self.takes(i.first, i.first_option) * self.takes(i.second, i.second_option)
            for i in self.problem.interactions
        )
        return self._total(self.problem.loss.values, self.problem.loss.fixed, *pairs)

    def cost(self, cost: Cost) -> Floats:
        """(count,) a cost's total for every choice."""
        if isinstance(cost, Stages):
            stages = [self._terms(stage) for stage in cost.stages]
            return np.asarray(np.max(stages, axis=0) + cost.fixed)
        if cost.reduce == "sum":
            return self._total(cost.values, cost.fixed)
        largest = np.full(1, -np.inf)
        for columns, row in zip(self.columns, cost.values, strict=True):
            largest = np.maximum(largest[:, None], row[columns]).ravel()
        return np.asarray(largest + cost.fixed)

    def feasible(self) -> NDArray[np.bool_]:
        """(count,) which choices break no budget and no constraint by more than rounding."""
        keeps = np.ones(self.count, bool)
        for budget in self.problem.budgets:
            keeps &= _at_most(self.cost(budget.cost), budget.limit)
        for constraint in self.problem.constraints:
            total = self._terms(constraint.terms)
            if constraint.most is not None:
                keeps &= _at_most(total, constraint.most)
            if constraint.least is not None:
                keeps &= _at_most(-total, -constraint.least)
        return keeps

    def _terms(self, terms: Sequence[tuple[int, int, float]]) -> Floats:
        values = np.zeros(self.problem.loss.values.shape)
        for row, column, number in terms:
            values[row, column] += number
        return self._total(values)

    def _total(self, values: NDArray[Any], *more: Any) -> Floats:
        """(count,) the chosen numbers and more added up, with what rounding takes kept aside."""
        high, low = np.zeros(1), np.zeros(1)
        for columns, row in zip(self.columns, values.astype(np.float64), strict=True):
            high, error = _sum(high[:, None], row[columns])
            high, low = high.ravel(), (low[:, None] + error).ravel()
        for number in more:
            high, error = _sum(high, number)
            low = low + error
        return np.asarray(high + low)


def _sum(a: Any, b: Any) -> tuple[Any, Any]:
    """The rounded sum, and what rounding took (Knuth, The Art of Computer Programming, 4.2.2)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _at_most(totals: Floats, limit: float) -> NDArray[np.bool_]:
    size = float(np.abs(totals).max()) + abs(limit)
    return np.asarray(totals <= limit + ROUNDING * size)
