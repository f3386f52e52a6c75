"""The whole frontier of one cost by label setting: every choice that none beats, class by class.

Nemhauser and Ullmann, "Discrete Dynamic Programming and Capital Allocation", Management Science 15
(1969): the frontier of the first classes, shifted by each option of the next and merged, is the
frontier of one class more. Classes whose options differ most in cost come first, which leaves two
to five times fewer labels than a random order. Every layer's labels are kept, 16 bytes each, and a
choice is read backwards out of them when it is asked for.

Where there would be more labels than allowed, those whose losses lie close together are made one,
the cheapest, which from then on carries the least gain of all it stands for: what the frontier
says it may have missed is therefore proven, the linear relaxation (Sinha and Zoltners 1979) taken
where that proves more.
"""

import math
from dataclasses import dataclass

import numpy as np

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.front import Compiled, Front, along, check_compiled, loaded
from mpsearch.solvers.knapsack import Integers, Knapsack, knapsack
from mpsearch.solvers.labels import Labels, Merge, Options, Trail, merged, thinned, undominated
from mpsearch.solvers.supported import Walk, walked

NAME = "frontier-exact"
WORTH = 2_000_000  # labels above which loading compiled code pays
FEWEST = 64  # labels that a step is always left
WIDER = 1.5  # how much farther apart labels are kept, until they are few enough


@dataclass(frozen=True)
class FrontierExact:
    """The whole exact frontier along one sum cost, or one with a proven error where it is large.

    Attributes:
        states: Labels that are kept in all (16 bytes each). Beyond them labels are merged.
        epsilon: The error aimed at from then on: a choice no dearer than another loses at most
            ``1 + epsilon`` times as much above the least loss. What is proven is stated by the
            front, and may be more where ``states`` is small; 0 refuses instead.
        compiled: Whether compiled code runs; ``auto`` where there are many labels and numba is
            installed.
    """

    states: int = 20_000_000
    epsilon: float = 1e-2
    compiled: Compiled = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.states < 1:
            raise ValueError(f"states is {self.states}; allow at least one label")
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon is {self.epsilon}; give a finite number, 0 or above")
        check_compiled(self.compiled)

    def frontier(self, problem: Problem, cost: str | None = None) -> Front:
        """Every point along a cost: by default the budget's, else the first that adds up.

        A budget on the cost cuts the frontier there; where nothing is feasible it has no points.
        ``ValueError`` for interactions, side constraints, stages and budgets on other sums.
        """
        sack = knapsack(along(problem, cost, NAME), NAME)
        return Front.empty(NAME) if sack is None else self._front(sack)

    def solve(self, problem: Problem) -> Solution:
        """The best point within the budget."""
        sack = knapsack(problem, NAME)
        if sack is None:
            return infeasible(NAME)
        if not len(sack.usage):
            return sack.solution(sack.gain.argmin(axis=1), 0, NAME)
        front = self._front(sack)
        for index in range(len(front) - 1, -1, -1):
            picks = front.picks(index)
            if problem.feasible(sack.choice(picks)):  # the last one, but for the budget's rounding
                return sack.solution(picks, int(front.least[-1]), front.solver)
        return infeasible(NAME)

    def _front(self, sack: Knapsack) -> Front:
        trail = self._trail(sack)
        name = NAME + ", compiled" * trail.compiled
        last = trail.last
        if last.least is None:
            return Front.of(sack, last.cost, last.loss, trail, name)
        return _joined(sack, trail, walked(sack), name)

    def _trail(self, sack: Knapsack) -> Trail:
        """The labels of every class, made fewer where the rest would be too many."""
        first, classes = undominated(sack.gain, sack.usage[0])
        labels = Labels(np.zeros(1, np.int64), np.zeros(1, np.int64))
        steps: list[tuple[Options, Labels]] = []
        left = self.states
        merge = self._merge(0)
        for turn, options in enumerate(classes):
            steps.append((options, labels))
            labels = merge(labels, options, sack.room[0])
            ahead = len(classes) - turn
            if len(labels.cost) * ahead > left:
                labels = self._thinned(labels, left // ahead, ahead)
            left -= len(labels.cost)
            merge = self._merge(self.states - left + len(labels.cost) * (ahead - 1))
        return Trail(first, tuple(steps), labels, merge is not merged)

    def _thinned(self, labels: Labels, most: int, ahead: int) -> Labels:
        """Fewer labels, at a share of the error that is left for each class ahead."""
        if not self.epsilon:
            raise ValueError(
                f"the exact frontier has more than states={self.states} labels; raise states"
                " (16 bytes each), or allow an epsilon such as 0.01"
            )
        step = math.log1p(self.epsilon) / ahead
        return thinned(labels, step, WIDER, max(most, FEWEST))

    def _merge(self, expected: int) -> Merge:
        """How labels are merged, from the number there will be at least."""
        code = loaded("compiled_frontier", self.compiled, pays=expected >= WORTH)
        merge: Merge = merged if code is None else code.merged
        return merge


def _joined(sack: Knapsack, trail: Trail, walk: Walk, name: str) -> Front:
    """The labels that are left together with the supported points, and what both prove."""
    room, last = sack.room[0], trail.last
    inside = int(np.searchsorted(walk.usage, room, side="right"))
    cost = np.append(last.cost, walk.usage[:inside])
    gain = np.append(last.loss, walk.gain[:inside])
    order = np.lexsort((gain, cost))
    ahead = np.append(np.iinfo(np.int64).max, np.minimum.accumulate(gain[order])[:-1])
    spots = order[gain[order] < ahead]
    cost, gain = cost[spots], gain[spots]
    stands = np.minimum.accumulate(last.loss if last.least is None else last.least)

    def proven(within: Integers) -> Integers:
        label = np.searchsorted(last.cost, within, side="right") - 1
        return np.minimum(np.maximum(stands[label], walk.within(within)), gain)

    both = _Both(trail, walk)
    bounds = (proven(cost), proven(np.append(cost[1:] - 1, room)))
    return Front.of(sack, cost, gain, both, name, spots=spots, bounds=bounds)


@dataclass(frozen=True, eq=False)
class _Both:
    """The spots of the labels, and after them those of the walk."""

    labels: Trail
    walk: Walk

    def picks(self, spots: Integers) -> Integers:
        """(m, n) the entry of each class."""
        count = len(self.labels.last.cost)
        of_walk = spots >= count
        rows = self.walk.picks(np.where(of_walk, spots - count, 0))
        rows[~of_walk] = self.labels.picks(spots[~of_walk])
        return rows
