"""Our solvers against published allocations of vision networks, and against others' engines."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Milp
from mpsearch.tables import Table
from tests.references.engines import cbc, cbc_scaled, scipy_milp
from tests.references.knapsack import least_loss
from tests.solvers.ours import PROVE, solved
from tests.solvers.published import (
    HAWQ_KINDS,
    HAWQ_SHARES,
    MIXDQ_GROUPS,
    bits,
    calibtip,
    hawq,
    limpq,
    mixdq,
    read,
)

pytestmark = pytest.mark.shared
PROVERS = (*PROVE, "milp-cbc")


@pytest.mark.parametrize("solver", PROVERS)
@pytest.mark.parametrize("share", HAWQ_SHARES)
@pytest.mark.parametrize("kind", HAWQ_KINDS)
def test_hawq_v3_s_published_resnet18_comes_out_bit_for_bit(
    kind: str, share: float, solver: str, shared: Path
) -> None:
    published = read(shared / "oracles/hawq/published_bit_vectors.json")
    problem = hawq(shared, "resnet18", kind, share)
    solution = solved(solver, problem)
    assert bits(problem, solution.choice) == published[f"bit_config_resnet18_{kind}_{share}"]
    assert solution.status is Status.OPTIMAL


def test_hawq_v3_s_ties_matter(shared: Path) -> None:
    """Without them the published answers are not the best, so that the test above sees them."""
    problem = hawq(shared, "resnet18", "bops", 0.5)
    free = Problem(problem.loss, problem.budgets)
    assert Milp().solve(free).loss < Milp().solve(problem).loss


@pytest.mark.parametrize("solver", PROVERS)
@pytest.mark.parametrize("share", HAWQ_SHARES)
@pytest.mark.parametrize("kind", HAWQ_KINDS)
def test_hawq_v3_s_resnet50_is_proven_optimal(
    kind: str, share: float, solver: str, shared: Path
) -> None:
    problem = hawq(shared, "resnet50", kind, share)
    solution = solved(solver, problem)
    assert solution.status is Status.OPTIMAL
    merged, groups = problem.merged()
    theirs = scipy_milp(merged, gap=0)
    choice = [theirs[group] for group in groups]
    assert problem.feasible(choice)
    assert solution.choice == tuple(choice)


def test_hawq_v3_s_resnet50_has_the_optimum_that_was_found_for_it(shared: Path) -> None:
    """By HiGHS and CBC both: 0.831387 less than all at 4 bits, in 14.598 MB."""
    problem = hawq(shared, "resnet50", "modelsize", 0.25)
    solution = solved(PROVERS[0], problem)
    saved = problem.total([0] * len(problem.loss.layers)) - solution.loss
    assert saved == pytest.approx(0.831387, abs=5e-7)
    assert problem.budgets[0].cost.total(solution.choice) / 8e6 == pytest.approx(14.598, abs=5e-4)


@pytest.mark.parametrize("solver", PROVERS)
@pytest.mark.parametrize("mean", ["3.66", "4.00"])
@pytest.mark.parametrize("group", MIXDQ_GROUPS)
def test_mixdq_s_published_weights_come_out_bit_for_bit(
    group: str, mean: str, solver: str, shared: Path
) -> None:
    problem, published = mixdq(shared, mean, group)
    solution = solved(solver, problem)
    assert bits(problem, solution.choice) == published
    assert solution.status is Status.OPTIMAL


def test_mixdq_has_794_layers(shared: Path) -> None:
    assert sum(len(mixdq(shared, "4.00", group)[1]) for group in MIXDQ_GROUPS) == 794


@pytest.mark.parametrize("solver", PROVERS)
@pytest.mark.parametrize("network", ["resnet18", "resnet50", "mobilenetv2"])
def test_calibtip_s_layers_are_enough_and_none_too_many(
    network: str, solver: str, shared: Path
) -> None:
    given = read(shared / "oracles/calibtip/published_int4_layers.json")
    shares = given["int4_layers_by_compression"][network]
    assert len(shares) == 12
    for share in shares:
        problem, published = calibtip(shared, network, share)
        solution = solved(solver, problem)
        assert bits(problem, solution.choice) == published, share
        for layer in (place for place, width in enumerate(published) if width == 4):
            back = list(solution.choice)
            back[layer] = 1
            assert not problem.feasible(back), share


@pytest.mark.parametrize("solver", ["milp", "milp-cbc"])
def test_limpq_s_joint_bits_are_proven_optimal(solver: str, shared: Path) -> None:
    problem = limpq(shared)
    solution = solved(solver, problem)
    assert solution.status is Status.OPTIMAL
    assert problem.feasible(solution.choice)
    assert solution.loss == pytest.approx(4.617439227178693, rel=1e-12)  # of HiGHS, scaled
    theirs = scipy_milp(problem, gap=0)
    assert solution.choice == theirs


@cache
def theory(shared: Path, case: int) -> Any:
    return read(shared / "oracles/theory/mckp_cases.json")[case]


@cache
def textbook(shared: Path, case: int) -> float:
    given = theory(shared, case)
    return least_loss(given["loss"], given["cost"], given["budget"])


@pytest.mark.parametrize("solver", PROVERS)
@pytest.mark.parametrize("case", range(8))
def test_the_theory_s_knapsacks_have_their_optimum(case: int, solver: str, shared: Path) -> None:
    given = theory(shared, case)
    layers = tuple(mp.Layer(f"l{i}") for i in range(len(given["weights"])))
    options = mp.options(*(f"w{bits}a16" for bits in given["bits"]))
    cost = Table(layers, options, np.array(given["cost"]), "bit", "size")
    loss = Table(layers, options, np.array(given["loss"]), "loss")
    solution = solved(solver, Problem(loss, (Budget(cost, given["budget"]),)))
    assert solution.status is Status.OPTIMAL
    assert solution.loss == pytest.approx(given["optimum"], rel=1e-12)
    if len(layers) < 50:  # beyond, the textbook takes seconds
        assert solution.loss == pytest.approx(textbook(shared, case), rel=1e-12)
    assert solution.bound >= given["lp_bound"] * (1 - 1e-9)


@pytest.mark.parametrize("solver", PROVERS)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_no_engine_finds_less(scale: float, solver: str, shared: Path) -> None:
    """CBC as PuLP calls it, CBC scaled and scipy's HiGHS, on losses as published and smaller."""
    cases = [hawq(shared, "resnet18", kind, 0.5).merged()[0] for kind in HAWQ_KINDS]
    cases += [mixdq(shared, "4.00", group)[0] for group in MIXDQ_GROUPS]
    for case in cases:
        values = case.loss.values * scale
        problem = Problem(Table(case.loss.layers, case.loss.options, values, "x"), case.budgets)
        solution = solved(solver, problem)
        for engine in (cbc, cbc_scaled, scipy_milp):
            theirs = engine(problem)
            loss = problem.total(theirs) if problem.feasible(theirs) else math.inf
            assert solution.bound <= solution.loss <= loss, engine.__name__
