"""Branch and bound over options, most promising part first, with convex bounds.

A part of the answers is what options it allows every class. Where its bound does not reach the best
answer known, it is split by the option of the class whose shares hide most of the loss; options
whose price shows that no better answer takes them are left out on the way (Land and Doig, "An
automatic method of solving discrete programming problems", Econometrica 1960; Dakin 1965). Many
parts are relaxed at once: one matrix product serves all of them.
"""

import heapq
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.convex import CHILD, Points, Relaxation
from mpsearch.solvers.form import Answers, Form
from mpsearch.solvers.program import ULP
from mpsearch.tables import Floats, Mask

BATCH = 64  # parts split at a time


@dataclass(order=True)
class _Part:
    """A part of the answers: what it allows, where its relaxation is, and its bound."""

    bound: float
    number: int
    allowed: Mask = field(compare=False)
    y: NDArray[np.float32] = field(compare=False)
    price: Floats = field(compare=False)


class Branching:
    """A search over parts of a relaxation's answers.

    Attributes:
        relaxation: What bounds a part.
        answers: The best answer so far, and where new ones are offered.
        tolerance: How far below the best answer's value a part may be and still be left out.
        floor: No answer left out has a smaller value.
        parts: How many parts were bounded.
    """

    def __init__(self, relaxation: Relaxation, answers: Answers, tolerance: float) -> None:
        self.relaxation, self.form = relaxation, relaxation.form
        self.answers, self.tolerance = answers, tolerance
        self.floor = math.inf
        self.parts = 0
        self._numbers = itertools.count()
        self._heap: list[_Part] = []

    def run(self, points: Points, bound: float, *, parts: int, deadline: float) -> float:
        """A bound on the value of every answer, after about so many parts at most.

        Args:
            points: Where the relaxation of all answers is.
            bound: What it proves.
            parts: How many are bounded before the search stops.
            deadline: When it stops, as :func:`time.monotonic` has it.
        """
        self._bound(points, self.form.allowed[None], np.full(1, bound))
        while self._heap and self.parts < parts and time.monotonic() < deadline:
            batch = list(self._most_promising())
            if batch:
                self._split(batch)
        return min([self.floor, *(part.bound for part in self._heap[:1])])

    @property
    def _enough(self) -> float:
        """The bound at which a part is left out."""
        return self.answers.best.value - self.tolerance

    def _most_promising(self) -> Iterator[_Part]:
        for _ in range(min(BATCH, len(self._heap))):
            part = heapq.heappop(self._heap)
            if part.bound < self._enough:
                yield part
            else:
                self.floor = min(self.floor, part.bound)

    def _split(self, batch: list[_Part]) -> None:
        """Bound the parts of each part: one for every option of its most undecided class."""
        allowed = np.array([part.allowed for part in batch])
        y = np.array([part.y for part in batch], np.float64)
        lost = np.where(allowed.sum(axis=2) > 1, self.relaxation.lost(y) + 1e-300, -1.0)
        split = lost.argmax(axis=1)
        parent, option = np.nonzero(allowed[np.arange(len(batch)), split])
        made = allowed[parent].copy()
        made[np.arange(len(parent)), split[parent]] = False
        made[np.arange(len(parent)), split[parent], option] = True
        price = np.array([part.price for part in batch])[parent]
        least = np.array([part.bound for part in batch])[parent]
        self._bound(Points(y[parent], price), made, least)

    def _bound(self, points: Points, allowed: Mask, least: Floats) -> None:
        """Keep the parts that may hold a better answer, without the options that cannot be in one.

        Args:
            least: (B,) what their parents prove.
        """
        self.parts += len(allowed)
        allowed, fits = _fitting(self.form, allowed)
        allowed, least = allowed[fits], least[fits]
        points = Points(points.y[fits], points.price[fits])
        after = self.relaxation.descended(points, allowed, CHILD)
        bound, raised = self.relaxation.bounds(after, allowed)
        least = np.maximum(bound, least)
        keep = allowed & (bound[:, None, None] + raised < self._enough)
        # What is cut off has at least this bound.
        cut = np.where(allowed & ~keep, bound[:, None, None] + raised, np.inf)
        self.floor = min(
            self.floor, float(np.maximum(cut, least[:, None, None]).min(initial=np.inf))
        )
        for i in np.flatnonzero(np.all(np.any(keep, axis=2), axis=1)):
            self._push(float(least[i]), keep[i], after.y[i], after.price[i])

    def _push(self, bound: float, allowed: Mask, y: Floats, price: Floats) -> None:
        if (allowed.sum(axis=1) == 1).all():
            picks = np.flatnonzero(allowed)
            if self.answers.offer(picks):
                self.floor = min(self.floor, self.form.value(picks))
        elif bound < self._enough:
            part = _Part(bound, next(self._numbers), allowed, y.astype(np.float32), price)
            heapq.heappush(self._heap, part)
        else:
            self.floor = min(self.floor, bound)


def _fitting(form: Form, allowed: Mask) -> tuple[Mask, Mask]:
    """(B, n, K) without options that fit in no answer, and (B,) which parts have any."""
    fits = np.ones(len(allowed), bool)
    for usage, room in zip(form.usage, form.room.tolist(), strict=True):
        grid = np.where(allowed, usage.reshape(form.shape), 4.0)  # sums stay below 2
        least = grid.min(axis=2, keepdims=True)
        rest = room - least.sum(axis=1, keepdims=True)
        slack = ULP * 4 * len(grid[0]) * (abs(room) + np.abs(usage).sum())
        allowed = allowed & (grid - least <= rest + slack)
        fits &= rest[:, 0, 0] >= -slack
    return allowed, fits & np.all(np.any(allowed, axis=2), axis=1)
