"""Why no allocation is within every budget, and what would be.

Budgets that cannot hold together are found by size, the fewest first, each set refuted by weights
(:mod:`mpsearch.refutation`); what only whole choices cannot keep takes a solver, which the caller
hands over.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mpsearch.problem import Budget, Problem
from mpsearch.refutation import allowed, cheapest, refuted, spread
from mpsearch.tables import Cost, Mask, Stages, Table

Feasible = Callable[[Problem], "bool | None"]
SHOWN = 3  # layers named in a message
MOST_HELD = 100  # layers told of a budget
CLOSE = 1e-4  # of what budgets are raised by
LARGEST_RAISE = 2.0**40  # percent


@dataclass(frozen=True)
class Held:
    """Layers that take a dearer option than their cheapest one, as masks and ties have it.

    Attributes:
        budget: The cost.
        layers: One layer, or all that are tied.
        option: The cheapest one they may take.
        excess: How much more that costs than each layer's cheapest option.
    """

    budget: str
    layers: tuple[str, ...]
    option: str
    excess: float


@dataclass(frozen=True)
class Conflict:
    """Why a problem has no answer.

    Attributes:
        limits: What was asked, by budget.
        units: What each budget counts.
        least: The least that each budget's cost can be, the other conditions' masks counted; of a
            cost of stages a lower bound.
        conflict: The least set of budgets that cannot hold together; none where the side
            conditions cannot hold by themselves.
        proven: Whether that is proven, by weights or by the solver.
        held: What holds the conflicting budgets' least up, the largest excess first.
        percent: Raising every budget by no more than this, of its size, is not enough.
        enough: Raising every budget by this is; ``None`` where no solver told.
        raised: The limits it is then about, by budget.
    """

    limits: Mapping[str, float]
    units: Mapping[str, str]
    least: Mapping[str, float]
    conflict: tuple[str, ...]
    proven: bool
    held: tuple[Held, ...]
    percent: float
    enough: float | None
    raised: Mapping[str, float]

    def message(self) -> str:
        """What is asked too much, what holds it up, and what would do."""
        parts = [self._why(), *self._holding(), *self._would_do()]
        return f"no allocation is within every budget: {'; '.join(parts)}"

    def document(self) -> dict[str, Any]:
        """All of it as plain values; an infinite number is ``None``."""
        plain = {key: value for key, value in asdict(self).items() if key != "percent"}
        return plain | {
            "conflict": list(self.conflict),
            "held": [asdict(one) | {"layers": list(one.layers)} for one in self.held],
            "percent": self.percent if math.isfinite(self.percent) else None,
        }

    def _why(self) -> str:
        short = [
            f"{name}: {limit} asked, {self.least[name]} is the least achievable"
            f" ({self.units[name]})"
            for name, limit in self.limits.items()
            if limit < self.least[name]
        ]
        if short:
            return "; ".join(short)
        if not self.conflict:
            return "the side conditions cannot hold together, whatever the budgets"
        if len(self.conflict) == 1:
            return f"{self.conflict[0]} cannot be kept together with the side conditions"
        alone = "each budget is achievable alone, but not all conditions together"
        return f"{alone}: {', '.join(self.conflict)} conflict"

    def _holding(self) -> Iterator[str]:
        told = [
            f"{' = '.join(one.layers)} ({one.excess:.6g} {self.units[one.budget]} above the"
            f" cheapest, at {one.option})"
            for one in self.held[:SHOWN]
        ]
        more = len(self.held) - len(told)
        if told:
            yield f"held up by {', '.join(told)}" + (f" and {more} more" if more else "")

    def _would_do(self) -> Iterator[str]:
        if not math.isfinite(self.percent) or not self.limits:
            yield "loosen a side condition or add cheaper options"
        elif self.enough is None:
            yield (
                f"raise every budget by {self.percent:.4g} % or more, or one of them further,"
                " or add cheaper options"
            )
        else:
            what = ", ".join(f"{name}={limit}" for name, limit in self.raised.items())
            yield (
                f"every budget raised by {self.enough:.4g} % will do ({what}); or loosen one"
                " further, or add cheaper options"
            )


def why(problem: Problem, feasible: Feasible | None = None) -> Conflict:
    """What makes a problem infeasible, which the caller knows it to be.

    Args:
        problem: The one without an answer.
        feasible: Whether a problem has one, by a solver; ``None`` where that was not found out.
    """
    problem = replace(problem, interactions=())
    merged, groups = problem.merged()
    budgets = merged.budgets
    chosen, proven = _least_set(problem, merged, feasible)
    percent = _percent(merged)
    enough = _enough(problem, percent, feasible) if math.isfinite(percent) else None
    by = percent if enough is None else enough
    raised = _raised(problem, by).budgets if math.isfinite(by) else ()
    names = tuple(budgets[i].cost.name for i in chosen)
    return Conflict(
        {b.cost.name: b.limit for b in budgets},
        {b.cost.name: b.cost.unit for b in budgets},
        {b.cost.name: _least(merged, place) for place, b in enumerate(budgets)},
        names,
        proven,
        tuple(_held(problem, merged, groups, names)),
        percent,
        enough,
        {b.cost.name: b.limit for b in raised},
    )


def _least(merged: Problem, place: int) -> float:
    """The least of one budget's cost under the masks of all the others."""
    cost = merged.budgets[place].cost
    mask = _others(merged, merged.budgets, cost)
    if isinstance(cost, Stages):
        stages = (spread(stage, mask.shape) for stage in cost.stages)
        least = max(float(np.where(mask, s, np.inf).min(axis=1).sum()) for s in stages)
        return least + cost.fixed
    return cost.total(cheapest(cost, mask))


def _least_set(
    problem: Problem, merged: Problem, feasible: Feasible | None
) -> tuple[tuple[int, ...], bool]:
    """The places of the fewest budgets that conflict, and whether that is proven."""
    every = range(len(merged.budgets))
    sets = [s for size in range(len(every) + 1) for s in itertools.combinations(every, size)]
    first = next((s for s in sets if refuted(merged, [merged.budgets[i] for i in s])), None)
    for chosen in sets if feasible else ():
        if first is not None and len(chosen) >= len(first):
            break
        if not chosen and not problem.constraints:
            continue
        held = tuple(problem.budgets[i] for i in chosen)
        if feasible is not None and feasible(replace(problem, budgets=held)) is False:
            return chosen, True
    return (tuple(every), False) if first is None else (first, True)


def _held(
    problem: Problem, merged: Problem, groups: Sequence[int], names: Sequence[str]
) -> list[Held]:
    """Groups of layers whose cheapest allowed option is dearer than their cheapest one."""
    found = []
    index = np.asarray(groups)
    for before, after in zip(problem.budgets, merged.budgets, strict=True):
        cost, tied = before.cost, after.cost
        if cost.name not in names or not isinstance(cost, Table) or not isinstance(tied, Table):
            continue
        mask = _others(merged, [b for b in merged.budgets if b.cost.name in names], tied)
        options = cheapest(tied, mask)
        add, start = (np.add, 0) if cost.reduce == "sum" else (np.maximum, -np.inf)
        alone = np.full(len(options), start, np.float64)
        add.at(alone, index, cost.chosen(cheapest(cost, cost.allowed)))
        excess = tied.chosen(options) - alone
        for group in np.argsort(-excess, kind="stable")[:MOST_HELD].tolist():
            if excess[group] > 1e-12 * abs(alone[group]):
                members = np.flatnonzero(index == group).tolist()
                layers = tuple(problem.loss.layers[i].name for i in members)
                option = str(problem.loss.options[int(options[group])])
                found.append(Held(cost.name, layers, option, float(excess[group])))
    return sorted(found, key=lambda one: -one.excess)


def _others(merged: Problem, budgets: Sequence[Budget], cost: Cost) -> Mask:
    """(L, K) what is allowed under all of the budgets but a cost's own."""
    mask = allowed(merged, [b for b in budgets if b.cost is not cost])
    some: Mask = np.asarray(mask.any(axis=1))
    return np.where(some[:, None], mask, merged.mask)


def _raised(problem: Problem, percent: float) -> Problem:
    """The problem with every limit raised by a part of its size."""
    budgets = []
    for place, budget in enumerate(problem.budgets):
        size = abs(budget.limit) or abs(_least(problem, place)) or 1.0
        limit = budget.limit + percent / 100 * size
        whole = budget.cost.exact and math.isfinite(limit)
        budgets.append(Budget(budget.cost, math.floor(limit) if whole else limit))
    return replace(problem, budgets=tuple(budgets))


def _percent(merged: Problem) -> float:
    """What raising every budget by is proven not to be enough; infinite where nothing would be."""
    if not merged.budgets or refuted(merged, ()):
        return math.inf
    low, high = 0.0, 1.0
    while refuted(raised := _raised(merged, high), raised.budgets):
        low, high = high, 4 * high
        if high > LARGEST_RAISE:
            return math.inf
    if low == 0.0 and not refuted(merged, merged.budgets):
        return 0.0
    while high - low > CLOSE * high and high > 1e-6:
        middle = (low + high) / 2
        raised = _raised(merged, middle)
        low, high = (middle, high) if refuted(raised, raised.budgets) else (low, middle)
    return low


def _enough(problem: Problem, percent: float, feasible: Feasible | None) -> float | None:
    """A little more than that, by which there is an answer, as the solver finds one."""
    if feasible is None:
        return None
    for more in (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0):
        by = percent * (1 + more / 100) + more
        if feasible(_raised(problem, by)):
            return by
    return None
