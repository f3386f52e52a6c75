"""Optuna's samplers: the solvers' laws, studies that are resumed, silence."""

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Milp, optuna_search
from mpsearch.solvers.optuna_search import SAMPLERS, OptunaSearch
from mpsearch.testing import SolverSuite
from tests.conftest import require
from tests.references.enumeration import best
from tests.solvers.instances import instance
from tests.solvers.problems import problems

require("optuna", find_spec("optuna"), 'pip install "mpsearch[nas]"')


class TestOptunaSearch(SolverSuite):
    solver = OptunaSearch(trials=20, sampler="random")
    proves = False


class TestOptunaSearchByTpe(SolverSuite):
    solver = OptunaSearch(trials=15)
    proves = False


PROBLEM = instance("lat_real", 6, 4)
BLIND = replace(PROBLEM, loss=replace(PROBLEM.loss, values=0.0 * PROBLEM.loss.values))


def memory() -> Any:
    import optuna

    return optuna.storages.InMemoryStorage()


def load(storage: Any) -> Any:
    import optuna

    return optuna.load_study(study_name="mpsearch", storage=storage)


@settings(max_examples=20)
@given(problems())
def test_answers_are_feasible_and_bounds_hold_whatever_is_asked(problem: Problem) -> None:
    choice, loss = best(problem)
    solution = OptunaSearch(trials=15, sampler="nsga2").solve(problem)
    assert solution.bound <= loss
    if solution.choice:
        assert problem.feasible(solution.choice)
        assert solution.loss == problem.total(solution.choice) >= loss
    if not choice:
        assert solution.status in (Status.INFEASIBLE, Status.UNKNOWN)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_begins_near_the_optimum(sampler: str) -> None:
    problem = instance("llm_int", 40)
    solution = OptunaSearch(trials=20, sampler=sampler).solve(problem)
    assert Milp().solve(problem).loss <= solution.loss
    assert solution.loss <= Milp().solve(problem).loss + 5e-3 * problem.span
    assert solution.solver == f"optuna ({sampler})"


def test_a_sampler_may_be_made_by_a_function_of_the_seed() -> None:
    import optuna

    seeds: list[int] = []

    def make(seed: int) -> optuna.samplers.BaseSampler:
        seeds.append(seed)
        return optuna.samplers.TPESampler(seed=seed, multivariate=False, n_startup_trials=5)

    solution = OptunaSearch(trials=12, sampler=make, objective=PROBLEM.total).solve(BLIND)
    assert len(set(seeds)) == 12
    assert solution.solver.startswith("optuna (make), objective ")


def test_runs_of_an_objective_are_of_feasible_choices_and_each_once() -> None:
    asked: list[tuple[int, ...]] = []

    def run(choice: tuple[int, ...]) -> float:
        assert BLIND.feasible(choice)
        asked.append(choice)
        return PROBLEM.total(choice)

    solution = OptunaSearch(trials=60, objective=run).solve(BLIND)
    assert len(set(asked)) == len(asked)
    assert PROBLEM.total(solution.choice) == min(map(PROBLEM.total, asked))
    assert (solution.loss, solution.bound) == (0.0, -math.inf)
    assert solution.status is Status.FEASIBLE


def interrupted(after: int, by: BaseException) -> Callable[[tuple[int, ...]], float]:
    asked: list[tuple[int, ...]] = []

    def run(choice: tuple[int, ...]) -> float:
        if len(asked) == after:
            raise by
        asked.append(choice)
        return PROBLEM.total(choice)

    return run


@pytest.mark.parametrize(("sampler", "after"), [("tpe", 17), ("nsga2", 14), ("random", 2)])
def test_goes_on_after_an_interrupt_as_if_it_had_not_been(sampler: str, after: int) -> None:
    solver = OptunaSearch(trials=30, sampler=sampler, starts=4, objective=PROBLEM.total)
    whole, broken = memory(), memory()
    wanted = replace(solver, storage=whole).solve(BLIND)
    resumed = replace(solver, storage=broken)
    with pytest.raises(KeyboardInterrupt):
        replace(resumed, objective=interrupted(after, KeyboardInterrupt())).solve(BLIND)
    assert resumed.solve(BLIND) == wanted
    complete = [t for t in load(broken).trials if t.state.name == "COMPLETE"]
    assert [t.params for t in complete] == [t.params for t in load(whole).trials]
    assert len(complete) == 30


def test_a_file_outlives_an_interrupt(tmp_path: Path) -> None:
    solver = OptunaSearch(trials=6, starts=2, objective=PROBLEM.total, sampler="random")
    file = replace(solver, storage=f"sqlite:///{tmp_path}/study.db", study="bits")
    with pytest.raises(RuntimeError, match="no GPU"):
        replace(file, objective=interrupted(2, RuntimeError("no GPU"))).solve(BLIND)
    assert file.solve(BLIND) == solver.solve(BLIND)
    assert (tmp_path / "study.db").is_file()


def test_more_trials_go_on_from_fewer() -> None:
    storage = memory()
    few = OptunaSearch(trials=6, storage=storage, objective=PROBLEM.total)
    few.solve(BLIND)
    more = replace(few, trials=10)
    assert more.solve(BLIND) == replace(more, storage=None).solve(BLIND)
    assert len(load(storage).trials) == 10
    again = replace(more, objective=interrupted(0, AssertionError("asked again")))
    assert again.solve(BLIND) == more.solve(BLIND)


def test_two_workers_share_a_study() -> None:
    storage = memory()
    inner: list[str] = []

    def run(choice: tuple[int, ...]) -> float:
        if not inner:  # while this one runs, another begins
            inner.append("begun")
            one = OptunaSearch(trials=4, storage=storage, objective=PROBLEM.total)
            inner.append(one.solve(BLIND).solver)
        return PROBLEM.total(choice)

    OptunaSearch(trials=10, storage=storage, objective=run).solve(BLIND)
    trials = load(storage).trials
    assert len(trials) == 10
    assert len({tuple(t.params.values()) for t in trials[:5]}) == 5


def test_first_looks_at_solutions_near_the_relaxation_s() -> None:
    storage = memory()
    OptunaSearch(trials=8, starts=5, storage=storage).solve(PROBLEM)
    trials = load(storage).trials
    assert ["fixed_params" in trial.system_attrs for trial in trials] == [True] * 5 + [False] * 3
    names = {layer.name for layer in PROBLEM.loss.layers}
    assert set(trials[0].params) <= names
    best = min(t.value for t in trials if t.constraints["conditions"] <= 0)
    assert best == pytest.approx(OptunaSearch(trials=8, starts=5).solve(PROBLEM).loss)


def test_what_breaks_a_budget_is_told_to_the_sampler() -> None:
    storage = memory()
    OptunaSearch(trials=10, starts=0, sampler="random", storage=storage).solve(PROBLEM)
    over = [trial.constraints["conditions"] for trial in load(storage).trials]
    assert min(over) == 0
    assert max(over) > 0


def test_refuses_a_study_of_another_problem() -> None:
    solver = OptunaSearch(trials=2, storage=memory())
    solver.solve(PROBLEM)
    message = "study 'mpsearch' is of another problem; give another name, or another storage"
    with pytest.raises(ValueError, match=message):
        solver.solve(instance("lat_real", 6, 4, seed=1))
    with pytest.raises(ValueError, match=message):
        replace(solver, objective=PROBLEM.total).solve(PROBLEM)
    assert replace(solver, study="other").solve(instance("lat_real", 6, 4, seed=1)).choice


@pytest.mark.parametrize("fails", [False, True])
def test_says_nothing_and_leaves_optuna_s_voice_as_it_was(
    fails: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    import optuna

    before = optuna.logging.get_verbosity()
    state = repr(np.random.get_state())  # noqa: NPY002 - it is the old one that must not move
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        solver = OptunaSearch(trials=5)
        if fails:
            with pytest.raises(RuntimeError, match="no GPU"):
                replace(solver, objective=interrupted(2, RuntimeError("no GPU"))).solve(BLIND)
        else:
            solver.solve(PROBLEM)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")
    assert repr(np.random.get_state()) == state  # noqa: NPY002


def test_where_nothing_is_feasible_says_so() -> None:
    size = PROBLEM.budgets[0].cost
    below = replace(PROBLEM, budgets=(Budget(size, size.least() - 1),))
    assert OptunaSearch().solve(below).status is Status.INFEASIBLE


def test_runs_that_fail_are_no_answer() -> None:
    solution = OptunaSearch(trials=15, objective=lambda _: math.inf).solve(BLIND)
    assert solution.status is Status.UNKNOWN


def test_refuses_what_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no sampler is named 'annealing'; there are tpe, nsga2"):
        OptunaSearch(sampler="annealing")
    with pytest.raises(ValueError, match="trials=0 and starts=10"):
        OptunaSearch(trials=0)
    with pytest.raises(ValueError, match="trials=100 and starts=-1"):
        OptunaSearch(starts=-1)
    monkeypatch.setattr(optuna_search, "find_spec", lambda _: None)
    with pytest.raises(
        ImportError, match=r'OptunaSearch needs optuna: pip install "mpsearch\[nas\]'
    ):
        OptunaSearch()
