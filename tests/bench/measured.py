"""A figure beside what was promised, and how figures are taken: CPU time of all processes."""

import contextlib
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
        figure = f"{self.measured:10.4g} {self.unit:<3} {sign} {self.target:<7g}"
        return f"  {word}  {self.what:<44} {figure} {self.note}"


def cpu() -> float:
    """CPU seconds so far, of children that ended too: CBC is one."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(
    times: int, work: Callable[P, T], *arguments: P.args, **fields: P.kwargs
) -> tuple[float, T]:
    """Median CPU seconds of so many runs, and the first result."""
    start = cpu()
    result = work(*arguments, **fields)
    taken = [cpu() - start]
    for _ in range(times - 1):
        start = cpu()
        work(*arguments, **fields)
        taken.append(cpu() - start)
    return statistics.median(taken), result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep an engine's own words off standard output, written below Python as they may be."""
    sys.stdout.flush()
    kept = os.dup(1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


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
