"""Quadratic on correlated layers: answer, bound and CPU time, beside the choice without pairs.

Run as ``python tests/bench/bench_quadratic.py [layers ...]``. One thread, process CPU time, three
options a layer; the proof is asked for a gap of a thousandth of the loss.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script

from mpsearch.solvers.exact import Exact
from mpsearch.solvers.quadratic import Quadratic
from tests.solvers.correlated import BITS, correlated

WANTED = 1e-3
CASES = (  # layers, rho, seeds, most parts
    (20, 0.5, 3, 20_000),
    (50, 0.3, 3, 20_000),
    (50, 0.7, 3, 20_000),
    (112, 0.3, 1, 20_000),
    (112, 0.7, 1, 20_000),
    (224, 0.7, 1, 4_000),
)
HEAD = "   N  K  rho seed      answer       bound      gap   root gap   CPU s  status    no pairs"


def row(layers: int, rho: float, seed: int, parts: int) -> str:
    """One line of the table."""
    problem = correlated(layers, rho, seed)
    plain = problem.total(Exact().solve(replace(problem, interactions=())).choice)
    begin = time.process_time()
    root = Quadratic(parts=0).solve(problem)
    middle = time.process_time()
    gap = WANTED * abs(root.loss) / problem.span
    found = Quadratic(gap=gap, parts=parts).solve(problem)
    seconds = time.process_time() - middle
    worse = 100 * (plain / found.loss - 1)
    return (
        f"{layers:4d} {len(BITS):2d} {rho:4.1f} {seed:4d} {found.loss:11.6f} {found.bound:11.6f}"
        f" {found.gap / found.loss:8.1e} {root.gap / root.loss:9.1e}"
        f" {seconds:7.1f}  {found.status.name:8s} +{worse:6.1f} %   (root alone"
        f" {middle - begin:.1f} s)"
    )


def main(sizes: list[int]) -> None:
    """The table, for these numbers of layers or for all."""
    print(f"load {os.getloadavg()[0]:.1f}; gap asked for: {WANTED:g} of the loss")
    print(HEAD)
    for layers, rho, seeds, parts in CASES:
        for seed in range(seeds):
            if not sizes or layers in sizes:
                print(row(layers, rho, seed, parts), flush=True)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
