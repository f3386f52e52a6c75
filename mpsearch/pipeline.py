"""The line end to end: tables in, allocations and frontiers out.

Members of the spokes are reached by name through the registry; torch is loaded only by what needs
a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mpsearch.allocation import Allocation
from mpsearch.baselines import guard, template, uniform
from mpsearch.choosing import chosen
from mpsearch.formats import Option
from mpsearch.fronts import infeasible
from mpsearch.network import Network
from mpsearch.problem import Budget, Constraint, Interaction, Problem, Status
from mpsearch.protocols import Estimator, HardwareModel, PairEstimator, Solver
from mpsearch.registry import make
from mpsearch.tables import Cost, Table
from mpsearch.task import Task

if TYPE_CHECKING:
    from mpsearch.quant.recipe import Recipe
    from mpsearch.sweep import Sweep


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
    study = _study(task, method, network, recipe, seed, sweep)
    return study.table(task, tuple(options))


@dataclass(frozen=True, eq=False)
class _Study:
    """An estimator at work on one network with one recipe, its work kept by what it is."""

    estimator: Estimator
    network: Network
    recipe: "Recipe"
    sweep: "Sweep"

    def table(self, task: Task, options: tuple[Option, ...]) -> Table:
        """What each layer loses alone."""
        run = self.estimator.estimate
        return run(task, self.network, options, recipe=self.recipe, sweep=self.sweep)

    def pairs(self, task: Task, options: tuple[Option, ...]) -> tuple[Interaction, ...]:
        """What pairs of layers lose beside that, where the estimator knows."""
        if not isinstance(self.estimator, PairEstimator):
            return ()
        run = self.estimator.pairs
        return run(task, self.network, options, recipe=self.recipe, sweep=self.sweep)


def _study(
    task: Task,
    method: str | Estimator,
    network: Network | None,
    recipe: "Recipe | None",
    seed: int,
    sweep: "Sweep | None",
) -> _Study:
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
    return _Study(estimator, network, recipe, sweep)


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
    by, choice = chosen(solver, problem)
    solution = by.solve(problem)
    if solution.status is Status.INFEASIBLE:
        raise infeasible(problem)
    if solution.status is Status.UNKNOWN:
        raise RuntimeError(f"solver {choice.name!r}: {solution.status.value}")
    answer = replace(
        Allocation.of(problem, solution),
        uniform=uniform(problem),
        template=template(problem, by),
        provenance=_provenance(**choice.provenance(solution.solver)),
    )
    return guard(answer)


def _provenance(**what: Any) -> dict[str, Any]:
    from mpsearch import __version__

    return {"mpsearch": __version__} | what


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
        if not budget.holds(budget.cost.least()):
            raise infeasible(Problem(_zeros(budget.cost), (budget,)))
    study = _study(task, method, network, recipe, seed, sweep)
    loss, pairs = study.table(task, tuple(options)), study.pairs(task, tuple(options))
    problem = Problem(loss, held, tuple(priced.values()), interactions=pairs)
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
