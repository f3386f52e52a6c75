"""Dynamic programming: the laws, exhaustive's very answers, published cases, and its limits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Exhaustive
from mpsearch.solvers.dp import Dp, Over
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite
from mpsearch.testing.solver import Feature

TAKES: frozenset[Feature] = frozenset({"masks", "ties", "max"})
BOTH: list[Over] = ["pareto", "budget"]


class TestPareto(SolverSuite):
    solver = Dp()
    supports = TAKES


def asked(cost: Any, loss: Any, limit: float, fixed: float = 0) -> Problem:
    options = tuple(Option(label=f"o{k}") for k in range(len(cost[0])))
    layers = [Layer(f"l{i}") for i in range(len(cost))]
    size = Table(layers, options, np.asarray(cost), "byte", "size", fixed=fixed)
    return Problem(
        Table(layers, options, np.asarray(loss, np.float64), "loss"), (Budget(size, limit),)
    )


@st.composite
def small(draw: st.DrawFn) -> Problem:
    """Few layers of few options and many ties, under an integer budget that something keeps."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 4)))
    cost = rng.integers(0, draw(st.sampled_from([2, 4, 40])), shape, endpoint=True)
    unit = draw(st.sampled_from([1, 3, 10**12]))
    loss = rng.integers(-2, draw(st.sampled_from([0, 1, 9])), shape, endpoint=True)
    scale = draw(st.sampled_from([1.0, 0.1, 2.0**-40, 1e12]))
    limit = int(cost[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])].sum())
    return asked(cost * unit, loss * scale, limit * unit)


@pytest.mark.parametrize("over", BOTH)
@given(problem=small())
def test_gives_exhaustive_s_very_choice(over: Over, problem: Problem) -> None:
    """Of equal losses the cheapest, of those the first: not only an optimum, the same one."""
    wanted, got = Exhaustive().solve(problem), Dp(over).solve(problem)
    assert got.status is wanted.status
    assert got.choice == wanted.choice


@pytest.mark.parametrize("over", BOTH)
def test_of_equal_totals_the_first_choice_in_order_is_taken(over: Over) -> None:
    """Any one of three layers may have the better option; it is the last, as 0 comes before 1."""
    problem = asked([[0, 1]] * 3, [[1, 0]] * 3, 1)
    assert Dp(over).solve(problem).choice == Exhaustive().solve(problem).choice == (0, 0, 1)


@pytest.mark.shared
@pytest.mark.parametrize("over", BOTH)
@pytest.mark.parametrize("case", range(6))
def test_evopress_s_dynamic_program_gives_the_same(case: int, over: Over, shared: Path) -> None:
    """Six of six: the same levels of every layer, and its objective."""
    published = json.loads((shared / "oracles/golden/evopress_dpsolver.json").read_text())
    given_ = published["instances"][case]
    problem = asked(
        list(given_["costs"].values()), list(given_["errors"].values()), given_["max_cost"]
    )
    solution = Dp(over).solve(problem)
    assert solution.choice == tuple(given_["solution"].values())
    assert solution.loss == pytest.approx(given_["objective"], rel=1e-12)
    assert solution.status is Status.OPTIMAL


@pytest.mark.shared
@pytest.mark.parametrize("over", BOTH)
@pytest.mark.parametrize("case", range(5))
def test_autoround_s_dynamic_program_gives_the_same(case: int, over: Over, shared: Path) -> None:
    """Five of five: the same scheme of every layer, and its loss."""
    published = json.loads((shared / "oracles/golden/autoround_dp.json").read_text())
    given_ = published["instances"][case]
    cost, loss = (
        [[option[i] for option in options] for options in given_["layers"].values()] for i in (1, 2)
    )
    solution = Dp(over).solve(asked(cost, loss, given_["budget"]))
    assert solution.choice == tuple(scheme for _, scheme in given_["choice"])
    assert solution.loss == pytest.approx(given_["loss"], rel=1e-12)
    assert solution.status is Status.OPTIMAL


@pytest.mark.shared
@pytest.mark.parametrize("over", BOTH)
@pytest.mark.parametrize("case", range(8))
def test_the_theory_s_knapsacks_have_their_optimum(case: int, over: Over, shared: Path) -> None:
    """Eight of eight."""
    given_ = json.loads((shared / "oracles/theory/mckp_cases.json").read_text())[case]
    solution = Dp(over).solve(asked(given_["cost"], given_["loss"], given_["budget"]))
    assert solution.status is Status.OPTIMAL
    assert solution.loss == pytest.approx(given_["optimum"], rel=1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_real_costs_are_as_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, loss = (
        rng.uniform(1, 9, (6, 4)),
        rng.exponential(size=(6, 4)) * 10.0 ** rng.integers(-9, 9),
    )
    problem = asked(cost, loss, float(cost.mean(axis=1).sum()))
    wanted, got = Exhaustive().solve(problem), Dp().solve(problem)
    assert (got.choice, got.loss, got.status) == (wanted.choice, wanted.loss, wanted.status)


def test_counts_the_budget_in_the_common_divisor() -> None:
    """A budget of a billion bytes in steps of a megabyte is a thousand totals."""
    rng = np.random.default_rng(0)
    cost, loss = rng.integers(1, 30, (40, 4)) * 1_000_000, rng.exponential(size=(40, 4))
    problem = asked(cost + 7, loss, 500_000_000 + 280)
    one, other = Dp("budget", limit=40 * 1200).solve(problem), Dp().solve(problem)
    assert (one.choice, one.bound) == (other.choice, other.bound)
    with pytest.raises(ValueError, match="keep more than limit=400 totals; use the solver exact"):
        Dp("budget", limit=400).solve(problem)


def test_says_which_solver_has_no_such_limit() -> None:
    rng = np.random.default_rng(0)
    cost, loss = rng.uniform(1, 9, (60, 4)), rng.exponential(size=(60, 4))
    problem = asked(cost, loss, 200.0)
    wanted = "dp would keep more than limit=1000 totals; use the solver exact, or raise limit"
    for over in BOTH:
        with pytest.raises(ValueError, match=wanted):
            Dp(over, limit=1000).solve(problem)


def test_refuses_settings_that_mean_nothing() -> None:
    with pytest.raises(ValueError, match="dp is over 'pareto' or 'budget', not 'cost'"):
        Dp("cost")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit is 0; allow at least one total"):
        Dp(limit=0)


def test_a_million_options_and_huge_costs_beside_small_ones() -> None:
    wide = asked(np.ones((1, 10**5), np.int64), np.arange(10**5)[None, ::-1], 1)
    assert Dp().solve(wide).choice == Dp("budget").solve(wide).choice == (10**5 - 1,)
    huge = asked([[1, 2], [10**15, 3 * 10**15]], [[2, 1], [9, 0]], 3 * 10**15 + 1)
    assert Dp().solve(huge).choice == (0, 1)
