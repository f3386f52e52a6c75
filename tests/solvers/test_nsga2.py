"""NSGA-II: the solvers' laws, frontiers that nothing dominates, seeds that are not lost."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.pareto import Point
from mpsearch.problem import Budget, Constraint, Interaction, Problem, Status
from mpsearch.solvers import Milp, nsga2
from mpsearch.solvers.nsga2 import NSGA2, hypervolume
from mpsearch.solvers.population import Genes
from mpsearch.tables import Stages, Table
from mpsearch.testing import SolverSuite
from tests.conftest import require
from tests.references.enumeration import best
from tests.solvers.instances import instance
from tests.solvers.problems import problems

require("pymoo", find_spec("pymoo"), 'pip install "mpsearch[evolution]"')


class TestNSGA2(SolverSuite):
    solver = NSGA2(generations=30)
    proves = False


def free(family: str, layers: int, options: int, *more: str) -> Problem:
    """A problem whose costs have no budget."""
    problem = instance(family, layers, options, more=more)
    return replace(problem, budgets=(), costs=problem.costs)


def objectives(point: Point) -> tuple[float, ...]:
    return (point.loss, *point.cost.values())


def beats(one: Sequence[float], two: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, two, strict=True)) and tuple(one) != tuple(two)


def whole_frontier(problem: Problem) -> set[tuple[float, ...]]:
    """The values of every choice that none dominates, by looking at all pairs."""
    rows, columns = problem.loss.values.shape
    found = {
        (problem.total(c), *(cost.total(c) for cost in problem.costs))
        for c in itertools.product(range(columns), repeat=rows)
        if problem.feasible(c)
    }
    table = np.array(sorted(found)).reshape(len(found), 1 + len(problem.costs))
    return {
        tuple(row)
        for row in table.tolist()
        if not ((table <= row).all(axis=1) & (table < row).any(axis=1)).any()
    }


@settings(max_examples=15)
@given(problems())
def test_answers_are_feasible_and_bounds_hold_whatever_is_asked(problem: Problem) -> None:
    choice, loss = best(problem)
    solution = NSGA2(population=20, generations=10).solve(problem)
    assert solution.bound <= loss
    if solution.choice:
        assert problem.feasible(solution.choice)
        assert solution.loss == problem.total(solution.choice) >= loss
    if not choice:
        assert solution.status in (Status.INFEASIBLE, Status.UNKNOWN)


@settings(max_examples=15)
@given(problems(layers=4, options=3))
def test_of_few_choices_the_frontier_is_the_whole_one(problem: Problem) -> None:
    points = NSGA2(generations=1).frontier(problem)
    assert {objectives(point) for point in points} == whole_frontier(problem)
    assert len({objectives(point) for point in points}) == len(points)


def test_of_a_thousand_choices_the_frontier_is_all_but_the_whole_one() -> None:
    problem = free("lat_real", 5, 4, "cnn_int")
    assert len(problem.costs) == 2
    points, whole = NSGA2(population=60).frontier(problem), whole_frontier(problem)
    assert len(whole) > 100
    assert len(whole & {objectives(point) for point in points}) >= 0.98 * len(whole)


def test_comes_near_the_optimum_at_a_hundred_layers() -> None:
    problem = instance("llm_int", 100)
    optimum, solution = Milp().solve(problem), NSGA2().solve(problem)
    assert problem.feasible(solution.choice)
    assert optimum.loss <= solution.loss <= optimum.loss + 1e-3 * problem.span
    assert solution.bound <= optimum.loss


def conditions(problem: Problem) -> Problem:
    """With a budget, a maximum, a side condition and interactions."""
    loss, size = problem.loss, problem.costs[0]
    assert isinstance(size, Table)
    terms = tuple((row, 0, 1) for row in range(len(loss.layers)))
    peak = replace(size, name="peak", reduce="max")
    stage = tuple((row, 2, 5) for row in range(6))
    return replace(
        problem,
        budgets=(
            Budget(size, size.total([1] * len(loss.layers))),
            Budget(peak, float(np.sort(size.values, axis=None)[-5])),
            Budget(Stages(loss.layers, loss.options, (stage, stage[:2]), "byte", "sram"), 15),
        ),
        constraints=(Constraint("few", terms, 3, 8),),
        interactions=(Interaction(0, 1, 1, 1, -0.2), Interaction(2, 0, 3, 0, 0.1)),
    )


def test_no_point_breaks_a_condition_or_dominates_another() -> None:
    problem = conditions(free("lat_real", 12, 4, "cnn_int"))
    points = NSGA2(population=50, generations=40).frontier(problem)
    assert len(points) > 20
    for point in points:
        assert problem.feasible(point.choice)
        assert point.loss == problem.total(point.choice)
        assert point.cost == {cost.name: cost.total(point.choice) for cost in problem.costs}
        assert point.bound == -math.inf
    for one, two in itertools.permutations(map(objectives, points), 2):
        assert not beats(one, two)
    first = [next(iter(point.cost.values())) for point in points]
    assert first == sorted(first)


def test_no_seed_is_lost_though_the_population_is_small() -> None:
    problem = free("lat_real", 40, 6, "moe_int")
    genes = Genes.of(problem, every=True)
    assert genes is not None
    seeds = genes.supported(*nsga2._prices(genes, np.random.default_rng(0)))
    points = NSGA2(population=10, generations=30).frontier(problem)
    found = np.array([objectives(point) for point in points])
    assert len(seeds) > 300
    for choice in genes.choices(seeds).tolist():
        seed = (problem.total(choice), *(cost.total(choice) for cost in problem.costs))
        assert (found <= np.array(seed)).all(axis=1).any()
    unseeded = NSGA2(population=10, generations=30, seed=1).frontier(problem)
    assert len(unseeded) > 300


def test_generations_only_add_hypervolume() -> None:
    problem = free("llm_int", 30, 6, "lat_real")
    reference = {"loss": problem.loss.total([0] * 30)} | {
        cost.name: cost.total([5] * 30) for cost in problem.costs
    }
    volumes = [
        hypervolume(NSGA2(generations=g, population=40).frontier(problem), reference)
        for g in (0, 10, 40)
    ]
    assert volumes[0] < volumes[1] < volumes[2]


def test_three_costs_have_a_frontier_too() -> None:
    problem = free("lat_real", 12, 4, "cnn_int", "convex_real")
    points = NSGA2(population=40, generations=20).frontier(problem)
    assert len(points[0].cost) == 3
    for one, two in itertools.permutations(map(objectives, points), 2):
        assert not beats(one, two)


def test_objectives_that_only_runs_tell_take_the_place_of_the_loss() -> None:
    problem = instance("lat_real", 8, 4)
    asked: list[tuple[int, ...]] = []

    def perplexity(choice: tuple[int, ...]) -> float:
        assert problem.feasible(choice)
        asked.append(choice)
        return math.inf if choice[0] == 1 else float(sum((3 - c) ** 2 for c in choice))

    def drift(choice: tuple[int, ...]) -> float:
        return float(sum(c * row for row, c in enumerate(choice)))

    points = NSGA2(population=30, generations=20).frontier(
        problem, {"perplexity": perplexity, "drift": drift}
    )
    assert len(set(asked)) == len(asked)
    keys = [tuple(point.cost.values()) for point in points]
    assert points[0].cost.keys() == {"lat_real", "perplexity", "drift"}
    for one, two in itertools.permutations(keys, 2):
        assert not beats(one, two)
    for point in points:
        assert point.choice[0] != 1
        assert point.cost["drift"] == drift(point.choice)
        assert point.loss == problem.total(point.choice)


def test_the_solver_s_own_objective_makes_a_frontier() -> None:
    problem = instance("lat_real", 6, 4)
    solver = NSGA2(population=20, generations=5, objective=lambda c: float(-sum(c)))
    assert solver.frontier(problem)[0].cost.keys() == {"lat_real", "objective"}


def test_an_objective_is_what_solve_makes_least() -> None:
    problem = instance("lat_real", 12, 4)
    blind = replace(problem, loss=replace(problem.loss, values=0.0 * problem.loss.values))
    solution = NSGA2(objective=problem.total).solve(blind)
    optimum = Milp().solve(problem)
    assert blind.feasible(solution.choice)
    assert problem.total(solution.choice) <= optimum.loss + 0.01 * problem.span
    assert (solution.loss, solution.bound) == (0.0, -math.inf)
    assert solution.status is Status.FEASIBLE
    assert solution.solver.startswith("nsga2, objective ")


def test_a_run_that_fails_is_not_the_answer() -> None:
    problem = instance("lat_real", 6, 4)
    solver = NSGA2(population=20, generations=3, objective=lambda _: math.inf)
    assert solver.solve(problem).status is Status.UNKNOWN
    assert solver.frontier(problem) == ()


def test_what_only_rounding_lets_through_is_no_point() -> None:
    """A sum of numbers of 1e6 rounds by more than the 1e-9 that the last option is too dear."""
    layers = tuple(Layer(f"l{i}") for i in range(3))
    labels = (Option(label="x"), Option(label="y"))
    loss = Table(layers, labels, np.array([[1.0, 0.0]] * 3), "loss")
    numbers = np.array([[1e6, 2e6], [-1e6, 1e6], [0.0, 1e-9]])
    asked = Problem(loss, (Budget(Table(layers, labels, numbers, "byte", "size"), 0.0),))
    assert [point.choice for point in NSGA2().frontier(asked)] == [(0, 0, 0)]
    assert NSGA2().solve(asked).choice in ((), (0, 0, 0))


def test_where_nothing_is_feasible_there_is_no_point() -> None:
    problem = instance("llm_int", 6, 4)
    size = problem.budgets[0].cost
    below = replace(problem, budgets=(Budget(size, size.least() - 1),))
    assert NSGA2().frontier(below) == ()
    assert NSGA2().solve(below).status is Status.INFEASIBLE


@pytest.mark.parametrize("run", [NSGA2.solve, NSGA2.frontier])
def test_follows_its_seed_prints_nothing_and_leaves_the_global_stream_alone(
    run: Callable[[NSGA2, Problem], object], capfd: pytest.CaptureFixture[str]
) -> None:
    problem = instance("strong", 20)
    state = repr(np.random.get_state())  # noqa: NPY002 - it is the old one that must not move
    solver = NSGA2(population=20, generations=5, seed=3)
    assert run(solver, problem) == run(solver, problem)
    assert repr(np.random.get_state()) == state  # noqa: NPY002
    assert capfd.readouterr() == ("", "")


def test_hypervolume_is_the_volume_that_points_dominate() -> None:
    points = [Point((0,), 3.0, 0.0, {"size": 1}), Point((1,), 1.0, 0.0, {"size": 2})]
    assert hypervolume(points, {"loss": 4.0, "size": 4.0}) == pytest.approx(3 * 2 + 1 * 1)
    assert hypervolume(points, {"size": 4.0}) == pytest.approx(3)
    assert hypervolume(points, {"loss": 0.5, "size": 4.0}) == 0
    assert hypervolume((), {"loss": 1.0}) == 0
    with pytest.raises(ValueError, match="no cost of the points is named 'time'; name loss, or a"):
        hypervolume(points, {"time": 1.0})


def test_refuses_what_makes_no_sense() -> None:
    problem = instance("lat_real", 6, 4)
    with pytest.raises(ValueError, match=r"a population is of 2 .* got population=1 and gen"):
        NSGA2(population=1)
    with pytest.raises(ValueError, match="population=100 and generations=-1"):
        NSGA2(generations=-1)
    with pytest.raises(ValueError, match="an objective is named 'lat_real', as a number of the"):
        NSGA2().frontier(problem, {"lat_real": lambda _: 0.0})
    with pytest.raises(ValueError, match=r"'x' is nan for \(.*; give a number, or inf"):
        NSGA2().frontier(problem, {"x": lambda _: math.nan})


def test_says_what_to_install_where_pymoo_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nsga2, "find_spec", lambda _: None)
    with pytest.raises(
        ImportError, match=r'NSGA2 needs pymoo: pip install "mpsearch\[evolution\]"'
    ):
        NSGA2()
    with pytest.raises(ImportError, match="hypervolume needs pymoo: pip install"):
        hypervolume((), {"loss": 1.0})
