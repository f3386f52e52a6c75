"""Several budgets at any number of layers: a proven gap from one multiplier a budget.

Lagrangian relaxation of the multiple-choice knapsack with several rows: multipliers by cutting
planes (:mod:`mpsearch.solvers.dual`) bound every choice from below; the cheapest choices at them,
repaired and improved (:mod:`mpsearch.solvers.repair`), bound the best from above; an entry that
raises the one above the other is in no better choice (Sinha and Zoltners, "The Multiple-Choice
Knapsack Problem", Operations Research 27, 1979). The classes that keep a choice are gone through
one after another (Nemhauser and Ullmann 1969), the most promising partial choices first: all of
them where they are few, which proves the answer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.dual import Classes, multipliers, priced
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.solvers.repair import improved, repaired
from mpsearch.tables import Floats, Mask

Integers = NDArray[np.int64]
STARTS = 3  # choices near the best multipliers that are repaired
STRONGER = (1.01, 1.1, 2.0, 16.0, 1e6)  # multipliers, until a choice can be repaired
DEPTH = 60  # classes gone through where not every partial choice can be kept
LAST = 20  # whole choices checked exactly at the end
EXACT = 1 - 2.0**-36  # more than adding up what every class raises the bound by rounds


@dataclass(frozen=True)
class Lagrange:
    """The least loss within several sum budgets, with a bound that is proven whatever the size.

    Attributes:
        states: Most partial choices kept beside one another; where more are needed the bound is
            what was proven of those left out.
    """

    states: int = 2000

    def __post_init__(self) -> None:
        """Refuse a search without room."""
        if self.states < 1:
            raise ValueError(f"states is at least 1, got {self.states!r}; give 2000 or so")

    def solve(self, problem: Problem) -> Solution:
        """One option for every layer.

        ``ValueError`` for interactions, side constraints and stages; the solver milp takes them.
        """
        given = knapsack(problem, "lagrange", rows=None)
        if given is None:
            return infeasible("lagrange")
        search = _Search(given)
        search.start()
        search.finish(self.states)
        return given.solution(search.picks, search.bound, "lagrange")


class _Search:
    """The best choice so far, and what no choice can gain less than."""

    def __init__(self, given: Knapsack) -> None:
        self.given = given
        self.classes = Classes(given.gain, given.usage, np.array(given.room, np.int64))
        self.picks: Integers | None = None
        self.top = int(given.gain.max(axis=1).sum())  # in integers: a float may round it down
        self.ceiling = self.top + 1
        self.y, self.near = multipliers(self.classes)
        self.bound, self.raised = priced(self.classes, self.y)

    def offer(self, picks: Integers) -> bool:
        """Whether a choice keeps every condition exactly; it is kept if it is the best so far."""
        if not self.given.problem.feasible(self.given.choice(picks)):
            return False
        total = self.given.total(picks)
        if total < self.ceiling:
            self.picks, self.ceiling = picks, total
        return True

    def start(self) -> None:
        """A good choice: the nearest ones repaired and improved."""
        if self.bound > self.classes.most:
            self.bound = math.inf
            return
        tried = 0
        for picks in self._nearest():
            tried += self._offered(picks)
            if tried == STARTS:
                return

    def _nearest(self) -> Iterator[Integers]:
        """The cheapest choices at good multipliers; at larger ones while none can be repaired."""
        yield from self.near[: 2 * STARTS]
        for factor in STRONGER:
            if self.picks is None:
                price = self.classes.gain + np.tensordot(factor * self.y, self.classes.usage, 1)
                yield price.argmin(axis=1)

    def _offered(self, picks: Integers) -> bool:
        """Whether a choice repaired and improved is one; with less room if rounding breaks it."""
        room = self.classes.room
        for held in (room, room - (room >> 40) - len(picks)):
            classes = replace(self.classes, room=held)
            fitting = repaired(classes, picks, self.raised)
            if fitting is None:
                return False
            if self.offer(improved(classes, fitting, self.y, self.raised)):
                return True
        return False

    def finish(self, states: int) -> None:
        """Go through what may still be better."""
        if self.bound == math.inf:
            return
        keep = self.bound + self.raised <= self.ceiling - 1  # totals are integers
        better = keep.any(axis=1).all()
        self.bound = _Walk(self, keep).least(states) if better else self.ceiling
        if self.picks is None and self.bound > self.top:
            self.bound = math.inf


@dataclass(frozen=True, eq=False)
class _States:
    """Partial choices, with the cheapest entry in every class not yet decided.

    Attributes:
        used: (R, S) the usage.
        gain: (S,) the gain.
        raised: (S,) how far they raise the bound.
    """

    used: Integers
    gain: Integers
    raised: Floats

    def split(self, used: Integers, gain: Integers, raised: Floats) -> "_States":
        """Every state with every entry of a class, by what the entry changes."""
        return _States(
            (self.used[:, :, None] + used[:, None, :]).reshape(
                len(self.used), len(self.gain) * len(gain)
            ),
            (self.gain[:, None] + gain).ravel(),
            (self.raised[:, None] + raised).ravel(),
        )

    def at(self, index: Integers) -> "_States":
        """Some of them."""
        return _States(self.used[:, index], self.gain[index], self.raised[index])


class _Walk:
    """The choices that may be better than the best one, class by class."""

    def __init__(self, search: _Search, keep: Mask) -> None:
        self.search, self.classes = search, search.classes
        self.raised = np.where(keep, search.raised, np.inf)
        self.cheapest: Integers = self.raised.argmin(axis=1)
        rows = np.arange(len(keep))
        second = self.raised.copy()
        second[rows, self.cheapest] = np.inf
        second = second.min(axis=1)
        self.order = np.argsort(second, kind="stable")[: int(np.isfinite(second).sum())]
        most = np.iinfo(np.int64).max
        least = np.where(keep, self.classes.usage, most).min(axis=2, initial=most)
        self.spare = self.classes.usage[:, rows, self.cheapest] - least
        self.trail: list[tuple[int, Integers, Integers]] = []

    def least(self, most: int) -> float:
        """A bound on the gain of every choice; better ones are offered on the way."""
        picks, rows = self.cheapest, np.arange(len(self.cheapest))
        states = _States(
            self.classes.used(picks)[:, None],
            np.array([self.classes.total(picks)]),
            np.array([self.raised[rows, picks].sum()]),
        )
        dropped, spare = math.inf, self.spare[:, self.order].sum(axis=1)
        self.look(states, 1)
        for level, row in enumerate(self.order.tolist()):
            if dropped < math.inf and level >= DEPTH:
                break
            entries = self._entries(row)
            here = picks[row]
            spare = spare - self.spare[:, row]
            states = states.split(
                self.classes.usage[:, row, entries] - self.classes.usage[:, row, [here]],
                self.classes.gain[row, entries] - self.classes.gain[row, here],
                self.raised[row, entries] - self.raised[row, here],
            )
            kept, lost = self._kept(states, spare, most)
            dropped = min(dropped, lost)
            states = states.at(kept)
            self.trail.append((row, kept // len(entries), entries[kept % len(entries)]))
            self.look(states, 1)
        self.look(states, LAST)
        fits = (states.used <= self.classes.room[:, None]).all(axis=0)
        last: list[float] = states.gain[fits].tolist()
        return min([self.search.ceiling, dropped, *last])

    def _entries(self, row: int) -> Integers:
        """The entries of a class that may be in a better choice, of equal ones the first."""
        entries = np.flatnonzero(np.isfinite(self.raised[row]))
        both = np.vstack([self.classes.gain[row, entries], self.classes.usage[:, row, entries]])
        first: Integers = np.sort(np.unique(both, axis=1, return_index=True)[1])
        return entries[first]

    def _kept(self, states: _States, spare: Integers, most: int) -> tuple[Integers, float]:
        """Which states to go on with, and what those left out for want of room gain at least."""
        least = self.search.bound + states.raised * EXACT
        fits = (states.used - spare[:, None] <= self.classes.room[:, None]).all(axis=0)
        kept = np.flatnonzero(fits & (least <= self.search.ceiling - 1))
        if len(kept) <= most:
            return kept, math.inf
        slack = self.classes.room[:, None] - states.used[:, kept]
        score = states.raised[kept] + self.search.y @ np.abs(slack)
        order = np.argpartition(score, most - 1)
        return np.sort(kept[order[:most]]), float(least[kept[order[most:]]].min())

    def look(self, states: _States, most: int) -> None:
        """Offer the best of the states that fit as they are, until one is accepted."""
        fits = (states.used <= self.classes.room[:, None]).all(axis=0)
        better = np.flatnonzero(fits & (states.gain < self.search.ceiling))
        for state in better[np.argsort(states.gain[better], kind="stable")[:most]].tolist():
            if self.search.offer(self._picks(state)):
                return

    def _picks(self, state: int) -> Integers:
        """(n,) the entries that led to a state."""
        picks: Integers = self.cheapest.copy()
        for row, parents, entries in reversed(self.trail):
            picks[row] = entries[state]
            state = int(parents[state])
        return picks
