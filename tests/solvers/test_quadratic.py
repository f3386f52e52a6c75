"""Quadratic against the laws, against every choice, and its bounds against every answer."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.problem import Budget, Interaction, Problem, Status
from mpsearch.solvers import convex, form
from mpsearch.solvers.branching import Branching
from mpsearch.solvers.exhaustive import Exhaustive
from mpsearch.solvers.form import Answer, Answers, Form
from mpsearch.solvers.local_search import _Chains, annealed, searched
from mpsearch.solvers.lowering import lowered
from mpsearch.solvers.quadratic import Quadratic
from mpsearch.testing import SolverSuite
from mpsearch.testing.solver import problem as small
from tests.references.enumeration import best
from tests.solvers.correlated import correlated, signed
from tests.solvers.problems import problems

QUICK = Quadratic(chains=8, moves=10)
seeds = st.integers(0, 1 << 16)


@pytest.fixture(name="whole")
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that interact stay classes of their own, however few they are."""
    monkeypatch.setattr("mpsearch.solvers.program.MOST_PRODUCTS", 0)


class TestQuadratic(SolverSuite):
    solver = QUICK


@pytest.mark.usefixtures("whole")
class TestQuadraticByBranchAndBound(SolverSuite):
    solver = QUICK


def form_of(problem: Problem) -> Form:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpsearch.solvers.program.MOST_PRODUCTS", 0)
        found = lowered(problem)
    assert found
    return Form.of(found[0])


def answers(made: Form) -> Iterator[Any]:
    """Every answer of a form that keeps its rows."""
    columns = [np.flatnonzero(row) + i * made.shape[1] for i, row in enumerate(made.allowed)]
    for picks in itertools.product(*columns):
        found = np.array(picks)
        if (made.usage[:, found].sum(axis=1) <= made.room).all():
            yield found


@settings(max_examples=100)
@given(problems())
def test_is_the_best_of_all_choices(problem: Problem) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpsearch.solvers.program.MOST_PRODUCTS", 0)
        solution = QUICK.solve(problem)
    choice, loss = best(problem)
    assert solution.bound <= loss
    assert solution.status is (Status.OPTIMAL if choice else Status.INFEASIBLE)
    assert bool(solution.choice) == bool(choice)
    assert not choice or solution.loss - loss <= 1e-9 * problem.span


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("make", [lambda s: signed(8, 3, s), lambda s: correlated(8, 0.7, s)])
def test_dense_forms_are_solved_whatever_the_local_search_finds(make: Any, seed: int) -> None:
    problem = make(seed)
    known = Exhaustive().solve(problem)
    for solver in (Quadratic(chains=1, moves=0), QUICK):
        solution = solver.solve(problem)
        assert solution.status is Status.OPTIMAL
        assert solution.choice == known.choice
        assert solution.loss == known.loss


@settings(max_examples=25)
@given(seeds, st.integers(0, 30))
def test_a_proof_that_stops_early_is_a_bound_all_the_same(seed: int, parts: int) -> None:
    problem = signed(8, 2, seed)
    solution = replace(QUICK, parts=parts).solve(problem)
    least = Exhaustive().solve(problem).loss
    assert solution.bound <= least <= solution.loss


def test_ties_fold_their_pairs_into_the_losses_of_one_layer() -> None:
    problem = replace(signed(8, 3, 0), ties=((0, 3), (3, 6)))
    known = Exhaustive().solve(problem)
    assert QUICK.solve(problem).choice == known.choice


def test_the_form_is_the_objective_written_out() -> None:
    problem = signed(6, 3, 1)
    made = form_of(problem)
    for choice in itertools.islice(itertools.product(range(3), repeat=6), 0, None, 37):
        total = sum(problem.loss.values[i, k] for i, k in enumerate(choice))
        for pair in problem.interactions:
            if (choice[pair.first], choice[pair.second]) == (pair.first_option, pair.second_option):
                total += pair.loss
        picks = made.picks(choice)
        assert picks is not None
        assert made.choice(picks) == choice
        near = 2 * made.slip * made.unit
        assert made.bound(made.value(picks)) <= total <= made.bound(made.value(picks)) + near


def test_a_choice_with_an_option_left_out_is_no_answer_of_the_form() -> None:
    problem = signed(3, 3, 1)
    allowed = np.ones((3, 3), bool)
    allowed[1, 2] = False
    made = form_of(replace(problem, budgets=(), loss=replace(problem.loss, allowed=allowed)))
    assert made.picks((0, 2, 0)) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_relaxation_is_convex_and_the_form_itself_at_every_answer(seed: int) -> None:
    made = form_of(replace(signed(5, 3, seed), ties=((0, 1),)))
    relaxation, _, _ = convex.relaxed(made, np.inf)
    n, k = made.shape
    for picks in answers(made):
        x = np.zeros(n * k)
        x[picks] = 1.0
        value = x @ relaxation.matrix @ x + relaxation.linear @ x
        assert value == pytest.approx(made.value(picks), abs=1e-12)
    centred = np.kron(np.eye(n), np.eye(k) - 1.0 / k)
    assert np.linalg.eigvalsh(centred @ relaxation.matrix @ centred)[0] >= -1e-13


@settings(max_examples=25)
@given(seeds)
def test_any_point_and_any_price_prove_a_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = form_of(signed(5, 3, seed))
    relaxation, _, _ = convex.relaxed(made, np.inf)
    y = rng.dirichlet(np.ones(3), (4, 5)).reshape(4, 15)
    points = convex.Points(y, rng.exponential(0.1, (4, len(made.room))))
    allowed = np.tile(made.allowed, (4, 1, 1))
    bound, raised = relaxation.bounds(points, allowed)
    for picks in answers(made):
        value = made.value(picks)
        assert (bound + raised.reshape(4, 15)[:, picks].max(axis=1) <= value).all()


def test_a_tighter_relaxation_is_found_than_by_shifting_all_eigenvalues_alike() -> None:
    problem = correlated(20, 0.5, 0)
    solution = replace(QUICK, parts=0).solve(problem)
    assert 0 < solution.gap < 0.1 * solution.loss


def test_shares_are_projected_to_the_nearest_point_of_the_simplex() -> None:
    allowed = np.array([[[True, True, True], [True, False, True]]])
    y = np.array([[0.9, 0.5, -2.0, 3.0, 9.0, 3.5]])
    found = convex.projected(y, allowed)
    assert found[0].tolist() == pytest.approx([0.7, 0.3, 0.0, 0.25, 0.0, 0.75])


def test_local_search_ends_where_no_two_changes_help() -> None:
    made = form_of(signed(6, 3, 3))
    begin = next(answers(made))
    ends = searched(made, begin, chains=4, moves=5, seed=0)
    for picks in ends:
        near = [p for p in answers(made) if (p != picks).sum() <= 2]
        assert made.value(picks) <= min(map(made.value, near)) + 1e-12
    assert [made.value(p) for p in ends] == sorted(made.value(p) for p in ends)


def test_every_chain_keeps_the_rows_and_is_never_worse_than_its_start() -> None:
    made = form_of(correlated(12, 0.7, 0))
    begin = np.arange(12) * 3
    for picks in annealed(made, begin, chains=6, moves=300, seed=1):
        assert (made.usage[:, picks].sum(axis=1) <= made.room).all()
        assert made.value(picks) <= made.value(begin)


def test_fifty_layers_are_proven_to_a_thousandth() -> None:
    problem = correlated(50, 0.7, 1)
    solver = Quadratic(chains=8, moves=50)
    loss = replace(solver, parts=0).solve(problem).loss
    solution = replace(solver, gap=1e-3 * loss / problem.span).solve(problem)
    assert solution.gap <= 1e-3 * loss
    assert solution.solver == "quadratic (branch and bound, convex bound)"


def test_answers_repeat_and_leave_chance_and_rounding_alone() -> None:
    problem = correlated(14, 0.5, 2)
    state, errors = (random.getstate(), str(np.random.get_state())), np.geterr()  # noqa: NPY002
    one, two = QUICK.solve(problem), QUICK.solve(problem)
    assert one == two
    assert np.geterr() == errors
    assert state == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002


@pytest.mark.parametrize("power", [-60, 40])
def test_scaling_losses_and_pairs_by_a_power_of_two_scales_all(power: int) -> None:
    problem = replace(signed(9, 3, 5))
    scaled = replace(
        problem,
        loss=replace(problem.loss, values=problem.loss.values * 2.0**power),
        interactions=tuple(
            replace(pair, loss=pair.loss * 2.0**power) for pair in problem.interactions
        ),
    )
    one, two = replace(QUICK, parts=9).solve(problem), replace(QUICK, parts=9).solve(scaled)
    assert one.choice == two.choice
    assert (one.loss * 2.0**power, one.bound * 2.0**power) == (two.loss, two.bound)


def test_two_budgets_hold_together() -> None:
    problem = signed(8, 3, 4)
    rng = np.random.default_rng(0)
    size = problem.budgets[0].cost
    other = replace(size, name="latency", values=rng.uniform(1, 9, (8, 3)))  # type: ignore[arg-type]
    both = replace(problem, budgets=(*problem.budgets, Budget(other, 36.0)), costs=())
    assert QUICK.solve(both).choice == Exhaustive().solve(both).choice


def test_a_projected_form_is_searched_and_the_bound_is_of_the_form_given() -> None:
    problem = signed(8, 3, 0)
    known = Exhaustive().solve(problem)
    solution = replace(QUICK, projection=True).solve(problem)
    assert "searched on a projection that removed 0." in solution.solver
    assert solution.loss == problem.total(solution.choice) > known.loss
    assert solution.bound == pytest.approx(known.loss)
    assert solution.bound <= known.loss
    assert solution.status is Status.FEASIBLE


def test_projecting_what_is_convex_already_removes_nothing() -> None:
    problem = correlated(8, 0.5, 0)
    made = form_of(problem)
    # Within a layer the pairs are zero, which a measured matrix need not be.
    lifted = replace(made, pairs=made.pairs / 8)
    projected, removed = lifted.projected()
    assert removed == 0.0
    assert np.abs(projected.pairs - lifted.pairs).max() <= 1e-15
    given = problem.loss.values.ravel() / made.unit
    assert np.abs(projected.linear - given).max() <= 1e-14


def test_says_infeasible() -> None:
    problem = signed(8, 3, 0)
    cost = problem.budgets[0].cost
    none = replace(problem, budgets=(Budget(cost, cost.least() - 1),), costs=())
    assert QUICK.solve(none).status is Status.INFEASIBLE
    limits = (Budget(cost, cost.least()), Budget(_backwards(cost), _backwards(cost).least()))
    both = replace(problem, budgets=limits, costs=())
    assert Exhaustive().solve(both).status is Status.INFEASIBLE
    assert QUICK.solve(both).status is Status.INFEASIBLE


def _backwards(cost: Any) -> Any:
    return replace(cost, name="back", values=9 - cost.values)


def test_without_pairs_says_who_answered() -> None:
    solution = QUICK.solve(small(0))
    assert solution.solver.startswith("quadratic (no pairs left, milp")


def test_refuses_a_matrix_too_large_and_says_who_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "MOST_OPTIONS", 20)
    message = "8 classes of up to 3 options interact; quadratic takes 20 options in all: use milp"
    with pytest.raises(ValueError, match=message):
        QUICK.solve(signed(8, 3, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gap": -1.0}, "gap is -1.0; give a share of the span"),
        ({"gap": float("nan")}, "gap is nan; give a share of the span"),
        ({"parts": -1}, "parts is -1; give 0 or more"),
        ({"chains": 0}, "chains is 0; give 1 or more"),
        ({"moves": -1}, "moves is -1; give 0 or more"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"seconds": 0}, "seconds is 0; give more than zero"),
    ],
)
def test_refuses_settings_that_ask_for_nothing(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quadratic(**settings)


def test_time_is_kept() -> None:
    solution = replace(QUICK, seconds=1e-9).solve(correlated(30, 0.7, 0))
    assert solution.status is Status.FEASIBLE
    assert solution.bound > 0.5 * solution.loss


def test_pairs_of_one_size_tell_choices_apart_to_the_last_bit() -> None:
    """A pair's loss far below the others still decides."""
    problem = signed(8, 2, 0)
    pairs = tuple(Interaction(a, 1, a + 1, 1, -(2.0**-20)) for a in range(7))
    flat = replace(problem.loss, values=np.zeros((8, 2)))
    solution = QUICK.solve(replace(problem, loss=flat, budgets=(), costs=(), interactions=pairs))
    assert solution.choice == (1,) * 8
    assert solution.bound == pytest.approx(-7 * 2.0**-20)


def test_blocks_that_leave_a_concave_turn_are_raised() -> None:
    made = form_of(signed(4, 3, 0))
    flat = convex._Tangent(made)
    bare = flat.of(made.pairs)
    assert np.linalg.eigvalsh(bare)[0] < -0.01
    found = convex._relaxation(made, flat, bare, np.zeros((4, 2, 2)))
    assert np.linalg.eigvalsh(flat.of(found.matrix))[0] > 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_answer_that_breaks_a_condition_is_not_taken_for_a_bound(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of branch and bound stand answers; those that do not fit prove nothing."""
    made = form_of(replace(signed(3, 2, 0), budgets=(), costs=()))
    problem = replace(signed(3, 2, 0), budgets=(), costs=())
    known = Answers(problem, made, range(3))
    known.best = Answer((0, 0, 0), 1.0, 1.0)
    relaxation, points, _ = convex.relaxed(made, np.inf)
    search = Branching(relaxation, known, 1e-9)
    monkeypatch.setattr(known, "offer", lambda _: value > 0)
    least = min(map(made.value, answers(made)))
    floor = search.run(points, -np.inf, parts=1000, deadline=np.inf)
    assert floor >= least - 1e-9 if value else floor > least + 1e-3


def test_chains_keep_account_of_their_values() -> None:
    made = form_of(signed(6, 3, 2))
    begin, rng = next(answers(made)), np.random.default_rng(0)
    chains = _Chains(made, begin, 5)
    for _ in range(20):
        one = rng.integers(6, size=5)
        first, second = rng.integers(3, size=(2, 5))
        chains.move(one, (one + 1) % 6, first, second, np.full(5, np.inf))
    assert len(np.unique(chains.picks, axis=0)) > 1
    for value, picks in zip(chains.value, chains.picks, strict=True):
        assert made.value(begin) + value == pytest.approx(made.value(picks), abs=1e-12)


def test_the_seed_decides_what_annealing_does() -> None:
    made, begin = form_of(correlated(12, 0.7, 0)), np.arange(12) * 3
    one, same, other = (annealed(made, begin, chains=4, moves=40, seed=s) for s in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()


def test_a_form_is_counted_in_what_its_sizes_add_up_to() -> None:
    for scale in (1e-200, 1.0, 1e200):
        made = form_of(small(2, "interactions", scale=scale))
        high = np.where(made.allowed, made.linear.reshape(made.shape), 0.0).max(axis=1)
        assert 1 <= high.sum() + np.abs(made.pairs).sum() < 2


@pytest.mark.parametrize("seed", range(4))
def test_a_projection_answers_with_the_best_of_the_projected_form(seed: int) -> None:
    problem = signed(8, 2, seed)
    projected, _ = form_of(problem).projected()
    wanted = min(answers(projected), key=projected.value)
    found = Quadratic(projection=True).solve(problem).choice
    assert found == tuple(wanted % 2)
