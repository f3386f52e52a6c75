"""One budget split between groups of layers whose losses are not comparable, by an outer grid.

As in MixDQ (Zhao et al. 2024, arXiv 2405.17873): each split leaves one problem a group, which is
solved on its own, and what the answers are worth together is measured.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mpsearch.allocation import Allocation
from mpsearch.baselines import instead, name
from mpsearch.choosing import chosen
from mpsearch.formats import Option
from mpsearch.pipeline import solve
from mpsearch.problem import Budget, Constraint, Problem, Solution, Status
from mpsearch.protocols import Solver
from mpsearch.tables import Cost, Floats, Mask, Table

if TYPE_CHECKING:
    from mpsearch.sweep import Sweep

Judge = Callable[[Allocation], float]
_BITS: dict[str, int] = {"byte": 8, "bit": 1}
_NOTE = re.compile(r"group (?P<quote>['\"])(?P<name>.+?)(?P=quote): (?P<unit>.*)")
_EDGE = 1e-9  # of an average, at the ends of what a group's options can cost
_ROUNDING = 1e-12  # of what an average allows a group; the whole is held to its budget exactly


@dataclass(frozen=True)
class Grid:
    """Averages over all layers, and ratios between those of the groups, that are tried together.

    An average is a cost per element, in bits where the cost is in bytes. With T the budget's, the
    averages B lie evenly from ``T - below`` to T. A ratio k is a group's average over that of the
    last group, so that the last one has ``B sum(w) / (w_last + sum(k w))``, w being elements. A
    point is left out where a group's average is outside what its options can cost.

    At a point each group spends its average to within ``band``, more or less; where that is None,
    at most its average. What exceeds T in all is left out. With more than two groups, all but the
    last take each ratio with each.
    """

    below: float = 0.3
    averages: int = 10
    ratios: tuple[float, ...] = tuple(np.linspace(0.46, 1.36, 10).tolist())
    band: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        ratios = self.ratios and all(0 < ratio < math.inf for ratio in self.ratios)
        off = all(0 <= each < math.inf for each in (self.below, self.band or 0))
        if not (ratios and off and self.averages >= 1):
            raise ValueError(
                f"{self} is no grid; wanted below and band from 0 up, 1 average or more, and 1"
                " positive ratio or more"
            )

    def points(self, target: float, elements: Sequence[float]) -> Iterator[tuple[float, ...]]:
        """The groups' averages at every point, for the average that the budget allows."""
        first = target - self.below if self.averages > 1 else target
        for average in np.linspace(first, target, self.averages).tolist():
            for ratios in itertools.product(self.ratios, repeat=len(elements) - 1):
                weighed = math.fsum(k * w for k, w in zip((*ratios, 1.0), elements, strict=True))
                last = average * math.fsum(elements) / weighed
                yield (*(k * last for k in ratios), last)


WEIGHTS = Grid(band=0.02)
"""MixDQ's for weights, the content group first and the quality group last."""
ACTIVATIONS = Grid(ratios=tuple(np.linspace(0.94, 1.09, 20).tolist()), band=0.02)
"""MixDQ's for activations."""


@dataclass(frozen=True)
class Candidate:
    """The groups' averages at a point of a grid, their answers together, and how these are judged.

    Of points that lead to the same answers, the first. The lower the objective, the better.
    """

    averages: Mapping[str, float]
    allocation: Allocation
    objective: float


@dataclass(frozen=True)
class Split:
    """The best allocation, each that the grid led to in its order, and how many points it had."""

    allocation: Allocation
    candidates: tuple[Candidate, ...]
    points: int


def split(
    loss: Table | Problem,
    budgets: Mapping[Cost, float | str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    *,
    grid: Grid = Grid(),
    judge: Judge | None = None,
    elements: Sequence[float] | None = None,
    solver: str | Solver = "auto",
    sweep: "Sweep | None" = None,
) -> Split:
    """The best allocation over a grid of splits of one budget between groups of layers.

    The budget is kept exactly. ``bound`` and baselines of the answer are those of the whole
    problem, whose loss is a sum over groups even where that means little.

    Args:
        groups: Names of each group's layers, each layer in one; by default what the table's notes
            say, as ``metric-decoupled`` writes them.
        judge: Says what an allocation is worth when it is run, the lower the better: MixDQ takes
            the squared error of images. Without it, it is the loss where all groups are in one
            unit, else the sum over groups of ``(loss - least) / (uniform - least)``: least is
            what the group loses without a budget, uniform what it loses at the best single option
            within it (the most it can lose, where there is none or it loses no more than least).
        elements: What averages are over, one number a layer: by default stored weights.
        solver: Of a group's problem. ``auto`` takes it over where the answer spends less than the
            band allows.
        sweep: Runs and keeps what is measured: its ``study`` must name the judge.

    Raises ``Infeasible`` where nothing is within the budget, ``ValueError`` where the grid has no
    point within it, for ties between groups, side constraints, interactions, and more or less
    than one budget on a sum.
    """
    held = tuple(Budget.of(cost, limit) for cost, limit in (budgets or {}).items())
    problem = loss if isinstance(loss, Problem) else Problem(loss, held)
    budget, cost = _budget(problem)
    parts = _parts(problem, cost, _inside(problem, groups), _elements(problem, cost, elements))
    whole = solve(problem, solver=solver)
    sizes = [part.elements for part in parts]
    target = (budget.limit - cost.fixed) * _BITS.get(cost.unit, 1) / math.fsum(sizes)
    points = list(grid.points(target, sizes))
    found: dict[tuple[int, ...], dict[str, float]] = {}
    for averages in points:
        choice = _joined(parts, averages, grid.band, solver)
        if choice and problem.feasible(choice):
            found.setdefault(choice, {p.name: a for p, a in zip(parts, averages, strict=True)})
    if not found:
        raise ValueError(
            f"none of the grid's {len(points)} points has an answer within budget {cost.name!r}, an"
            f" average of {target:.4g}; give other ratios, more below, or another band"
        )
    made = [_allocation(problem, choice, whole) for choice in found]
    simple = [b for b in (whole.uniform, whole.template) if b is not None]
    made += [instead(made[0], b, f"{name(b)} is judged better than every split") for b in simple]
    scores = _measured(made, judge, sweep) if judge else _predicted(made, problem, parts)
    best = min(range(len(made)), key=scores.__getitem__)
    told: dict[str, Any] = {"question": "split", "judged": "measured" if judge else "predicted"}
    told |= {"objective": scores[best], **made[best].provenance}
    candidates = map(Candidate, found.values(), made, scores)  # as many as were found
    return Split(replace(made[best], provenance=told), tuple(candidates), len(points))


@dataclass(frozen=True, eq=False)
class _Part:
    """A group's problem without the budget: all layers, of which only its own lose and cost."""

    name: str
    inside: Mask
    problem: Problem
    cost: Table
    elements: float

    def choice(self, average: float, band: float | None, solver: str | Solver) -> tuple[int, ...]:
        """Its answer at an average; empty where it has none."""
        size = self.elements / _BITS.get(self.cost.unit, 1)
        numbers, mask = self.cost.values, self.problem.mask
        least = np.where(mask, numbers, np.inf).min(axis=1).sum()
        most = np.where(mask, numbers, -np.inf).max(axis=1).sum()
        if not least * (1 - _EDGE) <= average * size <= most * (1 + _EDGE):
            return ()
        limit = (average + (band or 0)) * size * (1 + _ROUNDING)
        held = replace(self.problem, budgets=(*self.problem.budgets, Budget(self.cost, limit)))
        found = _solved(held, solver)
        floor = -math.inf if band is None else (average - band) * size * (1 - _ROUNDING)
        if not found or self.cost.total(found) >= floor:
            return found
        terms = tuple(
            (row, column, number)
            for row in np.flatnonzero(self.inside).tolist()
            for column, number in enumerate(numbers[row].tolist())
        )
        spent = Constraint(f"least that group {self.name!r} spends", terms, least=floor)
        return _solved(replace(held, constraints=(spent,)), "auto")


def _solved(problem: Problem, solver: str | Solver) -> tuple[int, ...]:
    by, choice = chosen(solver, problem)
    found = by.solve(problem)
    if found.status is Status.UNKNOWN:
        raise RuntimeError(f"solver {choice.name!r}: {found.status.value}")
    return found.choice


def _joined(
    parts: Sequence[_Part], averages: Sequence[float], band: float | None, solver: str | Solver
) -> tuple[int, ...]:
    """Each group's answer for its own layers; empty where one has none."""
    joined = np.zeros(len(parts[0].inside), np.int64)
    for part, average in zip(parts, averages, strict=True):
        choice = part.choice(average, band, solver)
        if not choice:
            return ()
        joined = np.where(part.inside, choice, joined)
    return tuple(joined.tolist())


def _budget(problem: Problem) -> tuple[Budget, Table]:
    """The one that is split."""
    if problem.interactions or problem.constraints:
        raise ValueError(
            "each group is solved on its own, so a split takes no interactions and no side"
            " constraints; leave them out, or use solve"
        )
    sums = [budget for budget in problem.budgets if not budget.on_maximum]
    if len(sums) != 1 or not isinstance(sums[0].cost, Table):
        names = ", ".join(repr(budget.cost.name) for budget in sums) or "none"
        raise ValueError(
            f"the budgets to split are {names}; wanted one, on a cost that adds up over layers"
        )
    return sums[0], sums[0].cost


def _noted(loss: Table) -> dict[str, tuple[str, Mask]]:
    """The unit of each group that a table notes, and which layers are in it."""
    matches = [(_NOTE.fullmatch(note), where) for note, where in loss.notes.items()]
    return {m["name"]: (m["unit"], np.asarray(w.any(axis=1))) for m, w in matches if m}


def _inside(problem: Problem, groups: Mapping[str, Sequence[str]] | None) -> dict[str, Mask]:
    """Which layers are in each group; ties keep within one."""
    names = [layer.name for layer in problem.loss.layers]
    for layer in [each for members in (groups or {}).values() for each in members]:
        if layer not in names:
            raise ValueError(f"the groups name layer {layer!r}, which the loss does not have")
    inside = {group: np.isin(names, list(members)) for group, members in (groups or {}).items()}
    inside = inside or {group: where for group, (_, where) in _noted(problem.loss).items()}
    if not inside:
        raise ValueError(
            "the loss notes no groups; give groups, such as {'content': [layer, ...], 'quality':"
            " [...]}, or a table of 'metric-decoupled'"
        )
    count = np.sum(list(inside.values()), axis=0)
    for row in np.flatnonzero(count != 1)[:1]:
        raise ValueError(
            f"layer {names[row]!r} is in {count[row]} groups; put each layer of the loss in one"
        )
    for tie in problem.ties:
        if not any(where[list(tie)].all() for where in inside.values()):
            tied = ", ".join(repr(names[row]) for row in tie)
            raise ValueError(f"layers {tied} are tied, but not in one group; put them in one")
    return inside


def _parts(
    problem: Problem, cost: Table, inside: Mapping[str, Mask], elements: Floats
) -> list[_Part]:
    """The groups' problems; a budget on a maximum holds in each."""
    others = tuple(budget for budget in problem.budgets if budget.on_maximum)
    parts = []
    for group, where in inside.items():
        loss, own = (
            replace(
                table,
                values=np.where(where[:, None], table.values, 0),
                stderr=None,
                allowed=problem.mask,
                fixed=0,
            )
            for table in (problem.loss, cost)
        )
        posed = Problem(loss, others, (own,), problem.ties)
        parts.append(_Part(group, where, posed, own, math.fsum(elements[where])))
    return parts


def _elements(problem: Problem, cost: Table, given: Sequence[float] | None) -> Floats:
    """(L,) what averages are over."""
    layers = problem.loss.layers
    counted = np.array([layer.params for layer in layers] if given is None else given, np.float64)
    right = counted.shape == (len(layers),) and (np.isfinite(counted) & (counted > 0)).all()
    if not right or (given is None and cost.unit not in _BITS):
        raise ValueError(
            f"averages of {cost.name!r} in {cost.unit} over {counted.tolist()[:5]} elements mean"
            f" nothing; give elements, {len(layers)} positive numbers that say what each layer's"
            " cost is divided by, and a grid of such averages"
        )
    return counted


def _allocation(problem: Problem, choice: tuple[int, ...], whole: Allocation) -> Allocation:
    """With the bound and the baselines of the whole problem."""
    loss = problem.total(choice)
    bound = min(whole.bound, loss)
    made = Allocation.of(problem, Solution(choice, loss, problem.status(loss, bound), bound))
    told = {key: whole.provenance[key] for key in ("mpsearch", "solver")}
    return replace(made, uniform=whole.uniform, template=whole.template, provenance=told)


def _measured(
    allocations: Sequence[Allocation], judge: Judge, sweep: "Sweep | None"
) -> list[float]:
    """What the judge says of each."""
    from mpsearch.sweep import Sweep

    texts = [repr([(layer, str(o)) for layer, o in a.items()]) for a in allocations]
    asked = dict(zip(texts, allocations, strict=True))
    units = [(text,) for text in asked]
    found = (sweep or Sweep()).run("split", units, lambda unit: [float(judge(asked[str(*unit)]))])
    scores = {text: score for text, (score,) in zip(asked, found, strict=True)}
    for score in scores.values():
        if not math.isfinite(score):
            raise ValueError(f"the judge said {score}; wanted a finite number, lower is better")
    return [scores[text] for text in texts]


def _predicted(
    allocations: Sequence[Allocation], problem: Problem, parts: Sequence[_Part]
) -> list[float]:
    """The loss of each, or where groups are in different units the sum of their shares."""
    if len({unit for unit, _ in _noted(problem.loss).values()}) < 2:
        return [allocation.loss for allocation in allocations]
    columns = {option: column for column, option in enumerate(problem.loss.options)}
    uniform = allocations[0].uniform
    scores = np.zeros(len(allocations))
    for part in parts:
        loss = part.problem.loss

        def above(layers: Mapping[str, Option], loss: Table = loss) -> float:
            return loss.total([columns[option] for option in layers.values()]) - loss.least()

        wide = (above(uniform.layers) if uniform else 0.0) or part.problem.span or 1.0
        scores += [above(allocation) / wide for allocation in allocations]
    found: list[float] = scores.tolist()
    return found
