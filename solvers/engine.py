"""A program as a model of PuLP's, and what its engine says of it: HiGHS or CBC.

Losses are what each option adds to the least of its class, scaled to a total of 1e6 to 2e6; rows
to a total of 1e4 to 2e4. A limit on integers lies half a unit above them, where no tolerance
reaches the next one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pulp
from numpy.typing import NDArray

from mpsearch.solvers.program import Program
from mpsearch.tables import Floats

Integers = NDArray[np.int64]
Engine = Literal["highs", "cbc"]
LOSS, ROW = 1e6, 1e4


@dataclass(frozen=True, eq=False)
class Word:
    """What an engine says; nothing of it is proven.

    Attributes:
        picks: (n,) an option of every class, where it found an answer.
        says: ``optimal`` or ``infeasible`` where it claims that; else empty.
    """

    picks: Integers | None
    says: Literal["optimal", "infeasible", ""] = ""


def asked(program: Program, engine: Engine, seconds: float, shift: Floats) -> Word:
    """What the engine says of a program whose rows have so much more room (in row units)."""
    if seconds <= 0:
        return Word(None)
    free = np.flatnonzero(np.bincount(program.owner)[program.owner] > 1)
    model, taken = _model(program, free, _limits(program) + shift)
    try:
        model.solve(_solver(engine, seconds))
    except pulp.PulpSolverError:
        return Word(None)
    if model.sol_status == pulp.LpSolutionInfeasible:
        return Word(None, "infeasible")
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return Word(None)
    value = np.full(len(program.owner), 2.0)
    value[free] = [variable.varValue or 0.0 for variable in taken]
    picks = np.lexsort((-value, program.owner))[program.starts]
    return Word(picks, "optimal" if model.sol_status == pulp.LpSolutionOptimal else "")


def _model(program: Program, free: Integers, limits: Floats) -> tuple[Any, list[Any]]:
    """The model and its variables, one for each free option."""
    model = pulp.LpProblem("mpsearch", pulp.LpMinimize)
    taken = [model.add_variable(f"x{i}", cat="Binary") for i in range(len(free))]
    place = {int(option): variable for option, variable in zip(free, taken, strict=True)}
    terms = list(zip(taken, (program.gain[free] * LOSS).tolist(), strict=True))
    pairs = []
    for number, (one, two, loss) in enumerate(program.pairs):
        both = _both(model, number, place.get(one, 1), place.get(two, 1), loss)
        pairs.append((both, loss / program.unit * LOSS))
    model += pulp.LpAffineExpression(terms) + pulp.lpSum(both * loss for both, loss in pairs)
    for row, limit in zip(program.usage[:, free] * ROW, (limits * ROW).tolist(), strict=True):
        model += pulp.LpAffineExpression(list(zip(taken, row.tolist(), strict=True))) <= limit
    owner = program.owner[free]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    for first, last in zip(starts, [*starts[1:], len(free)], strict=True):
        model += pulp.LpAffineExpression([(x, 1) for x in taken[first:last]]) == 1
    return model, taken


def _both(model: Any, number: int, one: Any, two: Any, loss: float) -> Any:
    """A variable that is 1 where both options are taken, 0 where not, as the loss would have it."""
    both = model.add_variable(f"z{number}", 0, 1)
    if loss > 0:
        model += both >= one + two - 1
    else:
        model += both <= one
        model += both <= two
    return both


def _limits(program: Program) -> Floats:
    """(R,) limits; half a step above the last sum within it where a row's sums are integers."""
    limits = program.room.copy()
    for row in np.flatnonzero(program.whole):
        unit = program.units[row]
        step = int(np.gcd.reduce((program.usage[row] * unit).astype(np.int64)))
        limits[row] = (limits[row] * unit // step + 0.5) * step / unit
    return limits


def _solver(engine: Engine, seconds: float) -> Any:
    """The engine with no gap allowed, and its tolerances as tight as they go."""
    if engine == "cbc":
        tight = ["integerTolerance 1e-9", "primalTolerance 1e-9", "dualTolerance 1e-9"]
        # No threads=1: that starts one beside the main thread, and now and then both wait for ever.
        return pulp.PULP_CBC_CMD(msg=False, timeLimit=seconds, gapRel=0, gapAbs=0, options=tight)
    return pulp.HiGHS(
        msg=False,
        timeLimit=seconds,
        gapRel=0,
        gapAbs=0,
        threads=1,
        mip_feasibility_tolerance=1e-9,
        primal_feasibility_tolerance=1e-9,
        dual_feasibility_tolerance=1e-9,
    )
