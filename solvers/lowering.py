"""A problem as a program: ties one class, budgets on a maximum a mask, all other conditions rows.

Every limit leaves room for rounding, so that whatever is proven of the program holds for the
problem; only integers whose sums are exact need none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import RELATIVE_TOLERANCE, Budget, Constraint, Problem
from mpsearch.solvers.program import ULP, Program, reduced, sums_exactly, with_products
from mpsearch.tables import Floats, Mask, Stages


def lowered(problem: Problem, products: int | None = None) -> tuple[Program, Sequence[int]] | None:
    """The program of a problem, and its merged index of each layer; ``None`` if nothing fits.

    Layers that interact become one where their options multiply to at most so many ``products``.
    """
    found = _program(problem)
    if found is None:
        return None
    fewer = reduced(with_products(found[0], products))
    return None if fewer is None else (fewer, found[1])


def listed(problem: Problem) -> tuple[Program, Sequence[int]] | None:
    """The same with every option that fits, dominated or not, and without interactions."""
    found = _program(problem)
    if found is None:
        return None
    made, groups = replace(found[0], pairs=()), found[1]
    fits: Mask = np.all(made.usage <= made.room[:, None], axis=0)
    whole = np.logical_or.reduceat(fits, made.starts).all()
    return (made.kept(fits), groups) if whole else None


def _program(problem: Problem) -> tuple[Program, Sequence[int]] | None:
    """Every allowed option and every condition as they are."""
    merged, groups = problem.merged()
    mask = merged.loss.allowed.copy()
    rows: list[_Row] = []
    for budget in merged.budgets:
        if budget.on_maximum:
            mask &= budget.mask
        else:
            rows += _budget_rows(budget, mask.shape)
    for constraint in merged.constraints:
        rows += _constraint_rows(constraint, mask.shape)
    if not mask.any(axis=1).all():
        return None
    loss, constant, error = _losses(problem, groups, mask)
    owner, column = np.nonzero(mask)
    made = Program(
        owner,
        loss[mask],
        np.array([row.values[mask] for row in rows]).reshape(len(rows), len(owner)),
        np.array([row.limit for row in rows]),
        np.array([row.whole for row in rows], bool),
        tuple((i,) for i in range(len(mask))),
        column[:, None],
        tuple(_pairs(merged, mask)),
        constant,
        error,
    )
    return made, groups


def _losses(
    problem: Problem, groups: Sequence[int], mask: Mask
) -> tuple[Floats, tuple[float, ...], float]:
    """Losses of the merged layers, what was taken off each tied layer, and how far sums may be off.

    Of a tied layer only what is above its least is added up: a large common loss would round away
    the differences that matter.
    """
    index = np.asarray(groups)
    tied = np.bincount(index)[index] > 1
    values = np.where(mask[index], problem.loss.values.astype(np.float64), np.inf)
    low = np.where(tied, values.min(axis=1), 0.0)
    above = np.where(mask[index], values - low[:, None], 0.0)
    loss = np.zeros(mask.shape)
    np.add.at(loss, index, above)
    inner = [i for i in problem.interactions if groups[i.first] == groups[i.second]]
    for pair in inner:
        if pair.first_option == pair.second_option and mask[groups[pair.first], pair.first_option]:
            loss[groups[pair.first], pair.first_option] += pair.loss
    size = float(np.abs(above[tied]).max(axis=1, initial=0.0).sum())
    size += math.fsum(abs(pair.loss) for pair in inner)
    parts = np.concatenate([problem.loss.values[mask[index]], [pair.loss for pair in inner]])
    exact = not size or sums_exactly(parts, size + float(np.abs(parts).max()))
    error = 0.0 if exact else ULP * (len(index) + len(inner) + 1) * size
    return loss, (float(problem.loss.fixed), *low[tied].tolist()), error


@dataclass(frozen=True, eq=False)
class _Row:
    """A sum of chosen numbers, at most a limit."""

    values: Floats
    limit: float
    whole: bool


def _row(values: NDArray[Any], limit: float, *, exact: bool, tolerance: float = 0.0) -> _Row:
    """A row whose limit leaves room for rounding; none is needed for integers that add exactly."""
    numbers = values.astype(np.float64)
    size = float(np.abs(numbers).max(axis=1).sum())
    if exact and size < 2.0**53:
        return _Row(numbers, float(min(max(math.floor(limit), -(2**60)), 2**60)), whole=True)
    slack = tolerance + ULP * (len(numbers) + 8) * (size + abs(limit))
    return _Row(numbers, float(limit) + slack, whole=False)


def _budget_rows(budget: Budget, shape: tuple[int, int]) -> list[_Row]:
    cost = budget.cost
    tolerance = 0.0 if cost.exact else RELATIVE_TOLERANCE * abs(budget.limit)
    room = budget.limit - cost.fixed
    if cost.exact:
        room = math.floor(budget.limit) - int(cost.fixed)
    sums = (
        [_spread(stage, shape) for stage in cost.stages]
        if isinstance(cost, Stages)
        else [cost.values]
    )
    return [_row(values, room, exact=cost.exact, tolerance=tolerance) for values in sums]


def _constraint_rows(constraint: Constraint, shape: tuple[int, int]) -> list[_Row]:
    values = _spread(constraint.terms, shape)
    ends = [end for end in (constraint.least, constraint.most) if end is not None]
    exact = all(isinstance(number, int) for _, _, number in constraint.terms)
    slack = 0.0 if exact else RELATIVE_TOLERANCE * max((abs(end) for end in ends), default=0.0)
    rows = []
    if constraint.most is not None:
        rows.append(_row(values, constraint.most, exact=exact, tolerance=slack))
    if constraint.least is not None:
        rows.append(_row(-values, -constraint.least, exact=exact, tolerance=slack))
    return rows


def _spread(terms: Sequence[tuple[int, int, float]], shape: tuple[int, int]) -> Floats:
    values = np.zeros(shape)
    for row, column, number in terms:
        values[row, column] += number
    return values


def _pairs(merged: Problem, mask: Mask) -> list[tuple[int, int, float]]:
    """Interactions as pairs of option indices; those with a masked option never happen."""
    place = np.cumsum(mask).reshape(mask.shape) - 1
    found = []
    for pair in merged.interactions:
        one, two = (pair.first, pair.first_option), (pair.second, pair.second_option)
        if mask[one] and mask[two] and pair.loss:
            found.append((int(place[one]), int(place[two]), pair.loss))
    return found
