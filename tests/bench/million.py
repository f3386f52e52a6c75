"""A million groups in a process of its own, so that its peak memory is theirs."""

import json
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from mpsearch import registry
from tests.bench.measured import timed
from tests.solvers.instances import instance

LIMIT = 120  # seconds that a child may take
GAP = 1e-8  # of the span, which is forty times the loss or so


def child(family: str, compiled: str) -> dict[str, float]:
    """What :func:`million` says in a process of its own."""
    command = [sys.executable, __file__, family, compiled]
    done = subprocess.run(command, capture_output=True, check=True, timeout=LIMIT)
    told: dict[str, float] = json.loads(done.stdout)
    return told


def million(family: str, compiled: str) -> dict[str, float]:
    """CPU seconds, the first run's, the gap as a part of the loss, peak memory of the process."""
    problem = instance(family, 1_000_000)
    solver = registry.load("solvers", "exact")(gap=GAP, compiled=compiled)
    first, found = timed(1, solver.solve, problem)
    again = timed(1, solver.solve, problem)[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"first": first, "seconds": again, "gap": found.gap / found.loss, "gib": peak}


if __name__ == "__main__":
    print(json.dumps(million(*sys.argv[1:])))
