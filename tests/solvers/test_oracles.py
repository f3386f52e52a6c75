"""Milp against published allocations and against optima found elsewhere."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Milp
from mpsearch.tables import Table
from tests.references.knapsack import least_loss

pytestmark = pytest.mark.shared
OPTIONS = mp.options("w4a4", "w8a8")
Engine = Literal["highs", "cbc"]


def hawq(shared: Path, kind: str, share: float) -> Problem:
    """HAWQ-V3's program for ResNet-18: 4 or 8 bits, first and last layer left out.

    A layer's loss is trace times squared weight error; the budget lies ``share`` of the way from
    all at 4 bits to all at 8. Bit operations are MACs / (32 / bits)^2, a latency is measured.
    """
    tables = json.loads((shared / "oracles/hawq/ilp_tables.json").read_text())["resnet18"]
    layers = tuple(mp.Layer(name) for name in tables["layer_names"])
    trace = np.array(tables["Hutchinson_trace"])
    errors = [tables[f"delta_weights_{bits}bit_square"] for bits in (4, 8)]
    cost = {
        "modelsize": np.outer(tables["parameters"], [4, 8]),
        "bops": np.outer(tables["macs"], [4 * 4, 8 * 8]),
        "latency": np.transpose([tables["latency_int4"], tables["latency_int8"]]),
    }[kind]
    priced = Table(layers, OPTIONS, cost, "unit", kind)
    low, high = (priced.total([column] * len(layers)) for column in (0, 1))
    return Problem(
        Table(layers, OPTIONS, (trace * errors).T, "loss"),
        (Budget(priced, low + share * (high - low)),),
        ties=tuple(map(tuple, tables["tied_pairs"])),
    )


@pytest.mark.parametrize("engine", ["highs", "cbc"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("kind", ["modelsize", "bops", "latency"])
def test_hawq_v3_s_published_resnet18_comes_out_bit_for_bit(
    kind: str, share: float, engine: Engine, shared: Path
) -> None:
    published: dict[str, Any] = json.loads(
        (shared / "oracles/hawq/published_bit_vectors.json").read_text()
    )
    solution = Milp(engine=engine).solve(hawq(shared, kind, share))
    bits = [OPTIONS[column].weight.bits for column in solution.choice]
    assert bits == published[f"bit_config_resnet18_{kind}_{share}"]
    assert solution.status is Status.OPTIMAL


def test_hawq_v3_s_ties_matter(shared: Path) -> None:
    """Without them the published answers are not the best, so that the test above sees them."""
    problem = hawq(shared, "bops", 0.5)
    free = Problem(problem.loss, problem.budgets)
    assert Milp().solve(free).loss < Milp().solve(problem).loss


@pytest.mark.parametrize("engine", ["highs", "cbc"])
@pytest.mark.parametrize("case", range(8))
def test_the_theory_s_knapsacks_have_their_optimum(case: int, engine: Engine, shared: Path) -> None:
    given = json.loads((shared / "oracles/theory/mckp_cases.json").read_text())[case]
    layers = tuple(mp.Layer(f"l{i}") for i in range(len(given["weights"])))
    options = mp.options(*(f"w{bits}a16" for bits in given["bits"]))
    cost = Table(layers, options, np.array(given["cost"]), "bit", "size")
    loss = Table(layers, options, np.array(given["loss"]), "loss")
    solution = Milp(engine=engine).solve(Problem(loss, (Budget(cost, given["budget"]),)))
    assert solution.status is Status.OPTIMAL
    assert solution.loss == pytest.approx(given["optimum"], rel=1e-12)
    assert solution.loss == pytest.approx(
        least_loss(given["loss"], given["cost"], given["budget"]), rel=1e-12
    )
    assert solution.bound >= given["lp_bound"] * (1 - 1e-9)
