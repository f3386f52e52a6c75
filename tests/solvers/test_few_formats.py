"""FewFormats: every set of options is looked at, and few are solved."""

import itertools
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_array, csr_array, eye_array, kron

from mpsearch.problem import OPTIMAL_GAP, Problem, Solution, Status
from mpsearch.solvers.few_formats import FewFormats
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite
from mpsearch.testing.solver import problem as small
from tests.solvers.problems import problems
from tests.solvers.test_lagrange import network, summed


class TestFewFormatsOfAll(SolverSuite):
    """Where every option may be used it solves what others solve."""

    solver = FewFormats(4)
    supports = frozenset({"budgets", "masks", "ties", "max"})


@settings(max_examples=200)
@given(problems(4, 4), st.integers(1, 3))
def test_is_the_best_of_all_choices_of_so_few(problem: Problem, most: int) -> None:
    problem = summed(problem)
    rows, columns = problem.loss.values.shape
    every = itertools.product(range(columns), repeat=rows)
    losses = [problem.total(c) for c in every if len(set(c)) <= most and problem.feasible(c)]
    found = FewFormats(most).solve(problem)
    best = min(losses, default=math.inf)
    assert found.bound <= best
    if not losses:
        assert found.status is Status.INFEASIBLE
        return
    assert problem.feasible(found.choice)
    assert len(set(found.choice)) <= most
    assert found.loss - best <= OPTIMAL_GAP * problem.span
    assert found.status is Status.OPTIMAL or 0 <= found.gap <= math.ulp(found.loss)


def indicated(problem: Problem, most: int) -> float:
    """The least loss by a program with a 0-1 number for each option that is used."""
    gain = problem.loss.values - problem.loss.values.min(axis=1, keepdims=True)
    rows, columns = gain.shape
    each = csr_array(kron(np.eye(rows), np.ones((1, columns))))
    held = []
    for budget in problem.budgets:
        assert isinstance(budget.cost, Table)
        held.append(budget.cost.values.ravel() / budget.limit * 1e3)
    layers = kron(np.ones((rows, 1)), eye_array(columns))
    used = block_array([[eye_array(rows * columns), -layers]])
    none = csr_array((rows, columns))
    result: Any = milp(
        np.concatenate([gain.ravel() / gain.max(axis=1).sum() * 1e6, np.zeros(columns)]),
        constraints=[
            LinearConstraint(block_array([[each, none]]), 1, 1),
            LinearConstraint(np.hstack([held, np.zeros((len(held), columns))]), ub=1e3),
            LinearConstraint(used, ub=0),
            LinearConstraint([[*np.zeros(rows * columns), *np.ones(columns)]], ub=most),
        ],
        integrality=np.ones(rows * columns + columns),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-7},
    )
    return problem.total(result.x[: rows * columns].reshape(rows, columns).argmax(axis=1).tolist())


@pytest.mark.parametrize(("budgets", "most"), [(1, 2), (1, 3), (2, 3)])
def test_is_the_mixed_integer_program_s_answer_and_faster(budgets: int, most: int) -> None:
    problem = network(100, budgets, seed=1)
    FewFormats(1).solve(problem)  # what is loaded once
    start = time.process_time()
    found = FewFormats(most).solve(problem)
    ours = time.process_time() - start
    start = time.process_time()
    reference = indicated(problem, most)
    theirs = time.process_time() - start
    print(f"{budgets} budgets, {most} formats: {theirs / ours:.0f} times the program's speed")
    assert found.status is Status.OPTIMAL
    assert found.loss == pytest.approx(reference, rel=1e-5)
    assert found.loss <= reference * (1 + 1e-12)
    assert ours < theirs


def test_most_sets_are_never_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpsearch.solvers.exact import Exact

    solved: list[Problem] = []
    solve = Exact.solve

    def counted(self: Exact, problem: Problem) -> Solution:
        solved.append(problem)
        return solve(self, problem)

    monkeypatch.setattr(Exact, "solve", counted)
    found = FewFormats(3).solve(network(224, 1))
    assert found.solver == "few-formats (exact)"
    assert len(solved) <= 3


def test_what_a_set_s_solver_left_open_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpsearch.solvers.exact import Exact

    problem, solve = network(20, 1), Exact.solve

    def hasty(self: Exact, problem: Problem) -> Solution:
        found = solve(self, problem)
        return replace(found, status=Status.FEASIBLE, bound=found.loss * 0.99)

    best = FewFormats(2).solve(problem)
    monkeypatch.setattr(Exact, "solve", hasty)
    found = FewFormats(2).solve(problem)
    assert (found.choice, found.status) == (best.choice, Status.FEASIBLE)
    assert found.bound <= best.loss * 0.995


def test_a_pinned_layer_s_format_counts() -> None:
    plain = network(6, 1)
    mask = np.ones(plain.loss.values.shape, bool)
    mask[0], mask[1] = False, False
    mask[0, 0], mask[1, 3] = True, True
    pinned = replace(plain, loss=replace(plain.loss, allowed=mask))
    assert FewFormats(1).solve(pinned).status is Status.INFEASIBLE
    assert set(FewFormats(2).solve(pinned).choice) == {0, 3}


def test_refuses_what_it_does_not_take() -> None:
    with pytest.raises(ValueError, match="most is 0; a network has at least one format"):
        FewFormats(0)
    with pytest.raises(ValueError, match="few-formats takes no stages; use the solver milp"):
        FewFormats(2).solve(small(0, "stages"))
    with pytest.raises(ValueError, match=r"sets of 20 options are more than 100000; mask options"):
        FewFormats(20).solve(network(3, 1, options=40))
