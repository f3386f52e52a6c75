"""The line end to end: tables in, allocations and frontiers out.

Members of the spokes are reached by name through the registry; torch is loaded only by what needs
a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mpsearch.allocation import Allocation, Frontier, Infeasible, Point
from mpsearch.baselines import guard, template, uniform, uniform_choices
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.problem import Budget, Constraint, Interaction, Problem, Solution, Status
from mpsearch.protocols import Estimator, HardwareModel, Solver
from mpsearch.registry import make
from mpsearch.tables import Cost, Table
from mpsearch.task import Task

if TYPE_CHECKING:
    from mpsearch.quant.recipe import Recipe
    from mpsearch.sweep import Sweep

DEFAULT_SOLVER = "milp"


def estimate(
    task: Task,
    options: Sequence[Option],
    method: str | Estimator = "kl",
    *,
    network: Network | None = None,
    recipe: "Recipe | None" = None,
    seed: int = 0,
    sweep: "Sweep | None" = None,
) -> Table:
    """Predicted loss of every layer at every option, by an estimator's name or the estimator.

    ``network`` is what :func:`mpsearch.trace` returned where layers are pinned or skipped.
    """
    from mpsearch.batches import checked
    from mpsearch.fingerprint import fingerprint
    from mpsearch.quant.recipe import Recipe
    from mpsearch.sweep import Sweep
    from mpsearch.tracing import trace

    batches = checked(task.batches)
    network = trace(task.model, batches[0]) if network is None else network
    recipe = Recipe() if recipe is None else recipe
    estimator = make("sensitivity", method, seed=seed) if isinstance(method, str) else method
    study = fingerprint(task.model, list(batches), str(task.loss), str(recipe), repr(estimator))
    sweep = replace(Sweep() if sweep is None else sweep, study=study)
    table: Table = estimator.estimate(task, network, tuple(options), recipe=recipe, sweep=sweep)
    return table


def costs(
    network: Network, options: Sequence[Option], model: str | HardwareModel = "size"
) -> dict[str, Cost]:
    """Every named cost a hardware model gives: the model, its name, or ``name:argument``.

    ``mcu:stm32h743`` is a model and the device it prices, ``bitops:nncf`` one and its variant.
    """
    hardware: HardwareModel = make("hwmodels", model) if isinstance(model, str) else model
    return dict(hardware.costs(network, tuple(options)))


def cost(network: Network, options: Sequence[Option], model: str | HardwareModel = "size") -> Table:
    """The one table a hardware model gives; ``LookupError`` where it gives several."""
    found = costs(network, options, model)
    if len(found) != 1:
        raise LookupError(
            f"model {model!r} gives costs {', '.join(found)}; take one of mpsearch.costs(...)"
        )
    (table,) = found.values()
    if isinstance(table, Table):
        return table
    raise LookupError(f"model {model!r} gives stages, no table; take it from mpsearch.costs(...)")


def solve(
    loss: Table | Problem,
    budgets: Mapping[Cost, float | str] | None = None,
    *,
    solver: str | Solver = "auto",
    costs: Sequence[Cost] = (),
    ties: Sequence[Sequence[int]] = (),
    constraints: Sequence[Constraint] = (),
    interactions: Sequence[Interaction] = (),
) -> Allocation:
    """The allocation of least loss within every budget, beside the simple ones it must beat.

    ``budgets`` maps a cost to its limit, such as ``{size: "25%"}`` (see :meth:`Budget.of`).
    ``Infeasible`` says what is achievable where nothing is within them.
    """
    if isinstance(loss, Problem):
        problem = loss
    else:
        held = tuple(Budget.of(cost, limit) for cost, limit in (budgets or {}).items())
        problem = Problem(
            loss,
            held,
            tuple(costs),
            tuple(tuple(tie) for tie in ties),
            tuple(constraints),
            tuple(interactions),
        )
    name, by = _solver(solver)
    solution = by.solve(problem)
    if solution.status is Status.INFEASIBLE:
        raise infeasible(problem)
    if solution.status is Status.UNKNOWN:
        raise RuntimeError(f"solver {name!r}: {solution.status.value}")
    answer = replace(
        Allocation.of(problem, solution),
        uniform=uniform(problem),
        template=template(problem, by),
        provenance=_provenance(solver=solution.solver or name),
    )
    return guard(answer)


def _solver(solver: str | Solver) -> tuple[str, Solver]:
    """A solver and its name; ``auto`` is the one that proves its answer at every shape we take."""
    if not isinstance(solver, str):
        return type(solver).__name__, solver
    name = DEFAULT_SOLVER if solver == "auto" else solver
    made: Solver = make("solvers", name)
    return name, made


def _provenance(**what: Any) -> dict[str, Any]:
    from mpsearch import __version__

    return {"mpsearch": __version__} | what


def infeasible(problem: Problem) -> Infeasible:
    """The error that says what is achievable, budget by budget."""
    merged, _ = problem.merged()
    least = {budget.cost.name: budget.cost.least() for budget in merged.budgets}
    short = [
        f"{b.cost.name}: {b.limit} asked, {least[b.cost.name]} is the least achievable"
        f" ({b.cost.unit})"
        for b in merged.budgets
        if b.limit < least[b.cost.name]
    ]
    why = "; ".join(short) or "each budget is achievable alone, but not all conditions together"
    return Infeasible(
        f"no allocation is within every budget: {why}; loosen it or add cheaper options", least
    )


def frontier(
    loss: Table | Problem,
    cost: Cost | str | None = None,
    *,
    solver: str | Solver = "auto",
    points: int = 20,
    sweep: "Sweep | None" = None,
) -> Frontier:
    """Allocations none of which is beaten in both loss and cost, cheapest first.

    At most ``points`` budgets are solved, evenly spread from the least cost to that of the least
    loss, and at every uniform option's cost; of equal losses the cheapest is kept.
    """
    from mpsearch.sweep import Sweep

    problem = loss if isinstance(loss, Problem) else Problem(loss, (), (_of(cost),))
    chosen = _cost_named(problem, cost)
    other = tuple(b for b in problem.budgets if b.cost is not chosen)
    problem = replace(problem, budgets=other)
    _, by = _solver(solver)
    found: list[Point] = []
    for limit in (sweep or Sweep()).steps("frontier", _limits(problem, chosen, by, points)):
        found += _point(problem, chosen, limit, by)
    if not found:
        raise infeasible(problem)
    table = problem.loss
    return Frontier(
        tuple(table.layers),
        table.options,
        table.unit,
        tuple(_undominated(found, chosen.name)),
        {c.name: c.unit for c in problem.costs},
        problem.span,
    )


def _of(cost: Any) -> Cost:
    if cost is None or isinstance(cost, str):
        raise TypeError(f"a frontier of a loss table needs a cost table too, got {cost!r}")
    made: Cost = cost
    return made


def _cost_named(problem: Problem, cost: Cost | str | None) -> Cost:
    if cost is not None and not isinstance(cost, str):
        return next(c for c in problem.costs if c.name == cost.name)
    known = {c.name: c for c in problem.costs}
    if cost is None and len(known) == 1:
        return next(iter(known.values()))
    if cost not in known:
        raise LookupError(f"no cost is named {cost!r}; there are: {', '.join(known) or 'none'}")
    return known[cost]


def _limits(problem: Problem, cost: Cost, solver: Solver, points: int) -> list[float]:
    """Budgets from the cheapest allocation to that of least loss, and those of uniform options."""
    best = solver.solve(problem)
    if not best.choice:
        return []
    low = cost.least()
    high = max(cost.total(best.choice), low)
    steps = max(points - 1, 1)
    even = [low + (high - low) * step / steps for step in range(steps)] + [high]
    if cost.exact:
        even = [int(limit) for limit in even]
    whole = [cost.total(choice) for _, choice in uniform_choices(problem)]
    return sorted({*even, *(limit for limit in whole if low <= limit <= high)})


def _point(problem: Problem, cost: Cost, limit: float, solver: Solver) -> list[Point]:
    held = replace(problem, budgets=(*problem.budgets, Budget(cost, limit)))
    solution = solver.solve(held)
    if not solution.choice:
        return []
    choice = _cheapest(held, cost, solution, solver)
    every = {c.name: c.total(choice) for c in problem.costs}
    return [Point(choice, problem.total(choice), solution.bound, every)]


def _cheapest(problem: Problem, cost: Cost, solution: Solution, solver: Solver) -> tuple[int, ...]:
    """Of the choices with no more loss, the cheapest one."""
    if not isinstance(cost, Table) or cost.reduce != "sum" or problem.interactions:
        return solution.choice
    loss = replace(problem.loss, name="loss of the point")
    turned = replace(
        problem,
        loss=cost,
        budgets=(*problem.budgets, Budget(loss, solution.loss)),
        costs=problem.costs,
    )
    cheaper = solver.solve(turned).choice
    keeps = cheaper and problem.total(cheaper) <= solution.loss and problem.feasible(cheaper)
    return (
        cheaper if keeps and cost.total(cheaper) < cost.total(solution.choice) else solution.choice
    )


def _undominated(found: Sequence[Point], name: str) -> list[Point]:
    kept: list[Point] = []
    for point in sorted(found, key=lambda p: (p.cost[name], p.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


@dataclass(frozen=True, eq=False)
class Search:
    """What a whole search leaves: the tables it stood on and the answer."""

    network: Network
    problem: Problem
    allocation: Allocation
    recipe: "Recipe"


def search(  # noqa: PLR0913  each is a keyword
    task: Task,
    options: Sequence[Option],
    budgets: Mapping[str, float | str],
    *,
    method: str | Estimator = "kl",
    models: Sequence[str | HardwareModel] = ("size", "bitops"),
    solver: str | Solver = "auto",
    recipe: "Recipe | None" = None,
    pin: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
    seed: int = 0,
    sweep: "Sweep | None" = None,
) -> Search:
    """Trace, estimate, price and solve: a proven allocation within budgets given by cost name."""
    from mpsearch.batches import checked
    from mpsearch.fingerprint import fingerprint
    from mpsearch.quant.recipe import Recipe
    from mpsearch.tracing import trace

    batches = checked(task.batches)
    recipe = Recipe() if recipe is None else recipe
    network = trace(task.model, batches[0], pin=pin, skip=skip)
    priced = {n: c for model in models for n, c in costs(network, options, model).items()}
    held = tuple(Budget.of(_priced(priced, name), limit) for name, limit in budgets.items())
    for budget in held:  # before the long part
        if budget.limit < budget.cost.least():
            raise infeasible(Problem(_zeros(budget.cost), (budget,)))
    loss = estimate(task, options, method, network=network, recipe=recipe, seed=seed, sweep=sweep)
    problem = Problem(loss, held, tuple(priced.values()))
    answer = solve(problem, solver=solver)
    provenance = {
        **answer.provenance,
        "estimator": method if isinstance(method, str) else type(method).__name__,
        "seed": seed,
        "model_sha256": fingerprint(task.model),
        "data_sha256": fingerprint(list(batches)),
    }
    answer = replace(answer, recipe=recipe.document(), provenance=provenance)
    return Search(network, problem, answer, recipe)


def _priced(priced: Mapping[str, Cost], name: str) -> Cost:
    if name not in priced:
        raise LookupError(
            f"no cost is named {name!r}; the hardware models asked give {', '.join(priced)}"
        )
    return priced[name]


def _zeros(cost: Cost) -> Table:
    import numpy as np

    return Table(cost.layers, cost.options, np.zeros((len(cost.layers), len(cost.options))), "loss")


@dataclass(frozen=True, eq=False)
class Allocator:
    """A whole search as one callable, model -> allocation: what a NAS loop holds on to.

    Raises ``Infeasible`` for a model that cannot be brought within the budgets.
    """

    options: Sequence[Option]
    batches: Sequence[Any]
    heldout: Sequence[Any] = ()
    method: str | Estimator = "kl"
    budgets: Mapping[str, float | str] = field(default_factory=dict)
    models: Sequence[str | HardwareModel] = ("size", "bitops")
    solver: str | Solver = "auto"
    recipe: "Recipe | None" = None
    seed: int = 0
    verify: bool = False

    def __call__(self, model: Any) -> Allocation:
        """The best allocation for this model; measured on ``heldout`` where ``verify`` is set."""
        task = Task(model, self.batches, self.heldout)
        found = search(
            task,
            self.options,
            self.budgets,
            method=self.method,
            models=self.models,
            solver=self.solver,
            recipe=self.recipe,
            seed=self.seed,
        )
        if not self.verify:
            return found.allocation
        from mpsearch.verification import verify

        return verify(task, found.allocation)
