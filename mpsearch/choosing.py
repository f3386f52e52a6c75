"""Which solver a problem is given to, by its shape, and the sentence that says why."""

import math
from dataclasses import dataclass

import numpy as np

from mpsearch.problem import Problem
from mpsearch.protocols import Solver
from mpsearch.registry import make
from mpsearch.tables import Stages, Table
from mpsearch.ties import groups_of

MANY_LAYERS = 10_000  # where a proof under several budgets takes longer than its multipliers
MANY_COMBINATIONS = 1_000  # of the options of layers that interact: above it, no list of them
MANY_OPTIONS = 4_096  # of all layers: above it, no matrix of their pairs


@dataclass(frozen=True)
class Choice:
    """A solver's name, and why it is the one; no reason where it was asked for by name."""

    name: str
    why: str = ""

    def provenance(self, answered: str = "") -> dict[str, str]:
        """What an allocation records: who answered (as it says itself), and why it was asked."""
        solver = {"solver": answered or self.name}
        return solver | {"why": self.why} if self.why else solver


def choose(problem: Problem) -> Choice:
    """The solver for a problem, by what the problem is made of.

    ``exact`` for at most one sum budget; ``milp`` or, for 10,000 layers and more, ``lagrange`` for
    several; ``milp`` for stages and side constraints; ``quadratic`` for interactions, but ``milp``
    where the layers that interact have few combinations of options, or the matrix would be large.
    """
    if problem.interactions:
        return _for_interactions(problem)
    stages = [b.cost.name for b in problem.budgets if isinstance(b.cost, Stages)]
    if stages or problem.constraints:
        parts = [_counted(len(stages), "budget") + " on stages"] if stages else []
        parts += [_counted(len(problem.constraints), "side constraint")] * bool(problem.constraints)
        return Choice("milp", f"{' and '.join(parts)}: milp is the one that takes them")
    sums = sum(isinstance(b.cost, Table) and b.cost.reduce == "sum" for b in problem.budgets)
    layers = len(problem.loss.layers)
    if problem.ties:
        layers = max(groups_of(layers, problem.ties)) + 1
    shape = f"{_counted(sums, 'sum budget')} over {_counted(layers, 'layer')}"
    if sums < 2:
        return Choice("exact", f"{shape}: exact proves the least loss at any size")
    if layers < MANY_LAYERS:
        return Choice("milp", f"{shape}: below {MANY_LAYERS:,} layers milp can close the gap")
    return Choice("lagrange", f"{shape}: from {MANY_LAYERS:,} layers on lagrange's gap is small")


def _for_interactions(problem: Problem) -> Choice:
    """By how many combinations of options a group of interacting layers has, and by the total."""
    merged, _ = problem.merged()
    pairs = [(pair.first, pair.second) for pair in merged.interactions]
    count = merged.loss.allowed.sum(axis=1)
    group = np.asarray(groups_of(len(count), pairs))
    combinations = np.where(np.bincount(group) > 1, np.bincount(group, np.log(count)), 0.0).max()
    said = _counted(len(problem.interactions), "interaction")
    if combinations <= math.log(MANY_COMBINATIONS) + 1e-9:
        most = _counted(round(math.exp(combinations)), "combination")
        return Choice("milp", f"{said} among layers of {most}: milp lists them")
    grid = len(count) * int(count.max())
    if grid > MANY_OPTIONS:
        why = f"{said} among {grid:,} options: quadratic takes {MANY_OPTIONS:,}, milp any number"
        return Choice("milp", why)
    why = f"{said} among layers of more than {MANY_COMBINATIONS:,} combinations"
    return Choice("quadratic", f"{why}: quadratic searches, and bounds what it cannot list")


def _counted(number: int, noun: str) -> str:
    """``no budget``, ``1 budget``, ``2 budgets``."""
    return f"{number:,} {noun}s" if number > 1 else f"{number or 'no'} {noun}"


def chosen(solver: str | Solver, problem: Problem) -> tuple[Solver, Choice]:
    """The solver itself: the one that is handed over, the one of a name, or by ``auto`` ours.

    ``LookupError`` where no solver has the name.
    """
    if not isinstance(solver, str):
        return solver, Choice(type(solver).__name__)
    choice = choose(problem) if solver == "auto" else Choice(solver)
    made: Solver = make("solvers", choice.name)
    return made, choice
