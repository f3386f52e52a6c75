"""Populations of choices: what every search by chance stands on.

Choices are rows of levels, many at a time: drawn, brought within their budgets, and told apart by
loss or by what a real run gives.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, Status
from mpsearch.solvers.lowering import listed, lowered
from mpsearch.solvers.program import ULP, Program
from mpsearch.solvers.proof import priced, relaxed
from mpsearch.tables import Floats

Integers = NDArray[np.int64]
Objective = Callable[[tuple[int, ...]], float]
PRICES = 2.0 ** np.linspace(-20, 20, 81)  # of a row of usage, in gains
TRIED = 8  # genes for each step of a repair
CHUNK = 1 << 22  # numbers held at a time


@dataclass(frozen=True, eq=False)
class Genes:
    """A program as populations see it: (P, n) levels, a gene for each class of options.

    Levels rise with what they use of the first row. Genes and levels stand in an order made by
    their numbers alone, so that the order of layers and options leads no search elsewhere.

    Attributes:
        problem: What was asked.
        groups: The merged index of each layer.
        program: Its classes and rows, in that order.
    """

    problem: Problem
    groups: Sequence[int]
    program: Program

    @classmethod
    def of(cls, problem: Problem, *, every: bool = False) -> "Genes | None":
        """The genes of a problem; ``None`` where a layer or a condition alone leaves no answer.

        Options that another of the same layer beats in everything are left out, unless ``every``
        one may be best for an objective that the table does not hold.
        """
        found = listed(problem) if every else lowered(problem)
        return None if found is None else cls(problem, found[1], _ordered(found[0]))

    @cached_property
    def sizes(self) -> Integers:
        """(n,) how many levels a gene has."""
        return np.bincount(self.program.owner)

    @cached_property
    def many(self) -> int:
        """How many choices there are."""
        return math.prod(self.sizes.tolist())

    @cached_property
    def loss(self) -> Floats:
        """(n, K) what each level loses above the least; infinite beyond the gene's levels."""
        return np.asarray(self.spread(self.program.gain[None])[0])

    @cached_property
    def usage(self) -> Floats:
        """(R, n, K) what each level uses above the least; infinite beyond the gene's levels."""
        return self.spread(self.program.usage)

    def spread(self, values: Floats) -> Floats:
        """(V, n, K) from (V, M) numbers of options; infinite beyond the levels of a gene."""
        wide = np.full((len(values), len(self.sizes), int(self.sizes.max())), np.inf)
        owner = self.program.owner
        wide[:, owner, np.arange(len(owner)) - self.program.starts[owner]] = values
        return np.asarray(wide)

    @cached_property
    def relaxation(self) -> tuple[float, Integers]:
        """No feasible choice's loss is below the number; the (N, n) levels are near the best."""
        program = self.program
        y, near = relaxed(program)
        if program.pairs:
            bound = sum(min(loss, 0.0) for *_, loss in program.pairs) / program.unit
        else:
            bound = priced(program, y)[0]
        proven = program.bound(bound - program.slip) if math.isfinite(bound) else -math.inf
        return proven, np.atleast_2d(np.array(near)) - program.starts

    def losses(self, population: Integers) -> Floats:
        """(P,) the loss of each above the least, in powers of two."""
        picks = population + self.program.starts
        total = self.program.gain[picks].sum(axis=1)
        for one, two, loss in self.program.pairs:
            a, b = self.program.owner[[one, two]]
            total += (picks[:, a] == one) * (picks[:, b] == two) * (loss / self.program.unit)
        return np.asarray(total)

    def used(self, population: Integers) -> Floats:
        """(R, P) what each uses of every row."""
        return np.asarray(self.program.usage[:, population + self.program.starts].sum(axis=2))

    def excess(self, used: Floats) -> Floats:
        """(...) by how much totals (R, ...) are above their room, summed over the rows."""
        room = self.program.room.reshape(-1, *[1] * (used.ndim - 1))
        return np.asarray(np.maximum(used - room, 0.0).sum(axis=0))

    def choices(self, population: Integers) -> Integers:
        """(P, L) the option of every layer."""
        parts = [
            (gene, j) for gene, part in enumerate(self.program.layers) for j in range(len(part))
        ]
        genes, places = np.array(parts)[np.argsort(np.concatenate(self.program.layers))].T
        picks = population + self.program.starts
        return np.asarray(self.program.columns[picks[:, genes], places][:, np.asarray(self.groups)])

    def choice(self, levels: Integers) -> tuple[int, ...]:
        """The option of every layer."""
        return tuple(self.choices(levels[None])[0].tolist())

    def drawn(self, rng: np.random.Generator, count: int) -> Integers:
        """(count, n) levels at random."""
        return (rng.random((count, len(self.sizes))) * self.sizes).astype(np.int64)

    def supported(self, weights: Floats, values: Floats) -> Integers:
        """Distinct levels of least loss + weights . values, of (W, V) weights, (V, n, K) values."""
        step = max(CHUNK // self.loss.size, 1)
        values = np.where(np.isfinite(self.loss), values, 0.0)
        chunks = [weights[at : at + step] for at in range(0, len(weights), step)]
        found = [(self.loss + np.tensordot(w, values, 1)).argmin(axis=2) for w in chunks]
        return np.unique(np.concatenate(found), axis=0)

    def starts(self, count: int, rng: np.random.Generator) -> Integers:
        """(count, n) distinct levels to begin with, repaired where they break a condition.

        Near the relaxation's, of supported solutions, and as many again at random; all there are,
        where those are not more than ``count``.
        """
        if self.many <= count:
            strides = self.many // np.cumprod(self.sizes)
            return np.asarray(np.arange(self.many)[:, None] // strides % self.sizes)
        rows = len(self.program.room)
        mixed = rng.dirichlet(np.ones(rows), rows * rows) if rows > 1 else np.zeros((0, rows))
        ways = np.vstack([np.eye(rows), mixed])
        weights = np.vstack([np.zeros((1, rows)), *(PRICES[:, None] * way for way in ways)])
        swept = self.mended(self.supported(weights, self.usage), rng)
        swept = swept[np.lexsort((self.losses(swept), self.excess(self.used(swept))))]
        near = self.mended(self.relaxation[1], rng)
        half = np.vstack([near, swept])[: max(count // 2, 1)]
        rest = self.mended(self.drawn(rng, max(count - len(half), 0)), rng)
        return distinct(np.vstack([half, rest]))

    def mended(self, population: Integers, rng: np.random.Generator) -> Integers:
        """With broken conditions kept, where that is found.

        Step by step, among a few genes at random, the change that frees most for what it loses.
        """
        population = population.copy()
        over = np.flatnonzero(self.excess(self.used(population)) > 0)
        for _ in range(4 * len(self.sizes)):
            if not len(over):
                break
            here, used = population[over], self.used(population[over])
            some = rng.integers(len(self.sizes), size=(len(over), TRIED))
            now = np.take_along_axis(here, some, axis=1)
            change = self.usage[:, some] - self.usage[:, some, now][..., None]
            left = self.excess(used[:, :, None, None] + change)
            freed = self.excess(used)[:, None, None] - left
            lost = self.loss[some] - self.loss[some, now][..., None]
            least = ULP * (1 + np.abs(change).sum(axis=0))  # of equals the smallest change
            rate = np.maximum(freed, 0.0) / np.maximum(lost, least)
            rate = rate.reshape(len(over), -1)
            place, level = np.divmod(rate.argmax(axis=1), self.loss.shape[1])
            rows = np.flatnonzero(rate.max(axis=1) > 0)
            population[over[rows], some[rows, place[rows]]] = level[rows]
            over = over[self.excess(self.used(population[over])) > 0]
        return population


def living(population: int, generations: int) -> None:
    """Refuse what is no population."""
    if population < 2 or generations < 0:
        raise ValueError(
            "a population is of 2 and generations are not below zero, got"
            f" population={population} and generations={generations}"
        )


def distinct(population: Integers) -> Integers:
    """Each of its members once, in the order of their first appearance."""
    return population[np.sort(np.unique(population, axis=0, return_index=True)[1])]


def _ordered(program: Program) -> Program:
    """With options ordered by usage and loss within a class, and classes by those numbers."""
    keys = (-program.gain, *program.usage[::-1], program.owner)
    inside = np.lexsort(keys)
    sizes = np.bincount(program.owner)
    wide = np.full((len(program.usage) + 1, len(sizes), int(sizes.max())), np.inf)
    place = np.arange(len(inside)) - program.starts[program.owner]
    wide[:, program.owner, place] = np.vstack([program.gain, program.usage])[:, inside]
    classes = np.lexsort(wide.transpose(0, 2, 1).reshape(-1, len(sizes))[::-1])
    rank = np.argsort(classes)
    order = inside[np.argsort(rank[program.owner[inside]], kind="stable")]
    back = np.argsort(order)
    return replace(
        program,
        owner=rank[program.owner[order]],
        loss=program.loss[order],
        rows=program.rows[:, order],
        columns=program.columns[order],
        layers=tuple(program.layers[i] for i in classes),
        pairs=tuple((int(back[a]), int(back[b]), q) for a, b, q in program.pairs),
    )


class Scores:
    """How good choices are, the objective asked once of each, and the best so far."""

    def __init__(self, genes: Genes, objective: Objective | None) -> None:
        """Nothing is known yet."""
        self.genes, self.objective = genes, objective
        self.known: dict[tuple[int, ...], float] = {}
        self.best: tuple[float, tuple[int, ...]] = (math.inf, ())
        self.optimal = False

    def of(self, population: Integers) -> tuple[Floats, Floats]:
        """(P,) fitness, less is better, and (P,) by how much conditions are broken.

        Fitness is the table's loss, or what the objective says; that is asked of no choice that
        breaks a condition.
        """
        excess = self.genes.excess(self.genes.used(population))
        fitness = self.genes.losses(population)
        if self.objective is not None:
            fitness = np.where(excess > 0, np.inf, fitness)
            for row in np.flatnonzero(excess <= 0):
                fitness[row] = self._run(self.genes.choice(population[row]), self.objective)
        for row in np.lexsort((fitness, excess)):
            if excess[row] > 0 or not fitness[row] < self.best[0]:
                break
            choice = self.genes.choice(population[row])
            if self.genes.problem.feasible(choice):
                self._take(float(fitness[row]), choice)
                break
            excess[row] = ULP  # within what rounding hides, and yet above a limit
        return fitness, excess

    def ranked(self, population: Integers) -> Integers:
        """(P,) indices, best first; what breaks a condition comes after what breaks none."""
        return np.lexsort(self.of(population))

    def _run(self, choice: tuple[int, ...], objective: Objective) -> float:
        if choice not in self.known:
            feasible = self.genes.problem.feasible(choice)
            value = float(objective(choice)) if feasible else math.inf
            if math.isnan(value):
                raise ValueError(f"the objective is nan for {choice}; give a number, or inf")
            self.known[choice] = value
        return self.known[choice]

    def _take(self, fitness: float, choice: tuple[int, ...]) -> None:
        self.best = fitness, choice
        problem = self.genes.problem
        found = problem.status(problem.total(choice), self.genes.relaxation[0])
        self.optimal = self.objective is None and found is Status.OPTIMAL

    def solution(self, said: str) -> Solution:
        """The best choice and its loss in the table; of an objective nothing is proven."""
        fitness, choice = self.best
        bound = self.genes.relaxation[0] if self.objective is None else -math.inf
        if not choice:
            return Solution((), math.inf, Status.UNKNOWN, bound, said)
        if self.objective is not None:
            said = f"{said}, objective {fitness:.6g} after {len(self.known)} runs"
        loss = self.genes.problem.total(choice)
        bound = min(bound, loss)
        status = Status.OPTIMAL if self.optimal else Status.FEASIBLE
        return Solution(choice, loss, status, bound, said)
