"""A genetic search: the best choices live on, and bear mutated and crossed ones.

As in EQ-Net (Xu and others, "EQ-Net: Elastic Quantization Neural Networks", 2023) and APQ (Wang and
others, "APQ: Joint Search for Network Architecture, Pruning and Quantization Policy", 2020): a
quarter of the population are parents, genes are drawn anew with a probability, crossover is
uniform. What is wrong in their published code is right here:

- APQ asks for the fitness without the bits, so that it cannot tell them apart; here it is the whole
  choice's.
- APQ takes in only the first 50 of every 100 children; here all of them.
- EQ-Net's script sets a probability of mutation that its search does not read; here it is the one
  that holds.
- EQ-Net draws until the mean bits fall in a band below the budget, which may be never, and shuts
  cheaper answers out; here what is over a budget is brought within it, and cheaper answers count.

:class:`Genes` and :class:`Scores` are the ground of the other searches over populations, too.
"""

from dataclasses import dataclass

import numpy as np

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.population import Genes, Integers, Objective, Scores, distinct, living


@dataclass(frozen=True)
class Genetic:
    """The least loss, or the least of an objective, that generations of a population come to.

    Attributes:
        population: How many choices live at a time.
        generations: How many times they bear.
        parents: What part of them lives on and bears.
        mutated: What part of the children is mutated; the others are crossed.
        mutate: How probably a gene of a mutated child is drawn anew.
        seed: Of all chance.
        objective: What a real run of a choice gives, less is better, in place of the table's loss.
            The answer's loss is the table's all the same, and its bound minus infinity.
    """

    population: int = 100
    generations: int = 100
    parents: float = 0.25
    mutated: float = 0.5
    mutate: float = 0.1
    seed: int = 0
    objective: Objective | None = None

    def __post_init__(self) -> None:
        """Refuse what is no population or no probability."""
        living(self.population, self.generations)
        for name in ("parents", "mutated", "mutate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is above 0 and at most 1, got {getattr(self, name)!r}")

    def solve(self, problem: Problem) -> Solution:
        """The best choice of all that lived."""
        genes = Genes.of(problem, every=self.objective is not None)
        if genes is None:
            return infeasible("genetic")
        rng = np.random.default_rng(self.seed)
        scores = Scores(genes, self.objective)
        population = genes.starts(self.population, rng)
        ranked = scores.ranked(population)
        for _ in range(self.generations):
            if scores.optimal:
                break
            parents = population[ranked[: max(round(self.parents * self.population), 1)]]
            children = self._children(genes, parents, rng)
            population = distinct(np.vstack([parents, children]))
            ranked = scores.ranked(population)
        return scores.solution("genetic")

    def _children(self, genes: Genes, parents: Integers, rng: np.random.Generator) -> Integers:
        """As many as make the population whole, within their budgets where that is found."""
        count = self.population - len(parents)
        mutants = round(self.mutated * count)
        mutated = parents[rng.integers(len(parents), size=mutants)]
        anew = rng.random(mutated.shape) < self.mutate
        mutated = np.where(anew, genes.drawn(rng, mutants), mutated)
        one, two = parents[rng.integers(len(parents), size=(2, count - mutants))]
        crossed = np.where(rng.random(one.shape) < 0.5, one, two)
        return genes.mended(np.vstack([mutated, crossed]), rng)
