"""Two levels: never worse than either alone, published allocations, scale."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mpsearch.formats import Option
from mpsearch.network import Layer, numbered
from mpsearch.problem import Budget, Problem, Solution, Status
from mpsearch.solvers.exact import Exact
from mpsearch.solvers.knapsack import knapsack
from mpsearch.solvers.two_level import Inside, TwoLevel, balance, best_pairs, share
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite

ALL: list[Inside] = ["hull", "baq", "slim"]


class TestTwoLevel(SolverSuite):
    """The four layers of every problem in two tensors."""

    solver = TwoLevel([0, 0, 1, 1])
    supports = frozenset({"masks", "ties", "max"})
    proves = False

    def problems(self) -> Iterator[Problem]:
        """Those whose ties lie within a tensor."""
        for problem in super().problems():
            if all(len({row // 2 for row in tie}) == 1 for tie in problem.ties):
                yield problem

    def test_takes_one_layer_and_one_option(self) -> None:
        table = Table((Layer("l"),), (Option(label="o"),), np.array([[0.5]]), "loss")
        assert TwoLevel([7]).solve(Problem(table)).choice == (0,)


class TestBaqInside(TestTwoLevel):
    solver = TwoLevel([0, 0, 1, 1], "baq")


def network(seed: int, tensors: int, groups: int, mean_bits: float = 3.5) -> Problem:
    """Weight groups of tensors of many sizes: sensitivities spread among and within tensors."""
    rng = np.random.default_rng(seed)
    bits, count = np.arange(2, 7), tensors * groups
    of = np.repeat(np.arange(tensors), groups)
    size = np.exp(rng.uniform(3, 8, tensors)).astype(np.int64)[of]
    spread = size * rng.lognormal(0, 1, tensors)[of] * rng.lognormal(0, 1, count)
    loss = spread[:, None] * 3.6**-bits * rng.lognormal(0, 0.2, (count, 5))
    layers, options = numbered(count), tuple(Option(label=f"w{b}") for b in bits)
    cost = Table(layers, options, size[:, None] * bits, "bit", "size")
    return Problem(
        Table(layers, options, loss, "loss"), (Budget(cost, int(size.sum() * mean_bits)),)
    )


def coarse(problem: Problem, of: NDArray[np.int64]) -> float:
    """The least loss of one option a tensor, by exact."""
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    layers, budget = numbered(len(starts)), problem.budgets[0]
    assert isinstance(budget.cost, Table)
    loss = np.add.reduceat(problem.loss.values, starts)
    cost = np.add.reduceat(budget.cost.values, starts)
    table = Table(layers, problem.loss.options, cost, "bit", "size")
    bare = Problem(
        Table(layers, problem.loss.options, loss, "loss"), (Budget(table, budget.limit),)
    )
    return Exact().solve(bare).loss


def fine(problem: Problem, of: NDArray[np.int64]) -> float:
    """The loss of fine layers alone: every tensor has the same share of the room."""
    asked = knapsack(problem, "test")
    assert asked is not None
    return problem.total(asked.choice(share(asked, of)))


@pytest.mark.parametrize("inside", ALL)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mean_bits", [2.2, 3.5, 5.5])
def test_is_never_worse_than_either_alone(seed: int, mean_bits: float, inside: Inside) -> None:
    of = np.repeat(np.arange(6), 10)
    problem = network(seed, 6, 10, mean_bits)
    solution = TwoLevel(of.tolist(), inside).solve(problem)
    assert problem.feasible(solution.choice)
    assert solution.loss <= coarse(problem, of) * (1 + 1e-12)
    assert solution.loss <= fine(problem, of) * (1 + 1e-12)
    assert solution.bound <= Exact().solve(problem).loss


class Silent:
    """A solver that finds nothing."""

    def solve(self, problem: Problem) -> Solution:
        return Solution((), math.inf, Status.UNKNOWN, -math.inf, "silent")


@pytest.mark.parametrize("inside", ALL)
def test_where_the_outer_solver_finds_nothing_tensors_share_alike(inside: Inside) -> None:
    of, problem = np.repeat(np.arange(6), 10), network(1, 6, 10)
    solution = TwoLevel(of, inside, Silent()).solve(problem)
    assert problem.feasible(solution.choice)
    assert solution.loss <= fine(problem, of)


def test_the_hull_inside_is_all_but_exact() -> None:
    problem = network(0, 30, 40)
    solution = TwoLevel(np.repeat(np.arange(30), 40).tolist()).solve(problem)
    assert solution.gap <= 2e-5 * solution.loss
    assert solution.loss < 0.7 * coarse(problem, np.repeat(np.arange(30), 40))


def test_tensors_may_lie_anywhere_and_have_any_number() -> None:
    problem = network(3, 5, 8)
    of = np.repeat(np.arange(5), 8)
    order = np.random.default_rng(0).permutation(40)

    def turned(table: Table) -> Table:
        return replace(table, layers=numbered(40), values=table.values[order])

    budget = problem.budgets[0]
    assert isinstance(budget.cost, Table)
    other = Problem(turned(problem.loss), (Budget(turned(budget.cost), budget.limit),))
    for inside in ALL:
        one = TwoLevel(of.tolist(), inside).solve(problem)
        two = TwoLevel((100 - 7 * of[order]).tolist(), inside).solve(other)
        assert two.loss == pytest.approx(one.loss, rel=1e-12)


@pytest.mark.parametrize("inside", ALL)
def test_many_groups_take_seconds(inside: Inside) -> None:
    problem = network(0, 200, 500)
    solution = TwoLevel(np.repeat(np.arange(200), 500), inside).solve(problem)
    assert solution.gap <= (1e-6 if inside == "hull" else 0.2) * solution.loss


@pytest.mark.slow
def test_a_million_groups_take_seconds() -> None:
    problem = network(0, 1000, 1000)
    solution = TwoLevel(np.repeat(np.arange(1000), 1000)).solve(problem)
    assert solution.gap <= 1e-6 * solution.loss


@pytest.mark.shared
def test_slim_llm_s_published_code_gives_the_same_bits(shared: Path) -> None:
    """16 of 16 groups: the least of its KL curve says how many pairs, their salience which.

    Its search ranks groups with a damped Hessian, its answer with one damped once more.
    """
    golden = np.load(shared / "oracles/golden/slimllm_sba_b2.npz")
    pairs = 1 + int(golden["mean_kl"].argmin())
    assert pairs == int(golden["n_pairs"])
    hessian = golden["H"].astype(np.float64) + 0.01 * np.eye(512)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(512)
    d = np.diag(np.linalg.cholesky(np.linalg.inv(hessian)))
    salience = ((golden["W"] / d) ** 2).reshape(64, 16, 32).sum(axis=(0, 2))
    step = balance(salience, np.zeros(16, np.int64), np.array([pairs]))
    np.testing.assert_array_equal(2 + step, golden["precision"])


@pytest.mark.parametrize("seed", range(10))
def test_the_number_of_pairs_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of = np.sort(rng.integers(0, 5, 60))
    of = np.unique(of, return_inverse=True)[1]
    salience, down, up = rng.random(60), rng.integers(0, 50, 60), -rng.integers(0, 50, 60)
    found = best_pairs(salience, of, down, up)
    for tensor, pairs in enumerate(found):
        members = np.flatnonzero(of == tensor)
        ranked = members[np.argsort(salience[members])]
        totals = {
            i: down[ranked[:i]].sum() + up[ranked[-i:]].sum() for i in range(1, len(members) // 2)
        }
        assert totals.get(pairs, 0) == min(totals.values(), default=0)
        assert bool(pairs) == bool(totals)


def test_refuses_what_does_not_fit() -> None:
    problem = network(0, 3, 4)
    with pytest.raises(ValueError, match="inside is 'omp'; there are hull, baq, slim"):
        TwoLevel([0], "omp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the problem has 12: give one whole number for each"):
        TwoLevel([0] * 11).solve(problem)
    tied = replace(problem, ties=((0, 11),))
    with pytest.raises(ValueError, match="layer 0 is tied to one of another tensor; tie within"):
        TwoLevel(np.repeat(np.arange(3), 4).tolist()).solve(tied)
    mask = np.ones((12, 5), bool)
    mask[0, 1] = False
    masked = replace(problem, loss=replace(problem.loss, allowed=mask))
    with pytest.raises(ValueError, match="needs three options or more, all of them for every"):
        TwoLevel(np.repeat(np.arange(3), 4).tolist(), "slim").solve(masked)
