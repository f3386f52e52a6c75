"""EvoPress: of one choice and the children that level switches make of it, the best lives on.

Sieberling, Kuznedelev, Kurtic and Alistarh, "EvoPress: Accurate Dynamic Model Compression via
Evolutionary Search", 2025: a (1 + lambda) search. A switch raises a layer by one level and lowers
another by what the first takes, exactly, so that the cost stays as it is. Where no layer gives back
exactly that much, and the raise does not fit by itself, others change until the budgets hold.
"""

from dataclasses import dataclass

import numpy as np

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.population import Genes, Integers, Objective, Scores
from mpsearch.tables import Mask


@dataclass(frozen=True)
class Evolution:
    """The least loss, or the least of an objective, that level switches come to.

    Attributes:
        generations: How many times children are made.
        offspring: How many children a generation has.
        switches: Most switches that make a child; of two draws the smaller one holds.
        seed: Of all chance.
        objective: What a real run of a choice gives, less is better, in place of the table's loss.
            The answer's loss is the table's all the same, and its bound minus infinity.
    """

    generations: int = 150
    offspring: int = 128
    switches: int = 3
    seed: int = 0
    objective: Objective | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no child."""
        for name, least in (("generations", 0), ("offspring", 1), ("switches", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}, got {getattr(self, name)!r}")

    def solve(self, problem: Problem) -> Solution:
        """The best choice of all that lived."""
        genes = Genes.of(problem, every=self.objective is not None)
        if genes is None:
            return infeasible("evolution")
        rng = np.random.default_rng(self.seed)
        scores = Scores(genes, self.objective)
        first = genes.starts(self.offspring, rng)
        parent = first[scores.ranked(first)[0]]
        for _ in range(self.generations):
            if scores.optimal:
                break
            # The parent comes last: of equals a child lives on.
            family = np.vstack([self.children(genes, parent, rng), parent])
            parent = family[scores.ranked(family)[0]]
        return scores.solution("evolution")

    def children(self, genes: Genes, parent: Integers, rng: np.random.Generator) -> Integers:
        """(offspring, n) what one to a few switches make of (n,) a choice's levels."""
        born = np.tile(parent, (self.offspring, 1))
        draws = rng.integers(1, self.switches, (2, self.offspring), endpoint=True)
        for switch in range(self.switches):
            rows = np.flatnonzero(switch < draws.min(axis=0))
            born[rows] = _switched(genes, born[rows], rng)
        return genes.mended(born, rng)


def _switched(genes: Genes, levels: Integers, rng: np.random.Generator) -> Integers:
    """(P, n) each with one gene a level up, and another down that gives back what it takes."""
    levels, rows = levels.copy(), np.arange(len(levels))
    every = np.arange(len(genes.sizes))
    if not len(genes.usage):  # nothing to keep equal
        gene = rng.integers(len(every), size=len(rows))
        levels[rows, gene] = genes.drawn(rng, len(rows))[rows, gene]
        return levels
    up, found = _any_of(levels < genes.sizes - 1, rng)
    rows, up = rows[found], up[found]
    here = levels[rows]
    now = here[np.arange(len(rows)), up]
    taken = genes.usage[:, up, now + 1] - genes.usage[:, up, now]
    given = genes.usage[:, every, here][..., None] - genes.usage[:, None]
    equal = np.all(given == taken[:, :, None, None], axis=0)
    equal &= (np.arange(equal.shape[2]) < here[..., None]) & (every != up[:, None])[..., None]
    levels[rows, up] += 1
    pair, found = _any_of(equal.reshape(len(rows), genes.loss.size), rng)
    down, to = np.divmod(pair, equal.shape[2])
    levels[rows[found], down[found]] = to[found]
    return levels


def _any_of(mask: Mask, rng: np.random.Generator) -> tuple[Integers, Mask]:
    """(P,) one of the true entries of each row at random, and (P,) whether there is one."""
    drawn = np.where(mask, rng.random(mask.shape), -1.0)
    return drawn.argmax(axis=1), np.asarray(mask.any(axis=1))
