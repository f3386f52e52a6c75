"""The simple allocations an answer must not be worse than: uniform options and type templates."""

from collections.abc import Sequence
from dataclasses import replace

from mpsearch.allocation import Allocation, Baseline, named
from mpsearch.formats import Option
from mpsearch.problem import Problem, Status
from mpsearch.protocols import Solver


def uniform_choices(problem: Problem) -> list[tuple[Option, tuple[int, ...]]]:
    """Each option that can be taken everywhere within the budgets, and its choice."""
    found = [(option, problem.loss.uniform(option)) for option in problem.loss.options]
    return [(o, choice) for o, choice in found if choice is not None and problem.feasible(choice)]


def uniform(problem: Problem) -> Baseline | None:
    """The best single option within the budgets (pinned layers keep theirs)."""
    found = uniform_choices(problem)
    if not found:
        return None
    option, choice = min(found, key=lambda pair: problem.total(pair[1]))
    return _baseline(problem, choice, option)


def _baseline(problem: Problem, choice: Sequence[int], option: Option | None = None) -> Baseline:
    cost = {cost.name: cost.total(choice) for cost in problem.costs}
    return Baseline(named(problem, choice), problem.total(choice), cost, option)


def template(problem: Problem, solver: Solver) -> Baseline | None:
    """The best one option per role of layer within the budgets: what vendors ship as mixed.

    ``None`` where all layers have one role, or no template keeps the budgets.
    """
    free = problem.loss.allowed.sum(axis=1) > 1
    roles: dict[str, list[int]] = {}
    for row, layer in enumerate(problem.loss.layers):
        if free[row]:
            roles.setdefault(layer.role, []).append(row)
    if len(roles) < 2:
        return None
    try:
        tied = replace(problem, ties=(*problem.ties, *(tuple(rows) for rows in roles.values())))
    except ValueError:  # layers of a role that share no option
        return None
    solution = solver.solve(tied)
    return _baseline(problem, solution.choice) if solution.choice else None


def guard(answer: Allocation) -> Allocation:
    """Never worse than the simple thing: the better baseline, where one is predicted better."""
    simple = [b for b in (answer.uniform, answer.template) if b is not None]
    best = min(simple, key=lambda b: b.loss, default=None)
    if best is None or best.loss >= answer.loss:
        return answer
    why = f"{name(best)} is predicted better ({best.loss:.6g}) than the mix ({answer.loss:.6g})"
    return instead(answer, best, why)


def instead(answer: Allocation, baseline: Baseline, why: str) -> Allocation:
    """The answer with a baseline's options in place of the mix, and why."""
    figures = {n: replace(f, value=baseline.cost[n]) for n, f in answer.figures.items()}
    return replace(
        answer,
        layers=baseline.layers,
        loss=baseline.loss,
        status=answer.status if baseline.loss <= answer.loss else Status.FEASIBLE,
        figures=figures,
        provenance={**answer.provenance, "guard": f"{why}; it is returned"},
    )


def name(baseline: Baseline) -> str:
    """What to call it."""
    return f"uniform {baseline.option}" if baseline.option else "the type template"
