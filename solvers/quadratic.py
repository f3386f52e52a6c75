"""Losses of pairs of layers: local search for the answer, convex relaxations for the proof.

With x 1 at the options taken and 0 elsewhere a choice loses x'Gx, G holding what options lose alone
and in pairs (CLADO: Deng, Wang, Sharify and Orshansky, "Mixed-Precision Quantization with
Cross-Layer Dependencies", 2023). From the best choice without pairs annealing seeks a better one;
branch and bound over the tightest convex relaxation proves how good it is, or finds a better one
still.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import OPTIMAL_GAP, Problem, Solution, Status, infeasible
from mpsearch.solvers.branching import Branching
from mpsearch.solvers.convex import relaxed
from mpsearch.solvers.exact import Exact
from mpsearch.solvers.form import Answer, Answers, Form
from mpsearch.solvers.local_search import searched
from mpsearch.solvers.lowering import lowered
from mpsearch.solvers.milp import Milp
from mpsearch.tables import Stages

Integers = NDArray[np.int64]
WAY = "branch and bound, convex bound"


@dataclass(frozen=True)
class Quadratic:
    """The least loss with interactions, proven, or with a proven bound.

    Takes any number of budgets and side constraints. Where the options of few layers interact, or
    none, their products are options of one class and :class:`Milp` solves the rest.

    Attributes:
        gap: Where the proof may stop: a gap of this share of :attr:`Problem.span`.
        parts: Most parts of all answers that branch and bound looks at.
        chains: How many annealing runs there are.
        moves: How many moves each makes for every option of every layer.
        seed: What the moves are drawn from.
        projection: Whether the answer is that of the nearest positive semidefinite G, as CLADO has
            it; its loss and bound are of the problem as given all the same.
        seconds: Most time for branch and bound; where that ends it, the bound is another on
            another machine.
    """

    gap: float = OPTIMAL_GAP
    parts: int = 20_000
    chains: int = 32
    moves: int = 200
    seed: int = 0
    projection: bool = False
    seconds: float = math.inf

    def __post_init__(self) -> None:
        """Refuse settings that ask for nothing."""
        if not 0 <= self.gap < 1:
            raise ValueError(f"gap is {self.gap!r}; give a share of the span, such as 1e-6")
        for name, least in (("parts", 0), ("chains", 1), ("moves", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give {least} or more")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds!r}; give more than zero")

    def solve(self, problem: Problem) -> Solution:
        """One option for every layer; ``ValueError`` where G would be too large."""
        # A projection is of G over layers, so that products of their options would change it.
        found = lowered(problem, 0 if self.projection else None)
        if found is None:
            return infeasible("quadratic")
        program, groups = found
        if not program.pairs:
            plain = Milp().solve(problem)
            return replace(plain, solver=f"quadratic (no pairs left, {plain.solver})")
        form = Form.of(program)
        answers = Answers(problem, form, groups)
        said = f"quadratic ({WAY}{self._search(answers)})"
        chosen = answers.best
        floor = self._proven(answers)
        if not (self.projection and chosen.choice):
            chosen = answers.best
        return _solution(problem, chosen, floor, said)

    def _search(self, answers: Answers) -> str:
        """Offer what local search finds; says what a projection removed."""
        begin = _without_pairs(answers)
        if begin is None:
            return ""
        form, said = answers.form, ""
        if self.projection:
            form, share = form.projected()
            said = f"; searched on a projection that removed {share:.3g} of the spectrum"
        found = searched(form, begin, chains=self.chains, moves=self.moves, seed=self.seed)
        for picks in [*found, begin]:
            if answers.offer(picks) and self.projection:
                break
        return said

    def _proven(self, answers: Answers) -> float:
        """A bound on the loss of every feasible choice; infinite where there is none."""
        form = answers.form
        share = max(self.gap, OPTIMAL_GAP) * 0.9  # the rest is for rounding
        tolerance = share * answers.problem.span / form.unit
        relaxation, points, bound = relaxed(form, answers.best.value - tolerance)
        search = Branching(relaxation, answers, tolerance)
        deadline = time.monotonic() + self.seconds
        floor = max(bound, search.run(points, bound, parts=self.parts, deadline=deadline))
        return form.bound(floor) if floor < math.inf else math.inf


def _without_pairs(answers: Answers) -> Integers | None:
    """The best answer were there no pairs; ``None`` where none was found."""
    merged, _ = answers.problem.merged()
    merged = replace(merged, interactions=())
    sums = [b for b in merged.budgets if isinstance(b.cost, Stages) or b.cost.reduce == "sum"]
    stages = any(isinstance(b.cost, Stages) for b in sums)
    exact = len(sums) < 2 and not stages and not merged.constraints
    found = (Exact() if exact else Milp()).solve(merged)
    return answers.form.picks(found.choice) if found.choice else None


def _solution(problem: Problem, best: Answer, floor: float, said: str) -> Solution:
    if best.choice:
        floor = min(floor, best.loss)
        return Solution(best.choice, best.loss, problem.status(best.loss, floor), floor, said)
    if floor == math.inf:
        return infeasible(said)
    return Solution((), math.inf, Status.UNKNOWN, floor, said)
