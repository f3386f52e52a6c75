"""CPU time of our solvers against the engines others call, and against what was promised.

``python tests/bench/solvers.py [ROW ...]`` prints every row of :data:`ROWS`, or those named. Ratios
are of one process and of its children's CPU time too, medians over seeded instances that
``tests/solvers/instances.py`` makes; the machine's load stands beside them. Compiled code runs once
before it is timed, and what that took is printed apart.
"""

import argparse
import itertools
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mpsearch import registry
from mpsearch.problem import Problem, Solution, Status
from tests.bench.measured import Line, T, load, machine, quiet, timed
from tests.bench.million import child
from tests.references.engines import cbc, cbc_scaled, few, scipy_milp
from tests.solvers.instances import instance, interacting

SEEDS = (0, 1, 2)
SHARES = (0.1, 0.35, 0.7)  # of the way from the cheapest to the dearest, one for each seed
FAMILIES = ("llm_int", "moe_int", "lat_real")
SMALL = 1e-2  # of a loss of about 1: what CBC's tolerances are too wide for, and what KL is like
PLAIN, COMPILED = "numpy", "compiled"
MODES = {PLAIN: "never", COMPILED: "always"}


Row = Callable[[], Iterator[Line]]


def ours(name: str, **fields: Any) -> Any:
    """A solver of ours; in compiled mode run first by :func:`warm`."""
    kind = "frontiers" if name == "supported" else "solvers"
    return registry.load(kind, name)(**fields)


def warm(mode: str, work: Callable[[Problem], Any], case: Problem) -> str:
    """Run compiled code once; how long that took in all."""
    return f"(first call {timed(1, work, case)[0]:.1f} s)" if mode == COMPILED else ""


def every(work: Callable[[Problem], T], problems: Sequence[Problem]) -> list[T]:
    """What is found for each problem."""
    return [work(problem) for problem in problems]


def proven(solution: Solution) -> float:
    """The loss; ``ValueError`` where it is not proven optimal, as the row is to show."""
    if solution.status is not Status.OPTIMAL:
        raise ValueError(f"{solution.solver} proved no optimum, gap {solution.gap:.3g}")
    return solution.loss


def of_loss(solution: Solution) -> float:
    """The gap as a part of the loss."""
    return solution.gap / abs(solution.loss)


def exact_224() -> Iterator[Line]:
    """224 layers, one budget, proven optimal: speed over PuLP and CBC."""
    cases = [
        instance(family, 224, seed=seed, share=SHARES[seed], scale=SMALL)
        for family in (*FAMILIES, "cnn_int")
        for seed in SEEDS
    ]
    solvers = {mode: ours("exact", compiled=compiled) for mode, compiled in MODES.items()}
    notes = {mode: warm(mode, solver.solve, cases[0]) for mode, solver in solvers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in (*MODES, "cbc", "cbc_scaled")}
    excess: list[float] = []
    for case in cases:
        best = np.inf
        for mode, solver in solvers.items():
            spent, found = timed(5, solver.solve, case)
            best = proven(found)
            seconds[mode].append(spent)
        for engine in (cbc, cbc_scaled):
            spent, choice = timed(1, engine, case)
            seconds[engine.__name__].append(spent)
            loss = case.total(choice) if choice and case.feasible(choice) else np.inf
            if loss < best:
                raise ValueError(f"{engine.__name__} found {loss}, less than {best}")
            if engine is cbc:
                excess.append(loss / best - 1)
    wrong = sum(more > 1e-9 for more in excess)
    said = (
        f"CBC's answer is above the optimum in {wrong} of {len(cases)}, by up to {max(excess):.2%}"
    )
    for mode, targets in ((PLAIN, (12, 25)), (COMPILED, (60, 120))):
        for engine_name, target, extra in zip(
            ("cbc", "cbc_scaled"), targets, (said, ""), strict=True
        ):
            pairs = zip(seconds[engine_name], seconds[mode], strict=True)
            ratio = statistics.median(theirs / our for theirs, our in pairs)
            our = statistics.median(seconds[mode]) * 1e3
            what = f"{mode} over PuLP+CBC {'scaled' if 'scaled' in engine_name else 'default'}"
            note = f"{our:.2f} ms {notes[mode]} {extra}"
            yield Line(what, ratio, target, "x", least=True, note=note)


def exact_10k() -> Iterator[Line]:
    """10,000 layers, proven optimal."""
    cases = [instance(f, 10_000, seed=s, share=SHARES[s]) for f in FAMILIES for s in SEEDS]
    for mode, target in ((PLAIN, 150), (COMPILED, 15)):
        solver = ours("exact", compiled=MODES[mode])
        note = warm(mode, solver.solve, cases[0])
        taken = []
        for case in cases:
            spent, found = timed(3, solver.solve, case)
            proven(found)
            taken.append(spent * 1e3)
        note = f"worst {max(taken):.0f} ms {note}"
        yield Line(mode, statistics.median(taken), target, "ms", note=note)


def supported_10k() -> Iterator[Line]:
    """All supported points, 10,000 layers."""
    cases = [free(instance(f, 10_000, seed=seed)) for f in FAMILIES for seed in SEEDS]
    for mode, target in ((PLAIN, 25), (COMPILED, 8)):
        solver = ours("supported", compiled=MODES[mode])
        note = warm(mode, solver.frontier, cases[0])
        runs = [timed(5, solver.frontier, case) for case in cases]
        note = f"{statistics.median(len(front) for _, front in runs):.0f} points {note}"
        middle = statistics.median(spent for spent, _ in runs) * 1e3
        yield Line(mode, middle, target, "ms", note=note)


def free(problem: Problem) -> Problem:
    """Without a limit: the cost is only reported."""
    return replace(problem, budgets=(), costs=tuple(b.cost for b in problem.budgets))


def exact_1m() -> Iterator[Line]:
    """1,000,000 groups, gap at most 1e-6 of the loss, at most 1 GiB; each in a process of its own."""
    for mode, target in ((PLAIN, 3.0), (COMPILED, 1.5)):
        told = [child(family, MODES[mode]) for family in ("llm_int", "lat_real")]
        gap, memory = max(t["gap"] for t in told), max(t["gib"] for t in told)
        which = "first" if mode == PLAIN else "seconds"
        note = f"(first call {told[0]['first']:.1f} s)" if mode == COMPILED else ""
        yield Line(mode, statistics.median(t[which] for t in told), target, "s", note=note)
        yield Line(f"{mode}: gap", gap, 1e-6, "")
        yield Line(f"{mode}: peak memory of the process", memory, 1.0, "GiB")


def frontier_224() -> Iterator[Line]:
    """Whole exact frontier, 224 layers, language-model bytes."""
    cases = [free(instance("llm_int", 224, seed=seed)) for seed in SEEDS]
    for mode, target in ((PLAIN, 0.2), (COMPILED, 0.06)):
        solver = ours("frontier-exact", compiled=MODES[mode])
        note = warm(mode, solver.frontier, cases[0])
        runs = [timed(3, solver.frontier, case) for case in cases]
        if not all(front.exact for _, front in runs):
            raise ValueError("a frontier is not proven exact")
        note = f"{[len(front) for _, front in runs]} points {note}"
        yield Line(mode, statistics.median(spent for spent, _ in runs), target, "s", note=note)


def budgets_100() -> Iterator[Line]:
    """100 budgets, real costs, 224 layers, over scipy.milp (of which every fifth is run)."""
    shares = np.linspace(0.02, 0.9, 100).tolist()
    asked = [instance("lat_real", 224, share=share) for share in shares]
    with quiet():
        theirs = timed(1, every, scipy_milp, asked[::5])[0] * 5
    for mode, target in ((PLAIN, 30), (COMPILED, 150)):
        solver = ours("exact", compiled=MODES[mode])
        note = warm(mode, solver.solve, asked[0])
        spent, found = timed(3, every, solver.solve, asked)
        for solution in found:
            proven(solution)
        note = f"{spent * 1e3:.0f} ms against {theirs:.1f} s {note}"
        yield Line(mode, theirs / spent, target, "x", least=True, note=note)


def several_budgets() -> Iterator[Line]:
    """Two and three budgets: certified gap before any MILP."""
    for layers, gap, seconds in ((224, 5e-3, 0.1), (1_000, 2e-4, 0.2), (10_000, 2e-5, 1.0)):
        for more in (("lat_real",), ("lat_real", "moe_int")):
            cases = [instance("llm_int", layers, seed=seed, more=more) for seed in SEEDS]
            runs = [timed(1, ours("lagrange").solve, case) for case in cases]
            what = f"{layers} layers, {len(more) + 1} budgets"
            middle = statistics.median(of_loss(found) for _, found in runs)
            worst = max(of_loss(found) for _, found in runs)
            yield Line(f"{what}: gap", middle, gap, "", note=f"worst {worst:.2g}")
            yield Line(f"{what}: time", statistics.median(s for s, _ in runs), seconds, "s")


def two_budgets() -> Iterator[Line]:
    """Two budgets, 224 layers, proven optimal, over HiGHS alone (scaled, no gap allowed)."""
    ratios, times = [], []
    for seed in SEEDS:
        case = instance("llm_int", 224, seed=seed, more=("lat_real",))
        spent, found = timed(3, ours("milp").solve, case)
        proven(found)
        with quiet():
            theirs, choice = timed(1, scipy_milp, case, gap=0)
        if case.feasible(choice) and case.total(choice) < found.loss:
            raise ValueError("HiGHS found less than what was proven optimal")
        ratios.append(theirs / spent)
        times.append(spent)
    note = f"{statistics.median(times) * 1e3:.0f} ms"
    yield Line("milp over scipy.milp", statistics.median(ratios), 2, "x", least=True, note=note)


def within(problem: Problem, part: float) -> Solution:
    """An answer within a part of its own loss: of what a first look finds, and a tenth less."""
    glance = abs(ours("quadratic", parts=1).solve(problem).loss)
    found: Solution = ours("quadratic", gap=0.9 * part * glance / problem.span).solve(problem)
    return found


def quadratic() -> Iterator[Line]:
    """Quadratic, 50 layers x 3 options, gap 1e-3 of the loss, no commercial solver."""
    for correlation in (0.3, 0.7):
        runs = []
        for seed in SEEDS:
            case = interacting(50, 3, seed, correlation)
            runs.append(timed(1, within, case, 1e-3))
        what = f"correlation {correlation}"
        yield Line(f"{what}: gap", max(of_loss(found) for _, found in runs), 1e-3, "")
        worst = max(spent for spent, _ in runs)
        middle = statistics.median(spent for spent, _ in runs)
        yield Line(f"{what}: time", middle, 20, "s", note=f"worst {worst:.1f} s")


def few_formats() -> Iterator[Line]:
    """At most so many of 6 formats in the network, by enumeration, over the MILP (HiGHS)."""
    for layers, most in ((224, (2, 3, 4)), (1_000, (3,))):
        ratios, times = [], []
        for family, formats, seed in itertools.product(FAMILIES, most, SEEDS):
            case = instance(family, layers, seed=seed)
            spent, found = timed(3, ours("few-formats", most=formats).solve, case)
            with quiet():
                theirs, choice = timed(1, few, case, formats)
            if case.feasible(choice) and case.total(choice) < proven(found) * (1 - 1e-9):
                raise ValueError("the MILP found less")
            ratios.append(theirs / spent)
            times.append(spent)
        note = f"{statistics.median(times) * 1e3:.1f} ms, from {min(ratios):.0f} to {max(ratios):.0f} x"
        what = f"{layers} layers, at most {' or '.join(map(str, most))}"
        yield Line(what, statistics.median(ratios), 40, "x", least=True, note=note)


ROWS: dict[str, Row] = {
    "exact-224": exact_224,
    "exact-10k": exact_10k,
    "supported-10k": supported_10k,
    "exact-1m": exact_1m,
    "frontier-224": frontier_224,
    "budgets-100": budgets_100,
    "several-budgets": several_budgets,
    "two-budgets": two_budgets,
    "quadratic": quadratic,
    "few-formats": few_formats,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the rows asked for; 1 where a figure is not what was promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    asked = parser.parse_args(arguments).rows or list(ROWS)
    if unknown := [name for name in asked if name not in ROWS]:
        parser.error(f"no row is named {unknown[0]!r}; there are {', '.join(ROWS)}")
    warnings.simplefilter("ignore")
    print(f"Python {platform.python_version()}, {machine()}")
    lines: list[Line] = []
    for name in asked:
        print(f"{name}: {(ROWS[name].__doc__ or '').splitlines()[0]} [load {load()}]", flush=True)
        try:
            for line in ROWS[name]():
                print(line, flush=True)
                lines.append(line)
        except (LookupError, ValueError, TypeError) as error:
            print(f"  FAIL  {error}", flush=True)
            lines.append(Line(str(error), np.nan, 0, ""))
    kept = sum(line.passed for line in lines)
    print(f"{kept} of {len(lines)} figures are as promised [load {load()}]")
    return int(kept < len(lines))


if __name__ == "__main__":
    sys.exit(main())
