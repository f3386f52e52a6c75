"""EvoPress's search: the solvers' laws, equal cost, objectives only a run can tell."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Milp
from mpsearch.solvers.evolution import Evolution
from mpsearch.solvers.population import Genes, Integers
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite
from tests.references.enumeration import best
from tests.solvers.instances import instance
from tests.solvers.problems import problems


class TestEvolution(SolverSuite):
    solver = Evolution(generations=50)
    proves = False


def made(problem: Problem) -> Genes:
    genes = Genes.of(problem, every=True)
    assert genes is not None
    return genes


def levels(genes: Genes, choice: tuple[int, ...]) -> Integers:
    """The levels of a choice of a problem without ties."""
    layers = [layer for (layer,) in genes.program.layers]
    taken = np.array(choice)[layers][genes.program.owner]
    return np.flatnonzero(genes.program.columns[:, 0] == taken) - genes.program.starts


@settings(max_examples=40)
@given(problems())
def test_answers_are_feasible_and_bounds_hold_whatever_is_asked(problem: Problem) -> None:
    choice, loss = best(problem)
    solution = Evolution(generations=20, offspring=32).solve(problem)
    assert solution.bound <= loss
    if solution.choice:
        assert problem.feasible(solution.choice)
        assert solution.loss == problem.total(solution.choice) >= loss
    if not choice:
        assert solution.status in (Status.INFEASIBLE, Status.UNKNOWN)


def test_layers_of_equal_size_keep_the_cost_exactly() -> None:
    problem = instance("same_int", 40)
    cost = problem.budgets[0].cost
    tight = cost.total([2] * 40)
    genes = made(replace(problem, budgets=(Budget(cost, tight),)))
    rng = np.random.default_rng(0)
    parent = levels(genes, (2,) * 40)
    moved = 0
    for _ in range(20):
        children = Evolution().children(genes, parent, rng)
        assert {cost.total(choice) for choice in genes.choices(children).tolist()} == {tight}
        changed = (children != parent).sum(axis=1)
        assert changed.max() <= 6
        moved += int((changed > 0).sum())
        parent = children[0]
    assert moved > 20 * 128 * 0.9


def test_switches_are_the_smaller_of_two_draws() -> None:
    problem = instance("same_int", 300)
    cost = problem.budgets[0].cost
    genes = made(replace(problem, budgets=(Budget(cost, cost.total([2] * 300)),)))
    children = Evolution(offspring=4000).children(
        genes, levels(genes, (2,) * 300), np.random.default_rng(0)
    )
    counts = np.bincount(np.abs(children - levels(genes, (2,) * 300)).sum(axis=1) // 2)[1:4]
    shares = np.array([5, 3, 1]) / 9  # of 1, 2 and 3 switches
    assert counts / 4000 == pytest.approx(shares, abs=5 * (0.25 / 4000) ** 0.5)


@pytest.mark.shared
@pytest.mark.parametrize("bits", ["2.25", "3", "4"])
def test_evopress_s_published_bits_stay_at_their_mean_in_every_group(
    bits: str, shared: Path
) -> None:
    published = json.loads((shared / "oracles/evopress/quant_configs.json").read_text())
    config: dict[str, int] = published["Llama-2-7b-hf"][bits]
    size = np.array([45088768 if "mlp" in name else 16777216 for name in config])
    choice = tuple(level - 2 for level in config.values())
    options = tuple(Option(label=f"w{b}") for b in range(2, 7))
    rows = tuple(Layer(name) for name in config)
    cost = Table(rows, options, size[:, None] * np.arange(2, 7), "bit", "size")
    assert cost.total(choice) == float(bits) * size.sum()
    loss = Table(rows, options, np.zeros((len(rows), 5)), "loss")
    genes = made(Problem(loss, (Budget(cost, cost.total(choice)),)))
    children = Evolution().children(genes, levels(genes, choice), np.random.default_rng(0))
    taken = genes.choices(children) + 2
    assert (taken != np.add(choice, 2)).any(axis=1).mean() > 0.9
    for group in set(size.tolist()):
        assert (taken[:, size == group].mean(axis=1) == float(bits)).all()


def test_children_stay_within_a_budget_of_real_numbers() -> None:
    problem = instance("lat_real", 50)
    genes = made(problem)
    rng = np.random.default_rng(0)
    parent = genes.starts(10, rng)[0]
    for _ in range(20):
        children = Evolution().children(genes, parent, rng)
        for choice in genes.choices(children).tolist():
            assert problem.feasible(choice)
        parent = children[0]


@pytest.mark.parametrize("family", ["llm_int", "lat_real", "same_int"])
def test_comes_near_the_optimum_at_a_hundred_layers(family: str) -> None:
    problem = instance(family, 100)
    optimum, solution = Milp().solve(problem), Evolution().solve(problem)
    assert problem.feasible(solution.choice)
    assert optimum.loss <= solution.loss <= optimum.loss + 1e-3 * problem.span
    assert solution.bound <= optimum.loss


@pytest.mark.parametrize("family", ["same_int", "lat_real"])
def test_finds_what_only_runs_can_tell(family: str) -> None:
    problem = instance(family, 20, 4)
    zero = replace(problem, loss=replace(problem.loss, values=0.0 * problem.loss.values))
    solution = Evolution(objective=problem.total, generations=100, offspring=32).solve(zero)
    optimum = Milp().solve(problem)
    assert zero.feasible(solution.choice)
    assert problem.total(solution.choice) <= optimum.loss + 0.01 * problem.span
    assert (solution.loss, solution.bound) == (0.0, -math.inf)
    assert solution.status is Status.FEASIBLE
    assert f"objective {problem.total(solution.choice):.6g} after " in solution.solver


def test_finds_what_only_runs_can_tell_without_a_budget() -> None:
    problem = replace(instance("lat_real", 10, 4), budgets=())
    zero = replace(problem, loss=replace(problem.loss, values=0.0 * problem.loss.values))
    solution = Evolution(objective=problem.total, generations=60, offspring=32).solve(zero)
    assert solution.choice == tuple(problem.loss.values.argmin(axis=1).tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": -1}, "generations is at least 0, got -1"),
        ({"offspring": 0}, "offspring is at least 1, got 0"),
        ({"switches": 0}, "switches is at least 1, got 0"),
    ],
)
def test_refuses_settings_that_make_no_child(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Evolution(**settings)  # type: ignore[arg-type]
