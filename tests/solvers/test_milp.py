"""Milp: exact against Exhaustive, sound in its bounds, and honest about both."""

import math
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import OPTIMAL_GAP, Budget, Constraint, Interaction, Problem, Status
from mpsearch.solvers import Exhaustive, Milp
from mpsearch.solvers.engine import Word
from mpsearch.tables import Table
from tests.references.knapsack import least_loss
from tests.solvers.problems import problems

Engine = Literal["highs", "cbc"]


def random_problem(
    layers: int, options: int, *, budgets: int = 1, seed: int = 0, spread: float = 8.0
) -> Problem:
    """Losses that fall fourfold with a bit, spread over layers; one cost in bytes, others real."""
    rng = np.random.default_rng(seed)
    names = tuple(Layer(f"l{i}") for i in range(layers))
    labels = tuple(Option(label=f"o{k}") for k in range(options))
    bits = np.linspace(2, 8, options)
    noise = rng.lognormal(0, 0.25, (layers, options))
    loss = rng.lognormal(0, 1.5, (layers, 1)) * 4.0**-bits * noise
    held = []
    for number in range(budgets):
        sizes = np.exp(rng.uniform(0, spread, (layers, 1)))
        cost = sizes * bits * (1 if number == 0 else rng.lognormal(0, 0.1, (layers, options)))
        values = np.ceil(cost).astype(np.int64) if number == 0 else cost
        table = Table(names, labels, values, "byte", f"cost{number}")
        low, high = values.min(axis=1).sum(), values.max(axis=1).sum()
        limit = low + 0.35 * (high - low)
        held.append(Budget(table, int(limit) if number == 0 else float(limit)))
    return Problem(Table(names, labels, loss, "loss"), tuple(held))


def scaled(problem: Problem, factor: float) -> Problem:
    return replace(problem, loss=replace(problem.loss, values=problem.loss.values * factor))


def check(problem: Problem, solver: Milp) -> None:
    best, found = Exhaustive().solve(problem), solver.solve(problem)
    assert found.bound <= best.loss
    assert found.status is best.status or 0 <= found.gap <= math.ulp(found.loss)
    if found.choice:
        assert problem.feasible(found.choice)
        assert found.loss == problem.total(found.choice)
        assert found.loss - best.loss <= OPTIMAL_GAP * problem.span


@settings(max_examples=1500)
@given(problems())
def test_finds_and_proves_what_enumeration_finds(problem: Problem) -> None:
    check(problem, Milp())


@settings(max_examples=300)
@given(problems(), st.sampled_from([1, 20, 200, 4_000_000]), st.sampled_from([(1,), (0.5, 1)]))
def test_proofs_make_up_for_a_poor_start_and_a_silent_engine(
    problem: Problem, states: int, shares: tuple[float, ...]
) -> None:
    best = Exhaustive().solve(problem)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpsearch.solvers.milp.bettered", lambda _, picks, *__: picks)
        patch.setattr("mpsearch.solvers.milp.asked", lambda *_: Word(None))
        patch.setattr("mpsearch.solvers.milp.SHARES", shares)
        found = Milp(states=states).solve(problem)
    assert found.bound <= best.loss <= found.loss
    if states == 4_000_000:
        assert found.loss == best.loss or found.loss - best.loss <= OPTIMAL_GAP * problem.span


@settings(max_examples=200)
@given(problems())
def test_finds_and_proves_it_with_cbc_too(problem: Problem) -> None:
    check(problem, Milp(engine="cbc"))


@settings(max_examples=300)
@given(problems())
def test_says_nothing_wrong_when_it_may_hardly_look(problem: Problem) -> None:
    best, found = Exhaustive().solve(problem), Milp(seconds=1e-9, states=3).solve(problem)
    assert found.bound <= best.loss
    assert found.loss >= best.loss
    if found.status is Status.OPTIMAL:
        assert found.loss - best.loss <= OPTIMAL_GAP * problem.span
    if found.status is Status.INFEASIBLE:
        assert best.status is Status.INFEASIBLE


@cache
def known() -> tuple[Problem, float]:
    """A problem and its least loss, by dynamic programming."""
    plain = random_problem(54, 4, spread=3)
    cost = plain.budgets[0].cost
    assert isinstance(cost, Table)
    limit = int(plain.budgets[0].limit)
    return plain, least_loss(plain.loss.values.tolist(), cost.values.tolist(), limit)


@pytest.mark.parametrize("engine", ["highs", "cbc"])
@pytest.mark.parametrize("factor", [1e-300, 1e-15, 1e-9, 1e-6, 1e-4, 1e-2, 1.0, 1e9, 1e250])
def test_no_tolerance_swallows_small_losses(factor: float, engine: Engine) -> None:
    """Engines called with such losses as they are return answers many times worse as optimal."""
    plain, best = known()
    solution = Milp(engine=engine).solve(scaled(plain, factor))
    assert solution.status is Status.OPTIMAL
    assert plain.total(solution.choice) == pytest.approx(best, rel=1e-12)


def test_small_losses_beside_large_ones_are_put_right_too() -> None:
    small = scaled(random_problem(30, 4), 1e-12)
    cost, limit = small.budgets[0].cost, small.budgets[0].limit
    assert isinstance(cost, Table)
    layers = (*small.loss.layers, Layer("large"))
    loss = np.vstack([small.loss.values, [1e6, 3e6, 4e6, 5e6]])
    size = np.vstack([cost.values, [7, 1, 1, 1]])
    both = Problem(
        Table(layers, small.loss.options, loss, "loss"),
        (Budget(Table(layers, cost.options, size, "byte", "size"), limit + 7),),
    )
    assert Milp().solve(both).choice == (*Milp().solve(small).choice, 0)


def test_a_large_common_loss_hides_no_difference() -> None:
    plain = random_problem(12, 3)
    lifted = replace(plain, loss=replace(plain.loss, values=np.ldexp(plain.loss.values, -20) + 1e3))
    best = Exhaustive().solve(lifted)
    solution = Milp().solve(lifted)
    assert solution.loss == best.loss
    assert solution.bound <= best.loss


@pytest.mark.parametrize("engine", ["highs", "cbc"])
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_many_layers_are_solved_to_proven_optimality(budgets: int, engine: Engine) -> None:
    problem = random_problem(60, 6, budgets=budgets)
    solution = Milp(engine=engine).solve(problem)
    assert solution.status is Status.OPTIMAL
    assert problem.feasible(solution.choice)
    other: Engine = "cbc" if engine == "highs" else "highs"
    assert solution.loss == pytest.approx(Milp(engine=other).solve(problem).loss, rel=1e-12)


def test_two_hundred_layers_take_less_than_two_seconds() -> None:
    problem = random_problem(200, 6)
    Milp().solve(random_problem(5, 3, budgets=2))  # what is loaded once
    start = time.process_time()
    solution = Milp().solve(problem)
    assert time.process_time() - start < 2
    assert solution.status is Status.OPTIMAL


def test_ten_thousand_layers_are_solved_to_proven_optimality() -> None:
    solution = Milp().solve(random_problem(10_000, 6))
    assert solution.status is Status.OPTIMAL


def test_a_limit_of_time_is_kept_and_the_bound_is_one() -> None:
    problem = random_problem(100, 6, budgets=3)
    best = Milp().solve(problem)
    assert best.status is Status.OPTIMAL
    start = time.monotonic()
    hasty = Milp(seconds=0.01, states=100).solve(problem)
    assert time.monotonic() - start < 2
    assert hasty.status is Status.FEASIBLE
    assert problem.feasible(hasty.choice)
    assert hasty.bound < best.bound
    assert best.loss <= hasty.loss


def interacting(count: int) -> Problem:
    """Every layer interacts with every other, too many for a class of products."""
    bare = random_problem(count, 3)
    rng = np.random.default_rng(1)
    return replace(
        bare,
        costs=(),
        interactions=tuple(
            Interaction(i, k, j, k, float(0.01 * rng.normal()))
            for i in range(count)
            for j in range(i)
            for k in range(2)
        ),
    )


@pytest.fixture
def no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interacting layers stay as they are, and only the engine can look at them."""
    monkeypatch.setattr("mpsearch.solvers.milp.PRODUCTS", 0)


def test_interactions_of_a_few_layers_are_proven() -> None:
    check(interacting(8), Milp())


@pytest.mark.usefixtures("no_products")
@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_interactions_of_all_layers_are_made_linear(engine: Engine) -> None:
    problem = interacting(8)
    best, found = Exhaustive().solve(problem), Milp(engine=engine).solve(problem)
    assert found.loss == best.loss
    assert -math.inf < found.bound <= best.loss


@pytest.mark.usefixtures("no_products")
@pytest.mark.parametrize(("engine", "name"), [("highs", "HiGHS"), ("cbc", "CBC")])
def test_an_engine_s_word_is_told_and_not_counted(engine: Engine, name: str) -> None:
    found = Milp(engine=engine).solve(interacting(8))
    assert found.status is Status.FEASIBLE
    assert found.solver == f"milp ({name}; it says optimal, unproven here)"


@pytest.mark.usefixtures("no_products")
def test_an_engine_s_word_that_there_is_no_answer_is_none() -> None:
    never = Constraint("never", ((0, 0, 1), (1, 0, 1), (2, 0, 1)), 1.5, 1.75)
    found = Milp(engine="highs").solve(replace(interacting(8), constraints=(never,)))
    assert found.status is Status.UNKNOWN
    assert found.solver == "milp (HiGHS; it says infeasible, unproven here)"


@pytest.mark.usefixtures("no_products")
@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_interactions_that_take_too_long_leave_a_bound(engine: Engine) -> None:
    problem = interacting(8)
    hasty = Milp(seconds=1e-9, engine=engine).solve(problem)
    assert hasty.status is Status.FEASIBLE
    assert -math.inf < hasty.bound <= Exhaustive().solve(problem).loss <= hasty.loss


def test_budgets_that_hold_alone_but_not_together_are_infeasible() -> None:
    plain = random_problem(40, 3)
    cost, limit = plain.budgets[0].cost, plain.budgets[0].limit
    assert isinstance(cost, Table)
    turned = Budget(replace(cost, values=cost.values[:, ::-1], name="turned"), limit)
    together = replace(plain, budgets=(*plain.budgets, turned), costs=())
    for budget in together.budgets:
        assert Milp().solve(replace(plain, budgets=(budget,), costs=())).choice
    for engine in ("highs", "cbc"):
        assert Milp(engine=engine).solve(together).status is Status.INFEASIBLE


def test_whole_numbers_that_never_sum_to_what_is_asked_are_infeasible() -> None:
    """Sixes and tens make no 23, though the relaxation says so."""
    names = tuple(Layer(f"l{i}") for i in range(12))
    labels = tuple(Option(label=x) for x in "abc")
    loss = Table(names, labels, np.zeros((12, 3)), "loss")
    terms = tuple((row, column, (0, 6, 10)[column]) for row in range(12) for column in range(3))
    problem = Problem(loss, constraints=(Constraint("23", terms, 23, 23),))
    for engine in ("highs", "cbc"):
        assert Milp(engine=engine).solve(problem).status is Status.INFEASIBLE
    assert Milp(states=10).solve(problem).status in (Status.INFEASIBLE, Status.UNKNOWN)


@pytest.mark.parametrize("says", ["optimal", "infeasible"])
def test_an_engine_that_lies_is_not_believed(
    says: Literal["optimal", "infeasible"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worst answer is no optimum, and what it calls infeasible is solved."""

    def lie(program: Any, *_: Any) -> Word:
        return Word(program.starts if says == "optimal" else None, says)

    monkeypatch.setattr("mpsearch.solvers.milp.asked", lie)
    problem = random_problem(12, 3, budgets=2)
    best = Exhaustive().solve(problem)
    for states in (1, 200, 4_000_000):
        found = Milp(states=states).solve(problem)
        assert found.bound <= best.loss <= found.loss
        if found.status is not Status.FEASIBLE:
            assert (found.choice, found.status) == (best.choice, Status.OPTIMAL)
    assert found.status is Status.OPTIMAL
    monkeypatch.setattr("mpsearch.solvers.milp.PRODUCTS", 0)
    found = Milp().solve(interacting(8))
    assert found.bound <= Exhaustive().solve(interacting(8)).loss
    assert found.status is Status.FEASIBLE


@pytest.mark.usefixtures("no_products")
def test_an_answer_over_the_budget_is_asked_for_again_with_less_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shifts: list[float] = []

    def careless(program: Any, engine: str, seconds: float, shift: Any) -> Word:
        shifts.append(float(shift[0]))
        dearest = np.append(program.starts[1:], len(program.owner)) - 1
        return Word(dearest if len(shifts) < 3 else program.starts, "optimal")

    monkeypatch.setattr("mpsearch.solvers.milp.asked", careless)
    problem = interacting(8)
    found = Milp().solve(problem)
    assert problem.feasible(found.choice)
    assert len(shifts) == 3
    assert 0 == shifts[0] > shifts[1] > shifts[2]


@pytest.mark.parametrize("seed", range(3))
def test_two_budgets_are_proven_without_an_engine(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpsearch.solvers.milp.asked", lambda *_: pytest.fail("it was asked"))
    found = Milp().solve(random_problem(224, 6, budgets=2, seed=seed))
    assert found.status is Status.OPTIMAL


@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_nothing_is_written_to_standard_output(engine: Engine) -> None:
    """Not even by the engines' own code: a command's answer goes there."""
    code = (
        "from tests.solvers.test_milp import *\n"
        f"Milp(engine={engine!r}).solve(random_problem(60, 6, budgets=3))\n"
        f"Milp(engine={engine!r}).solve(interacting(6))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_cbc_answers_where_highspy_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Milp().solve(random_problem(5, 3)).solver == "milp (HiGHS)"
    monkeypatch.setattr("mpsearch.solvers.milp.find_spec", lambda _: None)
    assert Milp().solve(random_problem(5, 3)).solver == "milp (CBC)"
    with pytest.raises(ValueError, match="engine 'highs' needs highspy; install it, or take"):
        Milp(engine="highs")


def test_refuses_settings_that_mean_nothing() -> None:
    with pytest.raises(
        ValueError, match="no engine is named 'glpk'; there are auto, highs and cbc"
    ):
        Milp(engine="glpk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seconds is above zero, got 0"):
        Milp(seconds=0)
    with pytest.raises(ValueError, match="seconds is above zero, got nan"):
        Milp(seconds=math.nan)
