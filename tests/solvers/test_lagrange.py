"""Lagrange: proven where enumeration reaches, bounds that hold, gaps as small as it says."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import eye, kron

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import OPTIMAL_GAP, Budget, Problem, Status
from mpsearch.solvers.dual import Classes, multipliers, priced
from mpsearch.solvers.exhaustive import Exhaustive
from mpsearch.solvers.knapsack import knapsack
from mpsearch.solvers.lagrange import Lagrange
from mpsearch.solvers.repair import improved, repaired
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite
from mpsearch.testing.solver import problem as small
from tests.solvers.problems import problems


class TestLagrange(SolverSuite):
    solver = Lagrange()
    supports = frozenset({"budgets", "masks", "ties", "max"})


class TestLagrangeThatMayKeepOneState(SolverSuite):
    solver = Lagrange(states=1)
    supports = frozenset({"budgets", "masks", "ties", "max"})
    proves = False

    def test_a_dominated_option_changes_nothing(self) -> None:
        """A dominated option is no dominated state, of which it keeps one."""

    def test_permuting_layers_permutes_the_answer(self) -> None:
        """Nor is the order of layers."""


def network(layers: int, budgets: int, seed: int = 0, options: int = 6) -> Problem:
    """A language model's losses and bytes, beside real latencies that are not monotone in bits."""
    rng = np.random.default_rng(seed)
    names = tuple(Layer(f"l{i}") for i in range(layers))
    labels = tuple(Option(label=f"o{k}") for k in range(options))
    bits = np.array([2, 3, 4, 5, 6, 8, *range(9, 60)][:options])
    weights = rng.choice([2**24, 2**22, 2**25, 7 * 2**23], layers)[:, None]
    noise = rng.lognormal(0, 0.25, (layers, options))
    loss = rng.lognormal(0, 1.5, (layers, 1)) * 4.0**-bits * noise
    costs = [Table(names, labels, weights * bits // 8 + weights // 64, "byte", "size")]
    for number in range(1, budgets):
        slow = rng.lognormal(0, 0.3, (layers, 1)) * rng.lognormal(0, 0.12, (layers, options))
        latency = weights**0.9 * (bits + 2 * number) * slow
        costs.append(Table(names, labels, latency, "us", f"latency{number}"))
    held = []
    for cost in costs:
        low, high = cost.values.min(axis=1).sum(), cost.values.max(axis=1).sum()
        limit = low + 0.35 * rng.uniform(0.95, 1.05) * (high - low)
        held.append(Budget(cost, int(limit) if cost.exact else float(limit)))
    return Problem(Table(names, labels, loss, "loss"), tuple(held))


def summed(problem: Problem) -> Problem:
    """Without what only milp takes."""
    tables = [b for b in problem.budgets if isinstance(b.cost, Table)]
    return replace(problem, budgets=tuple(tables), costs=(), constraints=(), interactions=())


def classes(problem: Problem) -> Classes:
    made = knapsack(problem, "lagrange", rows=None)
    assert made is not None
    return Classes(made.gain, made.usage, np.array(made.room))


@settings(max_examples=200)
@given(problems())
def test_finds_and_proves_what_enumeration_finds(problem: Problem) -> None:
    problem = summed(problem)
    best, found = Exhaustive().solve(problem), Lagrange().solve(problem)
    assert found.bound <= best.loss
    assert found.status is best.status or 0 <= found.gap <= math.ulp(found.loss)
    if found.choice:
        assert problem.feasible(found.choice)
        assert found.loss - best.loss <= OPTIMAL_GAP * problem.span


@settings(max_examples=100)
@given(problems())
def test_says_nothing_wrong_when_it_may_hardly_look(problem: Problem) -> None:
    problem = summed(problem)
    best, found = Exhaustive().solve(problem), Lagrange(states=1).solve(problem)
    assert found.bound <= best.loss <= found.loss
    if found.status is Status.OPTIMAL:
        assert found.loss - best.loss <= OPTIMAL_GAP * problem.span
    if found.status is Status.INFEASIBLE:
        assert best.status is Status.INFEASIBLE


@settings(max_examples=200)
@given(problems(5, 4), st.sampled_from([1, 2, 2000]))
def test_going_through_what_is_left_makes_up_for_a_poor_start(
    problem: Problem, states: int
) -> None:
    problem = summed(problem)
    best = Exhaustive().solve(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpsearch.solvers.lagrange.improved", lambda _, picks, *__: picks)
        found = Lagrange(states).solve(problem)
    assert found.bound <= best.loss <= found.loss
    if states == 2000:
        assert found.loss - best.loss <= OPTIMAL_GAP * problem.span or not best.choice


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_the_bound_is_that_of_the_linear_relaxation(budgets: int) -> None:
    given = classes(network(60, budgets))
    rows = np.array([u.ravel() / room for u, room in zip(given.usage, given.room, strict=True)])
    owner = kron(eye(60), np.ones((1, 6))).tocsr()
    gain = given.gain.ravel() / given.most
    relaxed = linprog(gain, rows, np.ones(budgets), owner, np.ones(60), method="highs")
    y, _ = multipliers(given)
    bound, raised = priced(given, y)
    assert bound / given.most == pytest.approx(relaxed.fun, rel=1e-7)
    assert raised.min() == 0.0
    assert (y >= 0).all()


@pytest.mark.parametrize(
    ("layers", "budgets", "most"),
    [(224, 2, 5e-3), (224, 3, 5e-3), (1000, 2, 2e-4), (1000, 3, 4e-4), (10_000, 3, 2e-5)],
)
def test_many_layers_have_a_small_proven_gap(layers: int, budgets: int, most: float) -> None:
    problem = network(layers, budgets)
    found = Lagrange().solve(problem)
    assert problem.feasible(found.choice)
    assert 0 <= found.gap <= most * found.loss


@settings(max_examples=100)
@given(problems(6, 4))
def test_no_bound_at_any_multipliers_is_above_the_best(problem: Problem) -> None:
    problem = summed(problem)
    made, best = knapsack(problem, "lagrange", rows=None), Exhaustive().solve(problem)
    if made is None or not best.choice:
        return
    given = Classes(made.gain, made.usage, np.array(made.room))
    y, _ = multipliers(given)
    for factor in (0.0, 0.5, 1.0, 3.0):
        assert made.bound(priced(given, factor * y)[0]) <= best.loss


def test_repairing_and_improving_end_within_every_room() -> None:
    given = classes(network(100, 3))
    y, _ = multipliers(given)
    _, raised = priced(given, y)
    worst = given.gain.argmin(axis=1)
    assert not given.fits(worst)
    found = repaired(given, worst, raised)
    assert found is not None
    assert given.fits(found)
    better = improved(given, found, y, raised)
    assert given.fits(better)
    assert given.total(better) < given.total(found)
    assert worst.tolist() == given.gain.argmin(axis=1).tolist()


def test_what_cannot_be_repaired_is_given_up() -> None:
    given = classes(network(8, 2))
    tight = replace(given, room=np.array([-1, -1]))
    assert repaired(tight, np.zeros(8, np.int64), np.zeros(given.gain.shape)) is None


def test_improving_makes_pairs_of_moves() -> None:
    """Neither class may move alone: only an exchange keeps the room."""
    gain = np.array([[5, 0], [0, 1]])
    usage = np.array([[[0, 2], [2, 0]]])
    given = Classes(gain, usage, np.array([2]))
    raised = np.array([[5.0, 0.0], [0.0, 1.0]])
    assert improved(given, np.array([0, 0]), np.array([2.5]), raised).tolist() == [1, 1]


def test_budgets_that_hold_alone_but_not_together_are_infeasible() -> None:
    plain = network(300, 2)
    cost = plain.budgets[0].cost
    assert isinstance(cost, Table)
    turned = replace(cost, values=cost.values[:, ::-1], name="turned")
    limit = plain.budgets[0].limit
    together = replace(plain, budgets=(Budget(cost, limit), Budget(turned, limit)), costs=())
    assert Lagrange().solve(together).status is Status.INFEASIBLE


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e250])
def test_scale_changes_neither_answer_nor_relative_gap(scale: float) -> None:
    plain = network(60, 2)
    one = Lagrange().solve(plain)
    other = Lagrange().solve(
        replace(plain, loss=replace(plain.loss, values=plain.loss.values * scale))
    )
    assert other.loss == pytest.approx(one.loss * scale, rel=1e-12)
    assert other.gap == pytest.approx(one.gap * scale, rel=1e-6)


@pytest.mark.parametrize("feature", ["stages", "constraints"])
def test_refuses_what_milp_takes_and_names_it(feature: str) -> None:
    with pytest.raises(
        ValueError, match=r"lagrange takes no (stages|side constraints); use the solver milp"
    ):
        Lagrange().solve(small(0, feature))  # type: ignore[arg-type]


def test_refuses_settings_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match="states is at least 1, got 0; give 2000 or so"):
        Lagrange(states=0)
