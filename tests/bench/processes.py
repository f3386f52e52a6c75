"""CPU time of this process and its children, a process of its own for what must be weighed."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from mpsearch import registry
from tests.solvers.instances import instance

ROOT = Path(__file__).parents[2]
LIMIT = 120  # seconds that a child may take
GAP = 1e-8  # of the span, which is forty times the loss or so


def cpu() -> float:
    """CPU seconds so far, of children that ended too: CBC is one."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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


def child(family: str, compiled: str) -> dict[str, float]:
    """What :func:`million` says in a process of its own."""
    command = [sys.executable, __file__, family, compiled]
    done = subprocess.run(command, capture_output=True, check=True, timeout=LIMIT, cwd=ROOT)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def million(family: str, compiled: str) -> dict[str, Any]:
    """A million groups: CPU seconds, the gap as a part of the loss, peak memory of the process."""
    problem = instance(family, 1_000_000)
    solver = registry.load("solvers", "exact")(gap=GAP, compiled=compiled)
    taken = []
    found = None
    for _ in range(1 if compiled == "never" else 2):
        start = cpu()
        found = solver.solve(problem)
        taken.append(cpu() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gap = found.gap / found.loss
    return {"seconds": taken[-1], "first": taken[0] - taken[-1], "gap": gap, "gib": peak}


if __name__ == "__main__":
    print(json.dumps(million(*sys.argv[1:])))
