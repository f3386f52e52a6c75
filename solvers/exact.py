"""The least loss within one sum budget, proven, for any number of layers.

Pisinger's expanding core (1995) on the hulls of Sinha and Zoltners (1979) and the relaxation of
Dyer and Zemel (1984): hull.py, relaxation.py, core.py and search.py. All sums are of integers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.core import Core, core
from mpsearch.solvers.hull import hull
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.solvers.layer_order import first
from mpsearch.solvers.relaxation import improved, relaxed
from mpsearch.solvers.search import Found, Limits, States, grown, search
from mpsearch.tables import Table

Integers = NDArray[np.int64]
Glance = Callable[[Core, int, Limits], Found | None]
ROUNDING = 2.0**-45  # of the sum of the largest gains: what float bounds may be off by, and more
PAYS = 2_000_000  # states grown in numpy before compiled code is loaded: about a second
MANY = 1 << 16  # classes above which no common divisor is looked for
GLANCE = 64  # the part of the states that a first look may take


@dataclass(frozen=True)
class Exact:
    """The least loss within one sum budget, found and proven by an expanding core.

    Of equal losses the one that costs least is taken, then the first in the order of layers and
    options; where more equals stand in line than ``states`` allows for, one of them.

    Attributes:
        gap: Stop when the answer is proven within this part of the problem's span (the sum over
            layers of largest - smallest loss); 0 goes on to the very optimum.
        states: Most partial answers that are kept in all, 16 bytes and more each; where more are
            needed the bound is what was proven without them.
        compiled: Whether numba runs: ``auto`` loads it when the problem turns out to be hard. The
            answers are the same, and without numba all runs in numpy.
    """

    gap: float = 0.0
    states: int = 10_000_000
    compiled: Literal["auto", "never", "always"] = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.gap < 1:
            raise ValueError(f"gap is {self.gap}; give a part of the span, at least 0 and below 1")
        if self.states < 1:
            raise ValueError(f"states is {self.states}; allow at least 1")
        if self.compiled not in ("auto", "never", "always"):
            raise ValueError(f"compiled is {self.compiled!r}; it is 'auto', 'never' or 'always'")

    def solve(self, problem: Problem) -> Solution:
        """The best choice within the budget, and the bound that was proven.

        ``ValueError`` where the problem has more than one sum budget, interactions, stages or side
        constraints.
        """
        asked = knapsack(problem, "exact")
        if asked is None:
            return infeasible("exact")
        usage = asked.usage[0] if len(asked.usage) else np.zeros_like(asked.gain)
        room = asked.room[0] if asked.room else 1 << 62
        engine = _Engine(self.compiled)
        picks, bound = self._least(asked.gain, usage, room, engine)
        said = asked.solution(picks, bound, engine.name)
        # A sum within rounding of a real limit may pass for one that fits: less room then.
        step = 2 * len(picks) + (room >> 48)
        while not problem.feasible(said.choice):
            room = int(usage[np.arange(len(picks)), picks].sum()) - step
            if room < 0:
                return _cheapest(asked, bound, engine.name)
            picks, _ = self._least(asked.gain, usage, room, engine)
            said, step = asked.solution(picks, bound, engine.name), 16 * step
        return said

    def _least(
        self, gain: Integers, usage: Integers, room: int, engine: "_Engine"
    ) -> tuple[Integers, float]:
        """The least sum of gains within a room: the entries, and a bound."""
        free = _freest(gain, usage)
        if int(usage[np.arange(len(gain)), free].sum()) <= room:
            return free, 0
        start = relaxed(gain, usage, room - room % _divisor(usage), engine.hull)
        picks, best = improved(gain, usage, start)
        span = float(gain.max(axis=1).sum())
        limits = Limits(start.slack, start.slope, ROUNDING * span, self.gap * span, self.states)
        most = best + limits.margin - limits.gap - start.bound
        small = core(gain, usage, start, most)
        found = engine.search(small, best - start.gain, limits)
        if found.changes is not None:
            picks = start.picks.copy()
            picks[small.owner[found.changes]] = small.entry[found.changes]
        if found.tied:
            again = first(small, start.picks, picks, limits)
            picks = picks if again is None else again
        return picks, start.gain + found.bound


def _freest(gain: Integers, usage: Integers) -> Integers:
    """(n,) of the entries of no gain that which uses least, and of those the first."""
    return np.asarray(np.where(gain == 0, usage, np.iinfo(np.int64).max).argmin(axis=1))


def _divisor(usage: Integers) -> int:
    """What divides every usage, and so every sum: room beyond a multiple of it is of no use."""
    if len(usage) > MANY or int(np.gcd.reduce(usage[:16], axis=None)) == 1:
        return 1  # of many the divisor is not worth its while
    return int(np.gcd.reduce(usage, axis=None))


def _cheapest(asked: Knapsack, bound: float, solver: str) -> Solution:
    """The answer where rounding hides whether the cheapest choice fits: that, if it does.

    The cheapest of tied layers is only known to rounding; nothing is proven of those.
    """
    problem = asked.problem
    cost = problem.budgets[asked.budgets[0]].cost
    if not isinstance(cost, Table) or problem.ties:
        return asked.solution(None, bound, solver)
    picks = np.take_along_axis(cost.values, asked.columns, axis=1).argmin(axis=1)
    fits = problem.feasible(asked.choice(picks))
    return asked.solution(picks, bound, solver) if fits else infeasible(solver)


def _no_glance(core: Core, best: int, limits: Limits) -> None:
    """Numpy has no search that is quicker than its own."""


class _Engine:
    """Numpy, or compiled code where that is there and asked for or pays."""

    def __init__(self, compiled: str) -> None:
        self.auto, self.kept, self.name = compiled == "auto", 0, "exact"
        self.hull, self.merge = hull, grown
        self.glance: Glance = _no_glance
        if compiled == "always":
            self._load()

    def _load(self) -> None:
        self.auto = False
        try:
            from mpsearch.solvers import compiled
        except (ImportError, RuntimeError):  # no numba, or no folder for what it compiles
            return
        self.name = "exact (numba)"
        self.hull, self.merge, self.glance = compiled.hull, compiled.grown, compiled.search

    def search(self, core: Core, best: int, limits: Limits) -> Found:
        """The best answer of a core: with few states first, which are enough for most."""
        found = self.glance(core, best, limits)
        if found is None:
            few = replace(limits, states=limits.states // GLANCE)
            found = search(core, best, few, self._grow)
        if found.best - found.bound > limits.gap:
            more = search(core, found.best, limits, self._grow)
            bound = max(found.bound, more.bound)
            if more.changes is None:
                return replace(found, bound=bound)
            return replace(more, bound=bound)
        return found

    def _grow(
        self,
        states: States,
        gain: Integers,
        usage: Integers,
        slopes: tuple[float, float],
        slack: int,
        limit: float,
    ) -> States:
        if self.auto and self.kept > PAYS:
            self._load()
        states = self.merge(states, gain, usage, slopes, slack, limit)
        self.kept += len(states.usage)
        return states
