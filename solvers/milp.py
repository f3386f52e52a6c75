"""Any linear problem: Lagrangian bounds and enumeration first, an engine of PuLP's for the rest.

Answers are enumerated below a ceiling that rises from the bound: what is found there is the best,
and where nothing is, the ceiling is a bound (:mod:`mpsearch.solvers.proof`). Engines compare with
absolute tolerances near 1e-6, so they take small losses for nothing and call the answer optimal.
Here an engine is asked only where that enumeration is too long, sees differences only, of the
options that may still matter, scaled; its answer is checked in exact arithmetic, and its word that
an answer is optimal, or that there is none, is told but never counted.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, Status, expand, infeasible
from mpsearch.solvers.engine import Engine, asked
from mpsearch.solvers.lagrange import Lagrange
from mpsearch.solvers.lowering import lowered
from mpsearch.solvers.program import Program
from mpsearch.solvers.proof import bettered, enumerated, near, priced, relaxed
from mpsearch.tables import Floats, Mask, Stages

Integers = NDArray[np.int64]
ROUNDS = 8  # of narrowing, each of which leaves less
SHARES = tuple(step / 16 for step in range(2, 17))  # of the gap, below which to look first
SMALLER = 64  # times, and multipliers are looked for again
ATTEMPTS = 4  # at an answer that keeps every condition
PRODUCTS = 20_000  # options of a class of layers that interact


@dataclass(frozen=True)
class Milp:
    """The least loss within every budget, with a bound proven here, whatever an engine says.

    Attributes:
        seconds: Most time for the engine.
        engine: ``highs``, ``cbc``, or ``auto``: HiGHS where highspy is installed.
        states: Most partial answers the proof goes through.
    """

    seconds: float = 60.0
    engine: Literal["auto", "highs", "cbc"] = "auto"
    states: int = 4_000_000

    def __post_init__(self) -> None:
        """Refuse an engine that is not there."""
        if self.engine not in ("auto", "highs", "cbc"):
            raise ValueError(f"no engine is named {self.engine!r}; there are auto, highs and cbc")
        if self.engine == "highs" and find_spec("highspy") is None:
            raise ValueError("engine 'highs' needs highspy; install it, or take engine='cbc'")
        if not self.seconds > 0:
            raise ValueError(f"seconds is above zero, got {self.seconds!r}")

    def solve(self, problem: Problem) -> Solution:
        """One option for every layer."""
        name: Engine = "cbc" if self.engine == "cbc" or find_spec("highspy") is None else "highs"
        said = f"milp ({'HiGHS' if name == 'highs' else 'CBC'})"
        found = lowered(problem, PRODUCTS)
        if found is None:
            return infeasible(said)
        search = _Search(problem, *found)
        deadline = time.monotonic() + self.seconds
        search.narrow()
        search.enumerate(self.states // 2)
        for share in (0.1, 1.0):  # the engine's first answer may be all that a proof needs
            if search.done or search.says:
                break
            search.ask(name, deadline - (1 - share) * self.seconds)
            search.narrow()
            search.enumerate(self.states)
        answer = search.solution(said)
        if answer.status is Status.FEASIBLE and _sums_alone(problem):
            return _joined(problem, answer, Lagrange().solve(problem))
        return answer


def _sums_alone(problem: Problem) -> bool:
    """Whether lagrange takes the problem."""
    stages = any(isinstance(budget.cost, Stages) for budget in problem.budgets)
    return not (problem.interactions or problem.constraints or stages)


def _joined(problem: Problem, ours: Solution, theirs: Solution) -> Solution:
    """The better answer of two, and the better bound."""
    best = min(ours, theirs, key=lambda solution: solution.loss)
    bound = min(max(ours.bound, theirs.bound), best.loss)
    status = problem.status(best.loss, bound)
    return replace(best, bound=bound, status=status, solver=f"{ours.solver}, {theirs.solver}")


class _Search:
    """What is known so far: the best answer, what none can be below, and what may still matter."""

    def __init__(self, problem: Problem, program: Program, groups: Sequence[int]) -> None:
        self.problem, self.program, self.groups = problem, program, groups
        self.choice: tuple[int, ...] = ()
        self.loss = math.inf
        self.floor = -math.inf
        self.y: Floats | None = None  # multipliers of the program's rows
        self.picks: Integers | None = None
        self.says = ""  # what the engine claims, which is no proof

    def offer(self, picks: Integers) -> bool:
        """Whether an answer keeps every condition, exactly; it is kept if it is the best so far."""
        choice = expand(self.program.choice(picks), self.groups)
        feasible = self.problem.feasible(choice)
        loss = self.problem.total(choice) if feasible else math.inf
        gain = float(self.program.gain[picks].sum())  # tells apart what rounds to the same loss
        if feasible and (loss, gain) < (self.loss, self.ceiling):
            self.choice, self.loss, self.picks = choice, loss, picks
        return feasible

    def prove(self, gain: float) -> None:
        """Take note that no answer of the program has a smaller sum of gains."""
        if not math.isnan(gain):
            self.floor = max(self.floor, self.program.bound(gain - self.program.slip))

    @property
    def ceiling(self) -> float:
        """The sum of gains of the best answer."""
        return math.inf if self.picks is None else float(self.program.gain[self.picks].sum())

    @property
    def optimal(self) -> bool:
        """Whether the best answer is proven optimal, as the word is used of a solution."""
        return self.problem.status(self.loss, self.floor) is Status.OPTIMAL

    @property
    def done(self) -> bool:
        """Whether nothing is left to prove."""
        return self.optimal or self.floor == math.inf

    def narrow(self) -> None:
        """Leave out what is in no better answer, as long as that leaves less."""
        if self.program.pairs:
            self.offer(relaxed(self.program)[1])
            self.prove(sum(min(loss, 0.0) for *_, loss in self.program.pairs) / self.program.unit)
            return
        for _ in range(ROUNDS):
            program = self.program
            if self.y is None:
                self.y, choices = near(program)
                _, raised = priced(program, self.y)
                for picks in choices:
                    self.offer(bettered(program, picks, self.y, raised))
            bound, raised = priced(program, self.y)
            self.prove(math.inf if bound > 1.001 * program.span else bound)
            keep = bound + raised <= self.ceiling + 2 * program.slip
            if self.floor == math.inf or keep.all():
                return
            self._leave_out(keep)

    def _leave_out(self, keep: Mask) -> None:
        """Go on with some options only, and with the multipliers where they are still good.

        They are not where rows are gone, or where what is left is of another size.
        """
        program = self.program
        if self.picks is not None:
            keep[self.picks] = True
            self.picks = (np.cumsum(keep) - 1)[self.picks]
        self.program = program.kept(keep)
        same = len(self.program.rows) == len(program.rows)
        if self.y is not None and same and self.program.unit > program.unit / SMALLER:
            self.y *= self.program.units / program.units * (program.unit / self.program.unit)
        else:
            self.y = None

    def ask(self, engine: Engine, deadline: float) -> None:
        """Take the engine's answer; ask again with less room where it breaks a condition."""
        shift = np.zeros(len(self.program.rows))
        for attempt in range(ATTEMPTS):
            if self.done or self.program.settled:
                return
            word = asked(self.program, engine, deadline - time.monotonic(), shift)
            if attempt == 0:
                self.says = word.says
            if word.picks is None or self.offer(word.picks):
                return
            used = self.program.usage[:, word.picks].sum(axis=1)
            shift -= 2 * np.maximum(used - self.program.room, 0) + 1e-12

    def enumerate(self, most: int) -> None:
        """Go through all that may be below a ceiling, raised from the bound to the best answer.

        What is found below a guessed ceiling is the best; where nothing is, the guess is a bound.
        An answer that counts as optimal may still have layers of small losses to put right.
        """
        settled = self.choice and self.program.settled
        if settled or self.program.pairs or self.floor == math.inf:
            return
        program, most = self.program, most // 10 if self.optimal else most
        y = near(program)[0] if self.y is None else self.y
        low, _ = priced(program, y)
        top = min(self.ceiling, program.span)
        for share in SHARES:
            guess = low + share * (top - low) if share < 1 else self.ceiling
            bound, found = enumerated(program, y, guess, most)
            self.prove(bound)
            better = [self.offer(picks) for picks in found]
            if any(better) or (bound < guess and not found):
                return

    def solution(self, said: str) -> Solution:
        """The answer; an engine's claim that could not be proven is told, not counted."""
        floor = min(self.floor, self.loss)
        if self.says and not self.done:
            said = f"{said[:-1]}; it says {self.says}, unproven here)"
        if self.choice:
            status = self.problem.status(self.loss, floor)
            return Solution(self.choice, self.loss, status, floor, said)
        if self.floor == math.inf:
            return infeasible(said)
        return Solution((), math.inf, Status.UNKNOWN, self.floor, said)
