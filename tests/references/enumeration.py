"""The best choice, by trying every one in the plainest way."""

import itertools
import math

from mpsearch.problem import Problem


def best(problem: Problem) -> tuple[tuple[int, ...], float]:
    """The first of the least losses, cheapest first; empty and infinite if nothing is feasible."""
    rows, columns = problem.loss.values.shape
    found: list[tuple[float, float, tuple[int, ...]]] = []
    for choice in itertools.product(range(columns), repeat=rows):
        if problem.feasible(choice):
            cost = problem.costs[0].total(choice) if problem.costs else 0.0
            found.append((problem.total(choice), cost, choice))
    loss, _, choice = min(found, default=(math.inf, 0.0, ()))
    return choice, loss
