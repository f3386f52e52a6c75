"""Integer programming as others call it: PuLP with CBC's defaults, the same scaled, scipy's milp."""

from typing import Any

import numpy as np
import pulp
import scipy.optimize
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from mpsearch.problem import Problem
from mpsearch.tables import Table

Numbers = NDArray[Any]
optimize: Any = scipy.optimize  # whose stubs know no arrays
Choice = tuple[int, ...]


def cbc(problem: Problem) -> Choice:
    """PuLP and CBC as they come, the numbers as they are; ``Optimal`` is taken at its word."""
    return _cbc(problem.loss.values, _rows(problem), pulp.PULP_CBC_CMD(msg=False))


def cbc_scaled(problem: Problem, seconds: float = 60.0) -> Choice:
    """CBC on losses above the least that total 1e6 and costs that total 1e4, no gap allowed."""
    solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=seconds, gapRel=0, gapAbs=0)
    return _cbc(*_scaled(problem), solver)


def _cbc(loss: Numbers, rows: list[tuple[Numbers, float]], solver: Any) -> Choice:
    model = pulp.LpProblem("bits", pulp.LpMinimize)
    taken = [
        [model.add_variable(f"x{i}_{k}", cat="Binary") for k in range(loss.shape[1])]
        for i in range(len(loss))
    ]
    flat = [x for row in taken for x in row]
    model += pulp.LpAffineExpression(list(zip(flat, loss.ravel().tolist(), strict=True)))
    for cost, limit in rows:
        terms = list(zip(flat, cost.ravel().tolist(), strict=True))
        model += pulp.LpAffineExpression(terms) <= limit
    for row in taken:
        model += pulp.lpSum(row) == 1
    model.solve(solver)
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return ()
    values = np.array([x.varValue or 0.0 for x in flat]).reshape(loss.shape)
    return tuple(values.argmax(axis=1).tolist())


def scipy_milp(problem: Problem, gap: float = 1e-7, seconds: float = 60.0) -> Choice:
    """HiGHS as scipy calls it, scaled, within a relative gap; may pass a budget by its 1e-6."""
    loss, rows = _scaled(problem)
    count, width = loss.shape
    once = csr_matrix(
        (np.ones(loss.size), np.arange(loss.size), np.arange(0, loss.size + 1, width)),
        shape=(count, loss.size),
    )
    matrix = vstack([once, *(csr_matrix(cost.ravel()) for cost, _ in rows)])
    limits = np.array([limit for _, limit in rows])
    low = np.concatenate([np.ones(count), np.full(len(rows), -np.inf)])
    high = np.concatenate([np.ones(count), limits])
    found = optimize.milp(
        loss.ravel(),
        constraints=optimize.LinearConstraint(matrix, low, high),
        integrality=np.ones(loss.size),
        bounds=optimize.Bounds(0, problem.mask.ravel().astype(float)),
        options={"mip_rel_gap": gap, "time_limit": seconds},
    )
    if found.x is None:
        return ()
    return tuple(found.x.reshape(loss.shape).argmax(axis=1).tolist())


def _rows(problem: Problem) -> list[tuple[Numbers, float]]:
    """Each budgeted cost, and what may be spent of it."""
    return [
        (budget.cost.values, budget.limit - budget.cost.fixed)
        for budget in problem.budgets
        if isinstance(budget.cost, Table)
    ]


def _scaled(problem: Problem) -> tuple[Numbers, list[tuple[Numbers, float]]]:
    low, span = problem.loss.values.min(axis=1), problem.span or 1.0
    loss = (problem.loss.values - low[:, None]) / span * 1e6
    rows = []
    for cost, limit in _rows(problem):
        least = cost.min(axis=1)
        size = float((cost.max(axis=1) - least).sum()) or 1.0
        rows.append(((cost - least[:, None]) / size * 1e4, float(limit - least.sum()) / size * 1e4))
    return loss, rows


def few(problem: Problem, formats: int, seconds: float = 60.0) -> Choice:
    """At most so many options in all, as one program: a variable an option says if it is used."""
    loss, rows = _scaled(problem)
    count, width = loss.shape
    place = np.arange(loss.size)
    once = csr_matrix((np.ones(loss.size), (place // width, place)), (count, loss.size + width))
    used = csr_matrix(
        (
            np.concatenate([np.ones(loss.size), -np.ones(loss.size)]),
            (np.tile(place, 2), np.concatenate([place, loss.size + place % width])),
        )
    )
    costs = [csr_matrix(np.append(cost.ravel(), np.zeros(width))) for cost, _ in rows]
    some = csr_matrix(np.repeat([0.0, 1.0], [loss.size, width]))
    limits = np.array([*(limit for _, limit in rows), formats])
    high = [np.ones(count), np.zeros(loss.size), limits]
    low = [np.ones(count), np.full(loss.size + len(rows) + 1, -np.inf)]
    found = optimize.milp(
        np.append(loss.ravel(), np.zeros(width)),
        constraints=optimize.LinearConstraint(
            vstack([once, used, *costs, some]), np.concatenate(low), np.concatenate(high)
        ),
        integrality=np.ones(loss.size + width),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 1e-7, "time_limit": seconds},
    )
    if found.x is None:
        return ()
    return tuple(found.x[: loss.size].reshape(loss.shape).argmax(axis=1).tolist())
