"""Bits that never fall as layers grow more sensitive: HAWQ-V2's search, by NNCF's exact rule.

Dong and others, "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", 2020,
section 3.3: of all the sequences of bits that do not fall along the layers ordered by trace, the
one of least total perturbation within the budget. NNCF goes through all ``sum over j of C(m, j)
C(L - 1, j - 1)`` of them, fewest different bits first, and of equal losses takes the first. A
compression ratio of at least r is a budget: of ``sum F max(w, a)``, at most ``8 sum F / r``.

Layers that may not take a bit width take the nearest one they may. Room that the best sequence
leaves is used by single moves.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.solvers.moves import Integers, answered, filled, linear_bound, prices, taken, uniforms


@dataclass(frozen=True)
class HawqV2:
    """The best sequence along the layers' sensitivity, and single moves from there.

    Attributes:
        order: The layers from the least to the most sensitive, by the trace of their Hessians say;
            by default by what each loses for what it saves between its cheapest and best options.
        limit: Most sequences that are tried.
    """

    order: Sequence[int] | None = None
    limit: int = 1_000_000

    def solve(self, problem: Problem) -> Solution:
        """A choice within every budget; ``ValueError`` for more than ``limit`` sequences."""
        asked = knapsack(problem, "hawq-v2", rows=None)
        if asked is None:
            return infeasible("hawq-v2")
        order = self._order(asked)

        def search(within: Knapsack) -> Integers | None:
            picks = selected(within, order, self.limit)
            if picks is None:
                picks = prices(within).argmin(axis=1)
            return filled(within, picks) if within.fits(picks) else None

        return answered(asked, search, linear_bound(asked), "hawq-v2")

    def _order(self, asked: Knapsack) -> Integers:
        """(n,) classes from the least to the most sensitive."""
        if self.order is None:
            rows, price = np.arange(len(asked.gain)), prices(asked)
            cheap, best = price.argmin(axis=1), asked.gain.argmin(axis=1)
            saved = np.maximum(price[rows, best] - price[rows, cheap], 1)
            return np.asarray(np.argsort(taken(asked.gain, cheap) / saved, kind="stable"))
        layers = len(asked.problem.loss.layers)
        if sorted(self.order) != list(range(layers)):
            raise ValueError(f"order names each of the {layers} layers once, by its number")
        groups = np.asarray(asked.groups)[np.asarray(self.order)]
        return np.asarray(groups[np.sort(np.unique(groups, return_index=True)[1])])


def selected(asked: Knapsack, order: Integers, limit: int) -> Integers | None:
    """(n,) the first sequence of least loss that fits; ``None`` where none does."""
    entry = _levels(asked)[:, order]
    count, width = len(order), len(entry)
    number = sum(
        math.comb(width, j) * math.comb(count - 1, j - 1) for j in range(1, min(width, count) + 1)
    )
    if number > limit:
        raise ValueError(
            f"{number} sequences are more than limit={limit}; use the solver exact, or raise limit"
        )
    numbers = [asked.gain[order], *(usage[order] for usage in asked.usage)]
    sums = np.array([np.take_along_axis(of, entry.T, axis=1) for of in numbers]).cumsum(axis=1)
    sums = np.pad(sums, ((0, 0), (1, 0), (0, 0)))
    room = np.array(asked.room, np.int64)[:, None]
    best: tuple[int, Sequence[int], Integers] | None = None
    for levels, cuts in _sequences(width, count):
        parts = sums[:, cuts[:, 1:], levels] - sums[:, cuts[:, :-1], levels]
        gain, used = np.split(parts.sum(axis=2), [1])
        fits = (used <= room).all(axis=0)
        gain = np.where(fits, gain[0], np.iinfo(np.int64).max)
        at = int(gain.argmin())
        if fits.any() and (best is None or gain[at] < best[0]):
            best = int(gain[at]), levels, cuts[at]
    if best is None:
        return None
    picks = np.empty(count, np.int64)
    level = np.repeat(best[1], np.diff(best[2]))
    picks[order] = entry[level, np.arange(count)]
    return picks


def _sequences(width: int, count: int) -> Iterator[tuple[Sequence[int], Integers]]:
    """Levels that rise, and (S, j + 1) all the ways to cut the layers among them."""
    for j in range(1, min(width, count) + 1):
        inner = list(itertools.combinations(range(1, count), j - 1))
        cuts = np.pad(np.array(inner, np.int64).reshape(len(inner), j - 1), ((0, 0), (1, 1)))
        cuts[:, -1] = count
        for levels in itertools.combinations(range(width), j):
            yield levels, cuts


def _levels(asked: Knapsack) -> Integers:
    """(K, n) the entry of each class at each level: options from the cheapest to the dearest."""
    entry, allowed = uniforms(asked)
    price = np.take_along_axis(prices(asked), entry.T, axis=1).T
    mean = np.where(allowed, price, 0).sum(axis=1) / np.maximum(allowed.sum(axis=1), 1)
    order = np.argsort(mean, kind="stable")
    order = order[allowed[order].any(axis=1)]
    if allowed.all():
        return entry[order].astype(np.int64)
    place = np.arange(len(order))
    far = np.abs(place[:, None] - place)[:, :, None] + len(order) * ~allowed[order]
    nearest = far.argmin(axis=1)
    return np.take_along_axis(entry[order], nearest, axis=0).astype(np.int64)
