"""Every supported point of a frontier, in one walk down the hulls' edges sorted by slope.

Sinha and Zoltners, "The Multiple-Choice Knapsack Problem", Operations Research 27 (1979), and Dyer
(1984): the edges of all classes' convex hulls, the steepest first, lead from the cheapest choice to
the one of least loss through every choice that is best for some price of cost against loss. Between
two of them the straight line is the linear relaxation: no choice lies below it, but for slopes that
are equal to the last bit of a float.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpsearch.problem import Problem
from mpsearch.solvers.front import Compiled, Front, along, check_compiled, loaded
from mpsearch.solvers.hull import Hull, hull
from mpsearch.solvers.knapsack import ULP, Integers, Knapsack, knapsack
from mpsearch.tables import Floats

NAME = "supported"
Wrap = Callable[[Integers, Integers], Hull]
Order = Callable[[Floats], Integers]
WORTH = 300_000  # classes above which loading compiled code pays


@dataclass(frozen=True)
class Supported:
    """All supported points along one sum cost, each proven the best for what it costs.

    Attributes:
        compiled: Whether compiled code runs; ``auto`` where there are many layers and numba is
            installed.
    """

    compiled: Compiled = "auto"

    def __post_init__(self) -> None:
        """Check the setting."""
        check_compiled(self.compiled)

    def frontier(self, problem: Problem, cost: str | None = None) -> Front:
        """The points: along the budget's cost by default, else the first that adds up.

        A budget on the cost cuts them off; where nothing is feasible there are none.
        ``ValueError`` for interactions, side constraints, stages and budgets on other sums.
        """
        sack = knapsack(along(problem, cost, NAME), NAME)
        if sack is None:
            return Front.empty(NAME)
        code = loaded("compiled", self.compiled, pays=len(sack.gain) >= WORTH)
        walk = walked(sack) if code is None else walked(sack, code.hull, code.steepest)
        count = int(np.searchsorted(walk.usage, sack.room[0], side="right"))
        gain = walk.gain[:count]
        room = np.array([sack.room[0]])
        between = np.append(gain[1:], np.minimum(walk.within(room), gain[-1:]))
        name = NAME + ", compiled" * (code is not None)
        return Front.of(sack, walk.usage[:count], gain, walk, name, bounds=(gain, between))


@dataclass(frozen=True, eq=False)
class Walk:
    """A walk down E edges: the choices before and after each.

    Attributes:
        first: (n,) the entry of each class at the start.
        owner: (E,) the class that changes at each edge.
        entry: (E,) the entry it changes to.
        usage: (E + 1,) strictly rising.
        gain: (E + 1,) strictly falling.
    """

    first: Integers
    owner: Integers
    entry: Integers
    usage: Integers
    gain: Integers

    def picks(self, spots: Integers) -> Integers:
        """(m, n) the entry of each class after each of some numbers of edges."""
        rows = np.tile(self.first, (len(spots), 1))
        for row, spot in zip(rows, spots.tolist(), strict=True):
            row[self.owner[:spot]] = self.entry[:spot]  # of a class's edges the last one counts
        return rows

    def within(self, room: Integers) -> Integers:
        """The least that the linear relaxation gains within each room, rounding allowed for."""
        line = np.interp(room, self.usage, self.gain)
        rounding = (len(self.usage) + 8) * ULP * float(self.gain[0])
        return np.ceil(line - rounding).astype(np.int64).clip(0)


def steepest(slopes: Floats) -> Integers:
    """The order of falling slopes, equal ones as they stand."""
    order = np.argsort(-slopes)  # the quick sort, right unless there are equal slopes
    fall = slopes[order]
    return order if (fall[1:] < fall[:-1]).all() else np.argsort(-slopes, kind="stable")


def walked(sack: Knapsack, wrap: Wrap = hull, sort: Order = steepest) -> Walk:
    """The walk from the least usage of a problem's only row to the least gain."""
    corners = wrap(sack.gain, sack.usage[0])
    order = sort(corners.slope)
    rows = np.arange(len(corners.first))
    start = int(sack.gain[rows, corners.first].sum())
    usage = np.append(0, corners.usage[order]).cumsum()
    gain = start - np.append(0, corners.gain[order]).cumsum()
    return Walk(corners.first, corners.owner[order], corners.entry[order], usage, gain)
