"""Proofs that conditions cannot all hold, however options are chosen.

A set of them is refuted where weights on its rows show it: the sum over layers of the least
weighted cost is more than the weighted limits (Farkas; the linear relaxation has no answer). The
weights are found by cutting planes (Kelley, "The Cutting-Plane Method for Solving Convex Programs",
SIAM 8, 1960) in as many dimensions as there are rows, whatever the number of layers.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from mpsearch.problem import RELATIVE_TOLERANCE, Budget, Problem
from mpsearch.tables import Floats, Mask, Stages, Table

ROUNDS = 60  # of cutting planes
DOUBT = 1e-9  # of a weighted sum: nearer to its limit, nothing is proven


def allowed(problem: Problem, budgets: Sequence[Budget]) -> Mask:
    """(L, K) what tables, and those of the budgets that are on a maximum, allow."""
    mask: Mask = problem.mask
    for budget in budgets:
        if budget.on_maximum:
            mask = mask & budget.mask
    return mask


def cheapest(cost: Table, mask: Mask) -> NDArray[np.int64]:
    """(L,) the cheapest allowed option of each layer."""
    exact = cost.values.dtype == np.int64
    dear = np.iinfo(np.int64).max if exact else np.inf
    return np.asarray(np.where(mask, cost.values, dear).argmin(axis=1))


def spread(terms: Sequence[tuple[int, int, float]], shape: tuple[int, int]) -> Floats:
    """(L, K) the terms' numbers added up where they stand."""
    values = np.zeros(shape)
    for row, column, number in terms:
        values[row, column] += number
    return values


def _rows(problem: Problem, budgets: Sequence[Budget]) -> Iterator[tuple[Floats, float]]:
    """Every condition that is a sum, as (L, K) numbers and what they may add up to."""
    shape = problem.loss.values.shape
    for cost, limit in ((b.cost, b.limit) for b in budgets):
        room = limit - cost.fixed + (0.0 if cost.exact else RELATIVE_TOLERANCE * abs(limit))
        if isinstance(cost, Stages):
            yield from ((spread(stage, shape), room) for stage in cost.stages)
        elif cost.reduce == "sum":
            yield cost.values.astype(np.float64), room
    for constraint in problem.constraints:
        values = spread(constraint.terms, shape)
        if constraint.most is not None:
            yield values, constraint.most + RELATIVE_TOLERANCE * abs(constraint.most)
        if constraint.least is not None:
            yield -values, -constraint.least + RELATIVE_TOLERANCE * abs(constraint.least)


def refuted(problem: Problem, budgets: Sequence[Budget]) -> bool:
    """Whether weights prove that no choice keeps these budgets and all other conditions."""
    mask = allowed(problem, budgets)
    if not mask.any(axis=1).all():
        return True
    for budget in budgets:
        cost = budget.cost
        # Of real costs a little more than the tolerance: tied layers are added up in another order.
        limit = budget.limit + (0.0 if cost.exact else 2 * RELATIVE_TOLERANCE * abs(budget.limit))
        if isinstance(cost, Table) and cost.total(cheapest(cost, mask)) > limit:
            return True
    rows, rooms = [], []
    for values, room in _rows(problem, budgets):
        low = np.where(mask, values, np.inf).min(axis=1)
        above = np.where(mask, values - low[:, None], np.inf)
        size = max(float(np.where(mask, above, 0).max(axis=1).sum()), abs(room), 1e-300)
        rows.append(above / size)
        rooms.append(math.fsum([room, *(-low).tolist()]) / size)
    return bool(rows) and _weighted(np.array(rows), np.array(rooms))


def _weighted(rows: Floats, rooms: Floats) -> bool:
    """Whether some weights (R,) of the (R, L, K) rows refute them."""
    picked = np.arange(rows.shape[1])
    slopes: list[Floats] = []
    y = np.full(len(rows), 1 / len(rows))
    finite = np.where(np.isfinite(rows), rows, 0.0)
    forbidden = np.isinf(rows).any(axis=0)
    for _ in range(ROUNDS):
        price = np.where(forbidden, np.inf, np.tensordot(y, finite, 1))
        picks = price.argmin(axis=1)
        slope = finite[:, picked, picks].sum(axis=1) - rooms
        if float(y @ slope) > DOUBT * float(y @ (1 + np.abs(rooms))):
            return True
        slopes.append(slope)
        cuts = np.hstack([-np.array(slopes), np.ones((len(slopes), 1))])
        found = linprog(
            [*np.zeros(len(y)), -1.0],
            cuts,
            np.zeros(len(cuts)),
            [[*np.ones(len(y)), 0.0]],
            [1.0],
            bounds=[*[(0, None)] * len(y), (None, None)],
            method="highs",
        )
        if found.status != 0 or found.x[-1] <= DOUBT:
            return False
        y = np.maximum(found.x[:-1], 0.0)
    return False
