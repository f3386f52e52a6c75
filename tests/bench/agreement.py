"""All estimators on one network: who agrees with whom, and whose allocation is really good.

``python -m tests.bench.agreement resnet20`` or ``small_llama``; ``--methods`` names some. It prints
the rank correlation (Spearman, over the entries of all layers and options) of every two tables, and
for the size of uniform 3 and 4 bits the KL on held-out data of each one's allocation. The guard is
off: what is printed is what each estimator led to.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr

import mpsearch as mp
from mpsearch import registry
from mpsearch.choosing import chosen
from mpsearch.pipeline import search
from mpsearch.problem import Budget, Problem
from mpsearch.tables import Floats
from mpsearch.verification import Measured, Verifier, by_module

SIZES = 3, 4


def resnet20() -> mp.Task:
    from examples import cifar10

    return cifar10.task(20, calibrate=256, judge=2000)


def small_llama() -> mp.Task:
    from examples import small_llama

    return small_llama.task()


NETWORKS: dict[str, tuple[Callable[[], mp.Task], tuple[int, ...], int]] = {  # bits of either role
    "resnet20": (resnet20, (2, 3, 4, 8), 8),
    "small_llama": (small_llama, (2, 3, 4, 5, 6, 8), 16),
}


@dataclass(frozen=True)
class Judged:
    """One estimator's table, what it led to, and the seconds the estimate took."""

    method: str
    problem: Problem
    seconds: float
    measured: tuple[Measured, ...]

    def row(self, uniform: Sequence[Measured]) -> str:
        pairs = zip(self.measured, uniform, strict=True)
        cells = [
            f"{mine.mean:8.4f} +- {mine.stderr:.4f} ({mine.mean / other.mean:4.2f} of uniform)"
            for mine, other in pairs
        ]
        return f"{self.method:18} {'  '.join(cells)}  {self.seconds:7.1f} s  {self.unit}"

    @property
    def unit(self) -> str:
        return self.problem.loss.unit

    def entries(self) -> Floats:
        loss = self.problem.loss
        return loss.values[loss.allowed]


def judged(
    method: str, task: mp.Task, weights: Sequence[int], bits: int, verifier: Verifier
) -> Judged:
    options = mp.options(*(f"w{b}a{bits}" for b in weights))
    began = time.process_time()
    found = search(task, options, {"size": f"uniform:w{max(SIZES)}a{bits}"}, method=method)
    seconds = time.process_time() - began
    measured = []
    for size in SIZES:
        problem = replace(found.problem, budgets=(_budget(found.problem, f"w{size}a{bits}"),))
        solution = chosen("auto", problem)[0].solve(problem)
        layers = zip(found.network.layers, solution.choice, strict=True)
        given = {layer.name: options[column] for layer, column in layers}
        modules = {layer.name: layer.modules for layer in found.network.layers}
        measured.append(verifier(by_module(given, modules)))
    return Judged(method, found.problem, seconds, tuple(measured))


def _budget(problem: Problem, option: str) -> Budget:
    size = next(cost for cost in problem.costs if cost.name == "size")
    return Budget.of(size, f"uniform:{option}")


def uniform(task: mp.Task, bits: int, verifier: Verifier) -> list[Measured]:
    net = mp.trace(task.model, task.batches[0])
    names = [name for layer in net.layers for name in layer.modules]
    found = []
    for size in SIZES:
        option = mp.options(f"w{size}a{bits}")[0]
        given: dict[str, mp.Option] = dict.fromkeys(names, option)
        found.append(verifier(given))
    return found


def correlations(rows: Sequence[Judged]) -> Floats:
    """(M, M) Spearman's rank correlation of every two tables."""
    ranks: Floats = np.array([[spearmanr(a.entries(), b.entries())[0] for b in rows] for a in rows])
    return ranks


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("network", choices=NETWORKS)
    arguments.add_argument("--methods", default=",".join(registry.names("sensitivity")))
    chosen = arguments.parse_args()
    make, weights, bits = NETWORKS[chosen.network]
    task = make()
    verifier = Verifier.of(task)
    flat = uniform(task, bits, verifier)
    print(f"{chosen.network}, weights of {weights} bits, inputs of {bits}; measured KL")
    for size, found in zip(SIZES, flat, strict=True):
        print(f"uniform {size} bits {found.mean:.4f} +- {found.stderr:.4f}", flush=True)
    rows = []
    for method in chosen.methods.split(","):
        try:
            rows.append(judged(method, task, weights, bits, verifier))
        except (ValueError, LookupError, RuntimeError) as reason:
            print(f"{method:18} {reason}", flush=True)
        else:
            print(rows[-1].row(flat), flush=True)
    print("\nSpearman's rank correlation of the tables")
    print(f"{'':18}" + "".join(f"{i:6}" for i in range(len(rows))))
    for number, (row, line) in enumerate(zip(rows, correlations(rows), strict=True)):
        print(f"{number:2} {row.method:15}" + "".join(f"{value:6.2f}" for value in line))


if __name__ == "__main__":
    main()
