"""NSGA-II through pymoo: three and more objectives, or objectives only a real run can tell.

Deb, Pratap, Agarwal and Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II",
2002. By itself it loses what it was seeded with as soon as the frontier is larger than the
population; so all that was looked at goes through an archive of what nothing dominates.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from mpsearch.pareto import Point
from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.population import Genes, Integers, Objective, Scores, distinct, living
from mpsearch.tables import Cost, Floats, Mask, Stages, Table

LOW, HIGH = -20, 12  # powers of two between which costs are priced, as parts of their spans
SEEDS = 4096  # prices, for each of which there is a supported solution
ROUNDING = 1e-12  # of a sum: what is worse by less is looked at exactly


@dataclass(frozen=True)
class NSGA2:
    """The least loss, or a frontier of two, three or more objectives, by pymoo's NSGA-II.

    Attributes:
        population: How many choices live at a time.
        generations: How many times they bear.
        seed: Of all chance.
        objective: What a real run of a choice gives, less is better, in place of the table's loss.
            The answer's loss is the table's all the same, and its bound minus infinity.
    """

    population: int = 100
    generations: int = 100
    seed: int = 0
    objective: Objective | None = None

    def __post_init__(self) -> None:
        """Refuse what is no population, and to go without pymoo."""
        living(self.population, self.generations)
        _need_pymoo("NSGA2")

    def solve(self, problem: Problem) -> Solution:
        """The best choice of all that were looked at."""
        if (genes := Genes.of(problem, every=self.objective is not None)) is None:
            return infeasible("nsga2")
        scores = Scores(genes, self.objective)

        def look(population: Integers) -> tuple[Floats, Floats] | None:
            if scores.optimal:
                return None
            fitness, excess = scores.of(population)
            return np.stack([fitness, genes.used(population).sum(axis=0)], axis=1), excess

        start = genes.starts(self.population, np.random.default_rng(self.seed))
        self._run(genes, start, look, 2)
        return scores.solution("nsga2")

    def frontier(
        self, problem: Problem, objectives: Mapping[str, Objective] | None = None
    ) -> tuple[Point, ...]:
        """Points none of which another dominates, within all conditions, cheapest first.

        Objectives are the loss and every cost of the problem. Those that are named take the loss's
        place, each run once for a choice, and stand among a point's costs; ``inf`` says that a run
        failed. Nothing is proven: bounds are minus infinity.
        """
        if not objectives:
            objectives = None if self.objective is None else {"objective": self.objective}
        taken = {"loss", *(cost.name for cost in problem.costs)}
        for name in taken & set(objectives or ()):
            raise ValueError(f"an objective is named {name!r}, as a number of the problem is")
        if (genes := Genes.of(problem, every=True)) is None:
            return ()
        archive = _Archive(genes, objectives)
        rng = np.random.default_rng(self.seed)
        known = genes.supported(*_prices(genes, rng))
        known = known[genes.excess(genes.used(known)) <= 0]
        if objectives is None:  # all of them cost nothing to look at
            archive.look(known)
            known = archive.population
        apart = np.linspace(0, len(known) - 1, min(self.population // 2, len(known))).round()
        start = distinct(np.vstack([known[apart.astype(int)], genes.starts(self.population, rng)]))
        self._run(genes, start[: self.population], archive.look, archive.width)
        return archive.points()

    def _run(self, genes: Genes, start: Integers, look: "_Look", width: int) -> None:
        """Let pymoo say what to look at, until there is nothing new or no generation left.

        What breaks a condition, and what failed, is infeasible to it, and its numbers do not count.
        """
        from pymoo.algorithms.moo import nsga2
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.problem import Problem as Space
        from pymoo.core.termination import NoTermination
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.problems.static import StaticProblem

        if genes.many <= self.population * (self.generations + 1):  # then all of them
            sizes: list[int] = genes.sizes.tolist()
            every = np.indices(sizes).reshape(len(sizes), -1).T
            for at in range(0, len(every), self.population):
                if look(every[at : at + self.population]) is None:
                    return
            return
        n, most = len(genes.sizes), genes.sizes - 1
        space: Any = Space(n, width, n_ieq_constr=1, xl=np.zeros(n, int), xu=most, vtype=int)
        make: Any = nsga2.NSGA2
        algorithm = make(
            pop_size=self.population,
            sampling=start,
            crossover=UniformCrossover(),
            mutation=PM(eta=3, repair=RoundingRepair()),
        )
        algorithm.setup(space, termination=NoTermination(), seed=self.seed)
        for _ in range(self.generations + 1):
            asked = algorithm.ask()
            if asked is None or not len(asked):
                return
            seen = look(asked.get("X").astype(np.int64))
            if seen is None:
                return
            values, broken = seen
            failed: Mask = ~np.all(np.isfinite(values), axis=1)
            known = {"F": np.where(failed[:, None], 0.0, values), "G": (broken + failed)[:, None]}
            Evaluator().eval(StaticProblem(space, **known), asked)
            algorithm.tell(infills=asked)


_Look = Callable[[Integers], tuple[Floats, Floats] | None]


class _Archive:
    """All that nothing dominates, of what was looked at."""

    def __init__(self, genes: Genes, objectives: Mapping[str, Objective] | None) -> None:
        self.genes, self.problem, self.objectives = genes, genes.problem, objectives
        self.width = (1 if objectives is None else len(objectives)) + len(self.problem.costs)
        self.known: dict[tuple[int, ...], tuple[float, ...]] = {}
        self.population = np.zeros((0, len(genes.sizes)), np.int64)
        self.values = np.zeros((0, self.width))

    def look(self, population: Integers) -> tuple[Floats, Floats]:
        """(P, width) costs and then losses or runs, and (P,) by how much conditions are broken."""
        choices = self.genes.choices(population)
        excess = self.genes.excess(self.genes.used(population))
        costs = [_totals(cost, choices) for cost in self.problem.costs]
        values = np.column_stack([*costs, *self._measured(choices, excess <= 0)])
        kept = np.flatnonzero((excess <= 0) & np.isfinite(values).all(axis=1))
        better = values[kept] - ROUNDING * np.abs(values[kept])
        self._take(population[kept[~_beaten(better, self.values)]])
        return values, excess

    def _measured(self, choices: Integers, runs: Mask) -> list[Floats]:
        """The loss, or what the objectives say; they are asked only where nothing is broken."""
        if self.objectives is None:
            return [_losses(self.problem, choices)]
        values = np.full((len(choices), len(self.objectives)), np.inf)
        for row in np.flatnonzero(runs):
            values[row] = self._run(tuple(choices[row].tolist()), self.objectives)
        return list(values.T)

    def _run(
        self, choice: tuple[int, ...], objectives: Mapping[str, Objective]
    ) -> tuple[float, ...]:
        if choice not in self.known and not self.problem.feasible(choice):
            self.known[choice] = (math.inf,) * len(objectives)
        if choice not in self.known:
            found = tuple(float(objective(choice)) for objective in objectives.values())
            for name, value in zip(objectives, found, strict=True):
                if math.isnan(value):
                    raise ValueError(f"{name!r} is nan for {choice}; give a number, or inf")
            self.known[choice] = found
        return self.known[choice]

    def _take(self, population: Integers) -> None:
        """Keep what nothing dominates and no condition forbids when all numbers are exact."""
        fits = [self.problem.feasible(c) for c in self.genes.choices(population).tolist()]
        population = population[np.array(fits, bool)]
        choices = map(tuple, self.genes.choices(population).tolist())
        values = np.array([self._exact(c) for c in choices]).reshape(-1, self.width)
        fresh = ~_beaten(values, self.values)
        population, values = population[fresh], values[fresh]
        first = _undominated(values)
        old = ~_beaten(self.values, values[first])
        self.population = np.vstack([self.population[old], population[first]])
        self.values = np.vstack([self.values[old], values[first]])

    def _exact(self, choice: tuple[int, ...]) -> tuple[float, ...]:
        costs = (cost.total(choice) for cost in self.problem.costs)
        return (*costs, *(self.known[choice] if self.objectives else [self.problem.total(choice)]))

    def points(self) -> tuple[Point, ...]:
        """What is kept, the least of the first cost first."""
        names = [*(cost.name for cost in self.problem.costs), *(self.objectives or ())]
        choices = map(tuple, self.genes.choices(self.population).tolist())
        return tuple(
            Point(c, self.problem.total(c), -math.inf, dict(zip(names, values, strict=False)))
            for values, c in sorted((self._exact(c), c) for c in choices)
        )


def hypervolume(points: Sequence[Point], reference: Mapping[str, float]) -> float:
    """The volume between a reference and what points dominate, by pymoo's indicator.

    Objectives are those the reference names: ``loss``, and costs of the points.
    """
    _need_pymoo("hypervolume")
    from pymoo.indicators.hv import HV

    for name in reference.keys() - {"loss"}:
        if any(name not in point.cost for point in points):
            raise ValueError(f"no cost of the points is named {name!r}; name loss, or a cost")
    if not points:
        return 0.0
    rows = [[({"loss": p.loss} | dict(p.cost))[name] for name in reference] for p in points]
    indicator: Any = HV(ref_point=np.array([*reference.values()], float))
    return float(indicator(np.array(rows, float)))


def _need_pymoo(what: str) -> None:
    if find_spec("pymoo") is None:
        raise ImportError(f'{what} needs pymoo: pip install "mpsearch[evolution]"')


def _prices(genes: Genes, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(W, V) prices and (V, n, K) of what they are of: every cost that is a sum, as part of it."""
    merged, _ = genes.problem.merged()
    program = genes.program
    layer = np.array(program.layers)[program.owner, 0]
    sums = [c for c in merged.costs if isinstance(c, Table) and c.reduce == "sum"]
    flat = [c.values[layer, program.columns[:, 0]].astype(np.float64) for c in sums]
    costs = np.array(flat).reshape(len(sums), len(layer))
    costs -= program.least(costs)[:, program.owner]
    costs /= np.maximum(program.most(costs).sum(axis=1), 1e-300)[:, None]
    if len(sums) < 3:
        ladder = 2.0 ** np.linspace(LOW, HIGH, round(SEEDS ** (1 / max(len(sums), 1))))
        prices = np.array([*itertools.product(np.append(ladder, 0.0), repeat=len(sums))])
    else:
        prices = 2.0 ** rng.uniform(LOW, HIGH, (SEEDS, len(sums)))
    return prices.reshape(len(prices), len(sums)), genes.spread(costs)


def _losses(problem: Problem, choices: Integers) -> Floats:
    """(P,) the loss of (P, L) choices."""
    total = _chosen(problem.loss, choices).sum(axis=1) + problem.loss.fixed
    for pair in problem.interactions:
        one = choices[:, pair.first] == pair.first_option
        total += pair.loss * (one & (choices[:, pair.second] == pair.second_option))
    return np.asarray(total)


def _totals(cost: Cost, choices: Integers) -> Floats:
    """(P,) a cost of (P, L) choices."""
    if isinstance(cost, Stages):
        sums = [
            sum((value * (choices[:, row] == column) for row, column, value in stage), 0.0)
            + np.zeros(len(choices))
            for stage in cost.stages
        ]
        return np.asarray(np.max(sums, axis=0) + cost.fixed)
    chosen = _chosen(cost, choices)
    return np.asarray(
        (chosen.sum(axis=1) if cost.reduce == "sum" else chosen.max(axis=1)) + cost.fixed
    )


def _chosen(table: Table, choices: Integers) -> Floats:
    """(P, L) the chosen numbers."""
    return np.asarray(table.values[np.arange(choices.shape[1]), choices], np.float64)


def _beaten(values: Floats, by: Floats) -> Mask:
    """(N,) whether one of the others is nowhere above it."""
    step = max((1 << 20) // max(len(by), 1), 1)
    parts = [
        np.any(np.all(by[None] <= values[at : at + step, None], axis=2), axis=1)
        for at in range(0, len(values), step)
    ]
    return np.concatenate([np.zeros(0, bool), *parts])


def _undominated(values: Floats) -> Integers:
    """Indices of the rows that no other dominates; of equals the first."""
    order = np.lexsort(values.T[::-1])
    kept = order[:0]
    for at in range(0, len(order), 256):  # in this order only what is before dominates
        block = order[at : at + 256]
        block = block[~_beaten(values[block], values[kept])]
        nowhere = (values[block][None] <= values[block][:, None]).all(axis=2)
        kept = np.append(kept, block[~np.tril(nowhere, -1).any(axis=1)])
    return kept
