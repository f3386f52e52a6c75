"""The Pareto frontier of a problem: whole and exact along one cost, swept where it cannot be.

Along a cost that adds up, with no other sum held, label setting gives every point at once; of those
some are taken. With other budgets, side conditions or interactions the budgets of a grid are
solved one by one. Along two costs supported choices are joined with solved boxes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mpsearch.allocation import Infeasible
from mpsearch.baselines import uniform_choices
from mpsearch.choosing import chosen
from mpsearch.conflict import why as conflict
from mpsearch.pareto import Frontier, Point
from mpsearch.problem import Budget, Problem, Status
from mpsearch.protocols import Solver
from mpsearch.registry import make
from mpsearch.tables import Cost, Table

if TYPE_CHECKING:
    from mpsearch.sweep import Sweep

POINTS = 200


def frontier(
    loss: Table | Problem,
    cost: Cost | str | Sequence[Cost | str] | None = None,
    *,
    solver: str | Solver = "auto",
    points: int = POINTS,
    sweep: "Sweep | None" = None,
) -> Frontier:
    """Allocations none of which is beaten in loss and cost, cheapest first; each with a bound.

    Along one cost that adds up, where no other sum, side condition or interaction counts, they are
    of the whole exact frontier: at most ``points`` of it, evenly along its stairs, and every
    uniform option's; :meth:`Frontier.between` says what was left out between two of them. Else, or
    with a ``solver``, ``points`` budgets are solved one by one. With two costs, such as
    ``("size", "latency")``, the frontier lies in three dimensions.

    ``Infeasible`` where nothing is within the problem's other budgets.
    """
    if points < 2:
        raise ValueError(f"got {points} points; a frontier has its two ends at least")
    if not isinstance(cost, str | None) and isinstance(cost, Sequence):
        return _of_three(loss, list(cost), solver)
    problem = loss if isinstance(loss, Problem) else Problem(loss, (), (_table(cost),))
    along = _named(problem, cost)
    problem = replace(problem, budgets=tuple(b for b in problem.budgets if b.cost is not along))
    if solver in ("auto", "frontier-exact") and _plain(problem, along):
        return _exact(problem, along, points)
    return _swept(problem, along, solver, points, sweep)


def _table(cost: Any) -> Cost:
    if cost is None or isinstance(cost, str):
        raise TypeError(f"a frontier of a loss table needs a cost table too, got {cost!r}")
    made: Cost = cost
    return made


def _named(problem: Problem, cost: Cost | str | None) -> Cost:
    """The problem's cost of that name; the only one, where none is named."""
    name = cost if isinstance(cost, str | None) else cost.name
    known = {c.name: c for c in problem.costs}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        raise LookupError(f"no cost is named {name!r}; there are: {', '.join(known) or 'none'}")
    return known[name]


def _plain(problem: Problem, along: Cost) -> bool:
    """Whether the only sum that counts is the cost's."""
    sums = [
        b for b in problem.budgets if not (isinstance(b.cost, Table) and b.cost.reduce == "max")
    ]
    adds_up = isinstance(along, Table) and along.reduce == "sum"
    return adds_up and not (sums or problem.constraints or problem.interactions)


def _exact(problem: Problem, along: Cost, points: int) -> Frontier:
    """Of the whole frontier: some points, and the one at every uniform option's cost."""
    import numpy as np

    front = make("frontiers", "frontier-exact").frontier(problem, along.name)
    if not len(front):
        raise infeasible(problem)
    even = front.thinned(points).usage
    costs = front.cost.tolist()
    uniform = [along.total(choice) for _, choice in uniform_choices(problem)]
    spots = {max(bisect_right(costs, each) - 1, 0) for each in uniform}
    kept = sorted(spots | set(np.searchsorted(front.usage, even).tolist()))
    count = f"all {len(front):,} points of the frontier at once"
    if not front.exact:
        count = f"{len(front):,} points, within {front.epsilon:.2g} of the frontier"
    why = f"one sum of costs and no other: {count}"
    made = front.some(np.array(kept, np.int64)).points()
    return _frontier(problem, made, (along.name,), {"solver": front.solver, "why": why})


def _frontier(
    problem: Problem, points: Sequence[Point], along: tuple[str, ...], told: dict[str, str]
) -> Frontier:
    from mpsearch import __version__

    table = problem.loss
    return Frontier(
        tuple(table.layers),
        table.options,
        table.unit,
        tuple(points),
        {c.name: c.unit for c in problem.costs},
        problem.span,
        provenance={"mpsearch": __version__, **told},
        along=along,
    )


def _of_three(loss: Table | Problem, costs: list[Cost | str], solver: str | Solver) -> Frontier:
    """Loss against two costs."""
    if len(costs) != 2:
        raise ValueError(f"got {len(costs)} costs; a frontier lies along one or two")
    if isinstance(loss, Table):
        loss = Problem(loss, (), tuple(_table(cost) for cost in costs))
    names = tuple(_named(loss, cost).name for cost in costs)
    three = make(
        "frontiers",
        "frontier-three",
        **({} if solver == "auto" else {"solver": chosen(solver, loss)[0]}),
    )
    points = three.frontier(loss, names)
    if not points:
        raise infeasible(loss)
    why = "two costs: supported choices, and a grid of budgets on both"
    return _frontier(loss, points, names, {"solver": "frontier-three", "why": why})


def _swept(
    problem: Problem, along: Cost, solver: str | Solver, points: int, sweep: "Sweep | None"
) -> Frontier:
    """The answers to a grid of budgets, each made as cheap as its loss allows."""
    from mpsearch.sweep import Sweep

    held = replace(problem, budgets=(*problem.budgets, Budget(along, along.least())))
    by, choice = chosen(solver, held)
    found: list[Point] = []
    for limit in (sweep or Sweep()).steps("frontier", _limits(problem, along, solver, points)):
        found += _point(problem, along, limit, by, solver)
    if not found:
        raise infeasible(problem)
    return _frontier(problem, _undominated(found, along.name), (along.name,), choice.provenance())


def _limits(problem: Problem, cost: Cost, solver: str | Solver, points: int) -> list[float]:
    """Budgets from the cheapest allocation to that of least loss, and those of uniform options."""
    best = chosen(solver, problem)[0].solve(problem)
    if not best.choice:
        return []
    low = cost.least()
    high = max(cost.total(best.choice), low)
    steps = points - 1
    even = [low + (high - low) * step / steps for step in range(steps)] + [high]
    if cost.exact:
        even = [int(limit) for limit in even]
    whole = [cost.total(choice) for _, choice in uniform_choices(problem)]
    return sorted({*even, *(limit for limit in whole if low <= limit <= high)})


def _point(
    problem: Problem, cost: Cost, limit: float, by: Solver, solver: str | Solver
) -> list[Point]:
    held = replace(problem, budgets=(*problem.budgets, Budget(cost, limit)))
    solution = by.solve(held)
    if not solution.choice:
        return []
    choice = _cheapest(problem, cost, solution.choice, solver)
    every = {c.name: c.total(choice) for c in problem.costs}
    loss = problem.total(choice)
    return [Point(choice, loss, min(solution.bound, loss), every)]


def _cheapest(
    problem: Problem, cost: Cost, choice: tuple[int, ...], solver: str | Solver
) -> tuple[int, ...]:
    """Of the choices with no more loss, the cheapest one."""
    if not isinstance(cost, Table) or cost.reduce != "sum" or problem.interactions:
        return choice
    loss = replace(problem.loss, name="loss of the point")
    limit = problem.total(choice)
    turned = replace(
        problem, loss=cost, budgets=(*problem.budgets, Budget(loss, limit)), costs=problem.costs
    )
    cheaper = chosen(solver, turned)[0].solve(turned).choice
    better = cheaper and problem.total(cheaper) <= limit and problem.feasible(cheaper)
    return cheaper if better and cost.total(cheaper) < cost.total(choice) else choice


def _undominated(found: Sequence[Point], name: str) -> list[Point]:
    kept: list[Point] = []
    for point in sorted(found, key=lambda p: (p.cost[name], p.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def infeasible(problem: Problem) -> Infeasible:
    """The error that says what is achievable, what conflicts, and what would do."""
    none = replace(problem.loss, values=problem.loss.values * 0, fixed=0, stderr=None)

    def feasible(other: Problem) -> bool | None:
        flat = replace(other, loss=none, interactions=())
        solution = chosen("auto", flat)[0].solve(flat)
        if solution.choice:
            return True
        return False if solution.status is Status.INFEASIBLE else None

    found = conflict(problem, feasible)
    return Infeasible(found.message(), dict(found.least), found)
