"""At most so many formats in the network: sets of options by their bounds, best first.

A set of D of the K options leaves an ordinary problem. Each set's Lagrangian bound, first at the
multipliers of the whole problem, then at its own, says how little it may lose; sets are solved
exactly in the order of their bounds, until the next cannot be better (Land and Doig, "An Automatic
Method of Solving Discrete Programming Problems", Econometrica 28, 1960, with all branching done at
once).
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, Status, infeasible
from mpsearch.solvers.dual import Classes, multipliers, priced
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.tables import Mask

Integers = NDArray[np.int64]
MOST_SETS = 100_000


@dataclass(frozen=True)
class FewFormats:
    """The least loss within every budget with at most so many different options in all.

    Layers that may take only one option count with it.

    Attributes:
        most: How many options the whole network may use.
    """

    most: int

    def __post_init__(self) -> None:
        """Refuse a network without formats."""
        if self.most < 1:
            raise ValueError(f"most is {self.most!r}; a network has at least one format")

    def solve(self, problem: Problem) -> Solution:
        """One option for every layer.

        ``ValueError`` for interactions, side constraints and stages, and for more than 100,000
        sets of options.
        """
        given = knapsack(problem, "few-formats", rows=None)
        if given is None:
            return infeasible("few-formats")
        count = math.comb(len(problem.loss.options), self.most)
        if count > MOST_SETS:
            raise ValueError(
                f"{count} sets of {self.most} options are more than {MOST_SETS}; mask options that"
                " are not wanted, or take fewer or more formats"
            )
        return _Search(problem, given, self.most).solution()


class _Search:
    """The sets of options, least bound first."""

    def __init__(self, problem: Problem, given: Knapsack, most: int) -> None:
        self.problem, self.given = problem, given
        self.classes = Classes(given.gain, given.usage, np.array(given.room, np.int64))
        y, _ = multipliers(self.classes)
        bound, raised = priced(self.classes, y)
        options = range(len(problem.loss.options))
        self.queue: list[tuple[float, bool, tuple[int, ...]]] = []
        for chosen in itertools.combinations(options, min(most, len(options))):
            keep = self._entries(chosen)
            if keep.any(axis=1).all():
                more = float(np.where(keep, raised, np.inf).min(axis=1).sum())
                self.queue.append((bound + more, False, chosen))
        heapq.heapify(self.queue)

    def _entries(self, chosen: Sequence[int]) -> Mask:
        """(n, K) which entries are of these options."""
        wanted = np.zeros(len(self.problem.loss.options), bool)
        wanted[list(chosen)] = True
        return np.asarray(wanted[self.given.columns])

    def _bound(self, chosen: Sequence[int]) -> float:
        """A set's bound at its own multipliers, in gains."""
        keep = self._entries(chosen)
        entry = np.where(keep, np.arange(keep.shape[1]), keep.argmax(axis=1)[:, None])
        fewer = Classes(
            np.take_along_axis(self.classes.gain, entry, axis=1),
            np.take_along_axis(self.classes.usage, entry[None], axis=2),
            self.classes.room,
        )
        bound, _ = priced(fewer, multipliers(fewer)[0])
        return bound if bound <= fewer.most else math.inf

    def _solve(self, chosen: Sequence[int]) -> Solution:
        """The best answer with these options only."""
        from mpsearch.solvers.exact import Exact
        from mpsearch.solvers.milp import Milp

        loss = self.problem.loss
        only = np.isin(np.arange(len(loss.options)), chosen)
        fewer = replace(self.problem, loss=replace(loss, allowed=loss.allowed & only))
        solver = Exact() if len(self.given.budgets) < 2 else Milp()
        return solver.solve(fewer)

    def solution(self) -> Solution:
        """The best of all sets, and what none can be below."""
        best, floor = infeasible("few-formats"), math.inf
        while self.queue:
            bound, own, chosen = heapq.heappop(self.queue)
            least = self.given.bound(bound)
            if least >= min(best.loss, floor):
                floor = min(floor, least)
                break
            if not own:
                heapq.heappush(self.queue, (max(bound, self._bound(chosen)), True, chosen))
                continue
            found = self._solve(chosen)
            floor = min(floor, max(found.bound, least))
            if found.loss < best.loss:
                best = replace(found, solver=f"few-formats ({found.solver})")
        if not best.choice:
            status = Status.INFEASIBLE if floor == math.inf else Status.UNKNOWN
            return replace(best, status=status, bound=floor)
        floor = min(floor, best.loss)
        return replace(best, status=self.problem.status(best.loss, floor), bound=floor)
