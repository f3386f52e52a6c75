"""CPU time of our solvers against the engines others call, and against what was promised.

``python tests/bench/solvers.py [ROW ...]`` prints every row of :data:`ROWS`, or those named. Ratios
are of one process and of its children's CPU time too, medians over seeded instances that
``tests/solvers/instances.py`` makes; the machine's load stands beside them. Compiled code runs once
before it is timed, and what that took is printed apart.
"""

import argparse
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from mpsearch import registry
from mpsearch.problem import Budget, Problem, Solution, Status
from tests.bench.processes import child, cpu, quiet
from tests.references.engines import cbc, cbc_scaled, few, scipy_milp
from tests.solvers.instances import instance, interacting

SEEDS = (0, 1, 2)
SMALL = 1e-2  # of a loss of about 1: what CBC's tolerances are too wide for, and what KL is like
PLAIN, COMPILED = "numpy", "compiled"
MODES = {PLAIN: "never", COMPILED: "always"}


@dataclass(frozen=True)
class Line:
    """One figure beside what was promised.

    Attributes:
        what: What was measured.
        measured: In ``unit``.
        target: What it should be at most, or at least where ``least``.
        unit: Such as ``ms`` or ``x``.
        least: Whether more is better.
        note: What else is worth knowing.
    """

    what: str
    measured: float
    target: float
    unit: str
    least: bool = False
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the promise is kept."""
        return self.measured >= self.target if self.least else self.measured <= self.target

    def __str__(self) -> str:
        sign = ">=" if self.least else "<="
        word = "PASS" if self.passed else "FAIL"
        figure = f"{self.measured:10.4g} {self.unit:<2} {sign} {self.target:<7g}"
        return f"  {word}  {self.what:<52} {figure} {self.note}"


Row = Callable[[], Iterator[Line]]


def ours(name: str, **fields: Any) -> Any:
    """A solver of ours; in compiled mode run first by :func:`warm`."""
    return registry.load("solvers", name)(**fields)


def timed(work: Callable[[], Any], times: int = 5) -> tuple[float, Any]:
    """Median CPU seconds of so many runs, and the last result."""
    taken = []
    result = None
    for _ in range(times):
        start = cpu()
        result = work()
        taken.append(cpu() - start)
    return statistics.median(taken), result


def warm(work: Callable[[], Any]) -> str:
    """Run once; how long that took in all."""
    return f"(first call {timed(work, 1)[0]:.1f} s)"


def proven(solution: Solution) -> None:
    """Refuse a figure whose answer is not what the row is about."""
    if solution.status is not Status.OPTIMAL:
        raise ValueError(f"{solution.solver} proved no optimum, gap {solution.gap:.3g}")


def of_loss(solution: Solution) -> float:
    """The gap as a part of the loss."""
    return solution.gap / abs(solution.loss)


def exact_224() -> Iterator[Line]:
    """224 layers, one budget, proven optimal: speed over PuLP and CBC."""
    families = ("llm_int", "moe_int", "lat_real", "cnn_int")
    cases = [instance(f, 224, seed=seed, scale=SMALL) for f in families for seed in SEEDS]
    notes = {PLAIN: "", COMPILED: warm(lambda: ours("exact", compiled="always").solve(cases[0]))}
    seconds: dict[str, list[float]] = {name: [] for name in (*MODES, "cbc", "cbc_scaled")}
    excess: list[float] = []
    for case in cases:
        for mode, compiled in MODES.items():
            solver = ours("exact", compiled=compiled)
            spent, found = timed(lambda s=solver, c=case: s.solve(c))
            proven(found)
            seconds[mode].append(spent)
        for engine in (cbc, cbc_scaled):
            spent, choice = timed(lambda e=engine, c=case: e(c), 1)
            seconds[engine.__name__].append(spent)
            loss = case.total(choice) if choice and case.feasible(choice) else np.inf
            if loss < found.loss:
                raise ValueError(f"{engine.__name__} found {loss}, less than {found.loss}")
            if engine is cbc:
                excess.append(loss / found.loss - 1)
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
    families = ("llm_int", "moe_int", "lat_real")
    cases = [instance(f, 10_000, seed=seed) for f in families for seed in SEEDS]
    for mode, target in ((PLAIN, 150), (COMPILED, 15)):
        solver = ours("exact", compiled=MODES[mode])
        note = warm(lambda s=solver: s.solve(cases[0])) if mode == COMPILED else ""
        taken = []
        for case in cases:
            spent, found = timed(lambda s=solver, c=case: s.solve(c), 3)
            proven(found)
            taken.append(spent * 1e3)
        note = f"worst {max(taken):.0f} ms {note}"
        yield Line(mode, statistics.median(taken), target, "ms", note=note)


def supported_10k() -> Iterator[Line]:
    """All supported points, 10,000 layers."""
    cases = [free(instance(f, 10_000, seed=s)) for f in ("llm_int", "lat_real") for s in SEEDS]
    solver = ours("supported")
    runs = [timed(lambda c=case: solver.frontier(c)) for case in cases]
    note = f"{statistics.median(len(front) for _, front in runs):.0f} points"
    middle = statistics.median(spent for spent, _ in runs) * 1e3
    yield Line(PLAIN, middle, 25, "ms", note=note)
    yield Line(f"{COMPILED} (there is none: the same)", middle, 8, "ms", note=note)


def free(problem: Problem) -> Problem:
    """Without a limit: the cost is only reported."""
    return replace(problem, budgets=(), costs=tuple(b.cost for b in problem.budgets))


def exact_1m() -> Iterator[Line]:
    """1,000,000 groups, gap at most 1e-6 of the loss, at most 1 GiB; each in a process of its own."""
    for mode, target in ((PLAIN, 3.0), (COMPILED, 1.5)):
        told = [child(family, MODES[mode]) for family in ("llm_int", "lat_real")]
        gap, memory = max(t["gap"] for t in told), max(t["gib"] for t in told)
        note = f"(first call more by {told[0]['first']:.1f} s)" if mode == COMPILED else ""
        yield Line(mode, statistics.median(t["seconds"] for t in told), target, "s", note=note)
        yield Line(f"{mode}: gap", gap, 1e-6, "")
        yield Line(f"{mode}: peak memory of the process", memory, 1.0, "GiB")


def frontier_224() -> Iterator[Line]:
    """Whole exact frontier, 224 layers, language-model bytes."""
    cases = [free(instance("llm_int", 224, seed=seed)) for seed in SEEDS]
    for mode, target in ((PLAIN, 0.2), (COMPILED, 0.06)):
        solver = ours("frontier-exact", compiled=MODES[mode])
        note = warm(lambda s=solver: s.frontier(cases[0])) if mode == COMPILED else ""
        runs = [timed(lambda s=solver, c=case: s.frontier(c), 3) for case in cases]
        if not all(front.exact for _, front in runs):
            raise ValueError("a frontier is not proven exact")
        note = f"{[len(front) for _, front in runs]} points {note}"
        yield Line(mode, statistics.median(spent for spent, _ in runs), target, "s", note=note)


def budgets_100() -> Iterator[Line]:
    """100 budgets, real costs, 224 layers, over scipy.milp (of which every fifth is run)."""
    case = instance("lat_real", 224)
    cost = case.budgets[0].cost
    low, high = (cost.total(f(cost.values, axis=1)) for f in (np.argmin, np.argmax))
    limits = [low + share * (high - low) for share in np.linspace(0.02, 0.9, 100)]
    asked = [Problem(case.loss, (Budget(cost, limit),)) for limit in limits]
    with quiet():
        theirs = timed(lambda: [scipy_milp(problem) for problem in asked[::5]], 1)[0] * 5
    for mode, target in ((PLAIN, 30), (COMPILED, 150)):
        solver = ours("exact", compiled=MODES[mode])
        note = warm(lambda s=solver: s.solve(asked[0])) if mode == COMPILED else ""
        spent, found = timed(lambda s=solver: [s.solve(problem) for problem in asked], 3)
        for solution in found:
            proven(solution)
        note = f"{spent * 1e3:.0f} ms against {theirs:.1f} s {note}"
        yield Line(mode, theirs / spent, target, "x", least=True, note=note)


def several_budgets() -> Iterator[Line]:
    """Two and three budgets: certified gap before any MILP."""
    for layers, gap, seconds in ((224, 5e-3, 0.1), (1_000, 2e-4, 0.2), (10_000, 2e-5, 1.0)):
        for more in (("lat_real",), ("lat_real", "moe_int")):
            cases = [instance("llm_int", layers, seed=seed, more=more) for seed in SEEDS]
            runs = [timed(lambda c=case: ours("lagrange").solve(c), 1) for case in cases]
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
        spent, found = timed(lambda c=case: ours("milp").solve(c), 3)
        proven(found)
        with quiet():
            theirs, choice = timed(lambda c=case: scipy_milp(c, gap=0), 1)
        if case.feasible(choice) and case.total(choice) < found.loss:
            raise ValueError("HiGHS found less than what was proven optimal")
        ratios.append(theirs / spent)
        times.append(spent)
    note = f"{statistics.median(times) * 1e3:.0f} ms"
    yield Line("milp over scipy.milp", statistics.median(ratios), 2, "x", least=True, note=note)


def quadratic() -> Iterator[Line]:
    """Quadratic, 50 layers x 3 options, gap 1e-3 of the loss, no commercial solver."""
    for correlation in (0.3, 0.7):
        runs = []
        for seed in SEEDS:
            case = interacting(50, 3, seed, correlation)
            aim = 1e-3 * abs(ours("quadratic", parts=1).solve(case).loss) / case.span * 0.9
            runs.append(timed(lambda c=case, a=aim: ours("quadratic", gap=a).solve(c), 1))
        what = f"correlation {correlation}"
        yield Line(f"{what}: gap", max(of_loss(found) for _, found in runs), 1e-3, "")
        worst = max(spent for spent, _ in runs)
        middle = statistics.median(spent for spent, _ in runs)
        yield Line(f"{what}: time", middle, 20, "s", note=f"worst {worst:.1f} s")


def few_formats() -> Iterator[Line]:
    """At most 3 of 8 formats in the network, by enumeration, over the MILP (HiGHS)."""
    ratios, times = [], []
    for seed in SEEDS:
        case = instance("llm_int", 224, 8, seed)
        spent, found = timed(lambda c=case: ours("few-formats", most=3).solve(c), 3)
        with quiet():
            theirs, choice = timed(lambda c=case: few(c, 3), 1)
        if case.feasible(choice) and case.total(choice) < found.loss * (1 - 1e-9):
            raise ValueError("the MILP found less")
        proven(found)
        ratios.append(theirs / spent)
        times.append(spent)
    note = f"{statistics.median(times) * 1e3:.1f} ms"
    yield Line(PLAIN, statistics.median(ratios), 40, "x", least=True, note=note)


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


def machine() -> str:
    """The processor and what is installed."""
    cpus = Path("/proc/cpuinfo")
    names = [line for line in cpus.read_text().splitlines() if "model name" in line][:1]
    versions = [f"{name} {metadata.version(name)}" for name in ("numpy", "scipy", "pulp", "numba")]
    return ", ".join(
        [*(n.split(":")[1].strip() for n in names), f"{os.cpu_count()} CPUs", *versions]
    )


def load() -> str:
    """How many processes ran of late, in the last minute and five."""
    return "{:.1f} {:.1f}".format(*os.getloadavg()[:2])


if __name__ == "__main__":
    sys.exit(main())
