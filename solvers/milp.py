"""Mixed-integer programming through PuLP, on what a proof leaves open, and the proof itself.

Engines compare with absolute tolerances near 1e-6, so they take small losses for nothing and call
the answer optimal. Here an engine sees differences only, of the options that may still matter,
scaled; its answer is checked in exact arithmetic; and what it is worth is shown beside it
(:mod:`mpsearch.solvers.proof`), not taken from its word.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, Solution, Status, expand, infeasible
from mpsearch.solvers.engine import Engine, asked
from mpsearch.solvers.lowering import lowered
from mpsearch.solvers.program import Program
from mpsearch.solvers.proof import enumerated, priced, relaxed

Integers = NDArray[np.int64]
ROUNDS = 8  # of narrowing, each of which leaves less
ATTEMPTS = 4  # at an answer that keeps every condition
DOUBT = 1e-6  # of a row's sum: what an engine's tolerances may shut out


@dataclass(frozen=True)
class Milp:
    """The least loss within every budget, by an engine of PuLP's, with a bound proven here.

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
        found = lowered(problem)
        if found is None:
            return infeasible(said)
        search = _Search(problem, *found)
        deadline = time.monotonic() + self.seconds
        search.narrow()
        search.ask(name, deadline)
        search.narrow()
        search.enumerate(self.states)
        search.believe(name, deadline)
        return search.solution(said)


class _Search:
    """What is known so far: the best answer, what none can be below, and what may still matter."""

    def __init__(self, problem: Problem, program: Program, groups: Sequence[int]) -> None:
        self.problem, self.program, self.groups = problem, program, groups
        self.choice: tuple[int, ...] = ()
        self.loss = math.inf
        self.floor = -math.inf
        self.picks: Integers | None = None
        self.word = -math.inf  # what the engine says no answer is below
        self.denied = False  # whether it says that there is none

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

    def narrow(self) -> None:
        """Leave out what is in no better answer, as long as that leaves less."""
        if self.program.pairs:
            self.offer(relaxed(self.program)[1])
            self.prove(sum(min(loss, 0.0) for *_, loss in self.program.pairs) / self.program.unit)
            return
        for _ in range(ROUNDS):
            program = self.program
            y, picks = relaxed(program)
            self.offer(picks)
            bound, raised = priced(program, y)
            self.prove(bound)
            keep = bound + raised <= self.ceiling + 2 * program.slip
            if keep.all():
                return
            if self.picks is not None:
                keep[self.picks] = True
                self.picks = (np.cumsum(keep) - 1)[self.picks]
            self.program = program.kept(keep)

    def ask(self, engine: Engine, deadline: float) -> None:
        """Take the engine's answer; ask again with less room where it breaks a condition."""
        shift = np.zeros(len(self.program.rows))
        for attempt in range(ATTEMPTS):
            if self.optimal or self.program.settled:
                return
            word = asked(self.program, engine, deadline - time.monotonic(), shift)
            if attempt == 0:
                self.word = self.program.bound(word.bound - self.program.slip)
                self.denied = word.infeasible
            if word.picks is None or self.offer(word.picks):
                return
            used = self.program.usage[:, word.picks].sum(axis=1)
            shift -= 2 * np.maximum(used - self.program.room, 0) + 1e-12

    def enumerate(self, most: int) -> None:
        """Go through all that is left, if it is not too much.

        An answer that counts as optimal may still have layers of small losses to put right.
        """
        if (self.choice and self.program.settled) or self.program.pairs:
            return
        most = most // 10 if self.optimal else most
        y, _ = relaxed(self.program)
        bound, found = enumerated(self.program, y, self.ceiling, most)
        for picks in found:
            self.offer(picks)
        self.prove(bound)

    def believe(self, engine: Engine, deadline: float) -> None:
        """Where the proof had to stop, count what the engine proved, less its tolerances.

        That nothing is feasible counts if it says so with a little more room, too.
        """
        if self.optimal or self.floor == math.inf:
            return
        self.floor = max(self.floor, self.word)
        if self.denied and not self.choice:
            more = np.full(len(self.program.rows), DOUBT)
            word = asked(self.program, engine, deadline - time.monotonic(), more)
            self.floor = math.inf if word.infeasible else self.floor

    def solution(self, said: str) -> Solution:
        """The answer."""
        if self.choice:
            floor = min(self.floor, self.loss)
            return Solution(
                self.choice, self.loss, self.problem.status(self.loss, floor), floor, said
            )
        if self.floor == math.inf:
            return infeasible(said)
        return Solution((), math.inf, Status.UNKNOWN, self.floor, said)
