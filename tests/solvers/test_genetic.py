"""The genetic search: the solvers' laws, the mended bugs, objectives only a run can tell."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Milp
from mpsearch.solvers.genetic import Genetic
from mpsearch.solvers.population import Genes, Integers, Scores
from mpsearch.tables import Floats, Table
from mpsearch.testing import SolverSuite
from tests.references.enumeration import best
from tests.solvers.instances import instance
from tests.solvers.problems import problems


class TestGenetic(SolverSuite):
    solver = Genetic()
    proves = False


def blind(problem: Problem) -> Problem:
    """The problem with a table that says nothing."""
    return replace(problem, loss=replace(problem.loss, values=0.0 * problem.loss.values))


def made(problem: Problem, *, every: bool = False) -> Genes:
    genes = Genes.of(problem, every=every)
    assert genes is not None
    return genes


@settings(max_examples=40)
@given(problems())
def test_answers_are_feasible_and_bounds_hold_whatever_is_asked(problem: Problem) -> None:
    choice, loss = best(problem)
    solution = Genetic(generations=20).solve(problem)
    assert solution.bound <= loss
    if solution.choice:
        assert problem.feasible(solution.choice)
        assert solution.loss == problem.total(solution.choice) >= loss
    if not choice:
        assert solution.status in (Status.INFEASIBLE, Status.UNKNOWN)


@pytest.mark.parametrize("family", ["llm_int", "lat_real", "strong"])
def test_comes_near_the_optimum_at_a_hundred_layers(family: str) -> None:
    problem = instance(family, 100)
    optimum, solution = Milp().solve(problem), Genetic().solve(problem)
    assert problem.feasible(solution.choice)
    assert optimum.loss <= solution.loss <= optimum.loss + 1e-3 * problem.span
    assert solution.bound <= optimum.loss


def test_two_budgets_are_kept() -> None:
    problem = instance("llm_int", 60, more=("lat_real",))
    optimum, solution = Milp().solve(problem), Genetic().solve(problem)
    assert problem.feasible(solution.choice)
    assert optimum.loss <= solution.loss <= optimum.loss + 5e-3 * problem.span


def test_fitness_sees_every_gene_unlike_apq_s() -> None:
    genes = made(instance("lat_real", 12))
    base = np.zeros(12, np.int64)
    for gene in np.flatnonzero(genes.sizes > 1):
        other = base.copy()
        other[gene] = 1
        one, two = Scores(genes, None).of(np.stack([base, other]))[0]
        assert one != two


def test_an_objective_is_asked_of_whole_choices_and_of_each_once() -> None:
    problem = blind(instance("lat_real", 8, 4))
    rng = np.random.default_rng(0)
    real = rng.random(problem.loss.values.shape)
    asked: list[tuple[int, ...]] = []

    def run(choice: tuple[int, ...]) -> float:
        asked.append(choice)
        assert problem.feasible(choice)
        return float(real[np.arange(8), choice].sum())

    solution = Genetic(objective=run).solve(problem)
    assert len(set(asked)) == len(asked)
    optimum = Milp().solve(replace(problem, loss=replace(problem.loss, values=real)))
    assert run(solution.choice) == pytest.approx(optimum.loss)
    assert (solution.loss, solution.bound) == (0.0, -math.inf)
    assert solution.status is Status.FEASIBLE
    assert solution.solver == f"genetic, objective {optimum.loss:.6g} after {len(asked) - 1} runs"


def test_every_child_enters_the_population_unlike_apq_s(monkeypatch: pytest.MonkeyPatch) -> None:
    born: list[Integers] = []
    seen: list[Integers] = []
    children, of = Genetic._children, Scores.of

    def bear(self: Genetic, genes: Genes, parents: Integers, rng: np.random.Generator) -> Integers:
        born.append(children(self, genes, parents, rng))
        return born[-1]

    def look(self: Scores, population: Integers) -> tuple[Floats, Floats]:
        seen.append(population)
        return of(self, population)

    monkeypatch.setattr(Genetic, "_children", bear)
    monkeypatch.setattr(Scores, "of", look)
    Genetic(generations=5, population=100).solve(instance("lat_real", 30))
    assert len(born) == 5
    for child, population in zip(born, seen[1:], strict=True):
        assert len(child) == 75
        assert {*map(tuple, child.tolist())} <= {*map(tuple, population.tolist())}


@pytest.mark.parametrize("mutate", [0.02, 0.3])
def test_the_probability_of_mutation_given_is_the_one_that_holds_unlike_eq_net_s(
    mutate: float,
) -> None:
    genes = made(replace(instance("lat_real", 400), budgets=()), every=True)
    parent = np.zeros((1, 400), np.int64)
    solver = Genetic(population=101, mutated=1.0, mutate=mutate)
    mutants = solver._children(genes, parent, np.random.default_rng(0))
    drawn = mutate * 5 / 6  # one of six levels is the one it has
    assert (mutants != 0).mean() == pytest.approx(drawn, abs=5 * (drawn / mutants.size) ** 0.5)


def test_answers_far_below_a_budget_count_unlike_in_eq_net_s_band() -> None:
    problem = instance("llm_int", 10, share=0.9)
    solution = Genetic(objective=lambda choice: float(sum(choice))).solve(blind(problem))
    assert solution.choice == (0,) * 10


def test_ends_where_nothing_is_feasible() -> None:
    problem = instance("llm_int", 10)
    size = problem.budgets[0].cost
    assert Genetic().solve(replace(problem, budgets=(Budget(size, size.least() - 1),))).status is (
        Status.INFEASIBLE
    )
    assert isinstance(size, Table)
    odd = replace(size, values=np.where(np.arange(6) % 2, 4, 2) + 0 * size.values, name="odd")
    below = replace(odd, values=-odd.values, name="below")
    asked = replace(problem, budgets=(Budget(odd, 31), Budget(below, -31)))
    assert Genetic(generations=3).solve(asked).status is Status.UNKNOWN


def test_a_choice_whose_run_failed_is_not_the_answer() -> None:
    problem = blind(instance("lat_real", 6, 4))
    solution = Genetic(
        objective=lambda c: math.inf if c[0] else float(sum(c)), generations=30
    ).solve(problem)
    assert solution.choice[0] == 0
    nothing = Genetic(objective=lambda _: math.inf, generations=3).solve(problem)
    assert nothing.status is Status.UNKNOWN
    assert nothing.bound == -math.inf


def test_refuses_an_objective_that_is_nan() -> None:
    with pytest.raises(ValueError, match=r"objective is nan for \(.*\); give a number, or inf"):
        Genetic(objective=lambda _: math.nan).solve(instance("lat_real", 6))


def test_an_objective_may_want_what_the_table_thinks_beaten() -> None:
    problem = replace(instance("lat_real", 6, 4), budgets=())
    dearest = problem.loss.values.argmax(axis=1)
    wrong = Genetic(objective=lambda c: -problem.total(c)).solve(problem)
    assert wrong.choice == tuple(dearest.tolist())


def test_leaves_the_global_stream_alone_and_follows_its_seed() -> None:
    problem = instance("strong", 40)
    state = repr(np.random.get_state())  # noqa: NPY002 - it is the old one that must not move
    first = Genetic(generations=5).solve(problem)
    assert repr(np.random.get_state()) == state  # noqa: NPY002
    assert first == Genetic(generations=5).solve(problem)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 1}, "a population is of 2 .* got population=1 and generations=100"),
        ({"generations": -1}, "population=100 and generations=-1"),
        ({"parents": 0.0}, "parents is above 0 and at most 1, got 0.0"),
        ({"mutated": 1.5}, "mutated is above 0 and at most 1, got 1.5"),
        ({"mutate": math.nan}, "mutate is above 0 and at most 1, got nan"),
    ],
)
def test_refuses_settings_that_make_no_sense(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genetic(**settings)  # type: ignore[arg-type]
