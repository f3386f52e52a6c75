"""Budgets, conditions, ties and what they merge into."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import mpsearch as mp
from mpsearch.problem import (
    OPTIMAL_GAP,
    Budget,
    Constraint,
    Interaction,
    Problem,
    Solution,
    Status,
    expand,
    infeasible,
)
from mpsearch.tables import Stages, Table
from tests.solvers.problems import problems

LAYERS = (mp.Layer("a", 100), mp.Layer("b", 60))
OPTIONS = mp.options("w4a8", "w8a8")
LOSS = Table(LAYERS, OPTIONS, np.array([[0.3, 0.1], [0.2, 0.05]]), "nats")
SIZE = Table(
    LAYERS, OPTIONS, np.array([[50, 100], [20, 40]]), "byte", "size", fixed=10, reference=660
)


def cost(unit: str, reference: float | None = None) -> Table:
    return Table(LAYERS, OPTIONS, np.ones((2, 2)), unit, "cost", reference=reference)


@pytest.mark.parametrize(
    ("counted", "text", "expected"),
    [
        ("byte", "150", 150),
        ("byte", "1.5kB", 1500),
        ("byte", "6.7MB", 6_700_000),
        ("byte", "1 MiB", 1 << 20),
        ("byte", ".5KiB", 512),
        ("byte", "25%", 165),
        ("byte", "12.5 %", 82.5),
        ("byte", "4.0bit", 80 + 10),
        ("byte", "2e3", 2000),
        ("ms", "3ms", 3),
        ("ms", "3", 3),
        ("ms", "250us", 0.25),
        ("ms", "1s", 1000),
        ("ms", "25%", 165),
        ("s", "3ms", 0.003),
        ("mJ", "2J", 2000),
        ("BitOps", "116G", 116_000_000_000),
        ("BitOps", "1.5T", 1_500_000_000_000),
        ("ms", "2k", 2000),
    ],
)
def test_limits_are_read_with_their_unit(counted: str, text: str, expected: float) -> None:
    asked = SIZE if counted == "byte" else cost(counted, 660)
    limit = Budget.of(asked, text).limit
    assert limit == expected
    assert isinstance(limit, int) or not float(limit).is_integer()


def test_a_number_is_its_own_limit_and_an_option_what_it_costs_everywhere() -> None:
    assert Budget.of(SIZE, 120).limit == 120
    assert Budget.of(SIZE, "uniform:w4a8").limit == 80
    assert Budget.of(SIZE, "uniform:int8/int8").limit == 150
    stages = Stages(LAYERS, OPTIONS, (((0, 1, 7),), ((1, 1, 9),)), "byte", "sram")
    assert Budget.of(stages, "uniform:w8a8").limit == 9


@pytest.mark.parametrize(
    ("asked", "limit", "message"),
    [
        (SIZE, "many", "size=many is not understood; 'size' is counted in byte: write a number"),
        (SIZE, "one", "25%, uniform:OPTION, 4.0bit, or a unit such as kB, MB or MiB"),
        (SIZE, "3ms", "budget size=3ms is not understood"),
        (SIZE, "3 parsecs", "budget size=3 parsecs is not understood"),
        (SIZE, "", "budget size= is not understood"),
        (SIZE, "1e9999", "budget size=1e9999 is not understood"),
        (cost("ms"), "3MB", "budget cost=3MB is not understood; 'cost' is counted in ms"),
        (cost("ms"), "3J", "budget cost=3J is not understood"),
        (cost("ms"), "25%", "'cost' has no unquantized reference, so '25%' means nothing; give"),
        (cost("ms"), "4bit", "in bits is a mean over stored weights; 'cost' is counted in ms"),
        (SIZE, "uniform:w2a8", "no option is 'w2a8' here; there are int4/int8, int8/int8"),
        (SIZE, math.inf, "budget 'size' is inf; give a finite number"),
        (SIZE, math.nan, "budget 'size' is nan; give a finite number"),
        (SIZE, "1e999", "budget 'size' is 1000*; give a finite number"),
    ],
)  # fmt: skip
def test_a_limit_that_means_nothing_is_refused(asked: Any, limit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget.of(asked, limit)


def test_an_option_that_some_layer_may_not_take_is_no_budget() -> None:
    three = mp.options("w2a8", "w4a8", "w8a8")
    mask = np.array([[True, True, True], [True, True, False]])
    masked = Table(LAYERS, three, np.ones((2, 3)), "byte", "size", allowed=mask)
    with pytest.raises(ValueError, match="layer 'b' may not take 'w8a8'; name another option"):
        Budget.of(masked, "uniform:w8a8")


def test_integer_budgets_are_exact_and_real_ones_forgive_rounding() -> None:
    whole = Table(LAYERS, OPTIONS, np.full((2, 2), 2**53, dtype=np.int64), "byte", "size")
    assert Budget(whole, 2**54).within([0, 0])
    assert not Budget(whole, 2**54 - 1).within([0, 0])
    real = Table(LAYERS, OPTIONS, np.full((2, 2), 0.1), "ms", "latency")
    assert Budget(real, 0.2 * (1 - 0.9e-12)).within([0, 0])
    assert not Budget(real, 0.2 * (1 - 1.1e-12)).within([0, 0])


def test_constraints_hold_between_their_ends() -> None:
    terms = ((0, 1, 2), (1, 1, 3))
    held = {
        (least, most): [
            Constraint("c", terms, least, most).holds(c) for c in ((0, 0), (1, 0), (0, 1), (1, 1))
        ]
        for least, most in ((None, None), (2, None), (None, 3), (3, 3))
    }
    assert held[None, None] == [True] * 4
    assert held[2, None] == [False, True, True, True]
    assert held[None, 3] == [True, True, True, False]
    assert held[3, 3] == [False, False, True, False]
    tenths = Constraint("c", ((0, 1, 0.1), (1, 1, 0.2)), 0.3, 0.3)
    assert tenths.holds((1, 1))


def test_the_loss_adds_interactions_in_one_sum() -> None:
    problem = Problem(LOSS, interactions=(Interaction(0, 1, 1, 0, -0.3),))
    assert problem.total((1, 0)) == math.fsum([0.1, 0.2, -0.3])
    assert problem.total((0, 0)) == 0.5
    assert problem.span == pytest.approx(0.2 + 0.15 + 0.3)


def test_optimal_means_a_gap_of_a_billionth_of_the_span() -> None:
    problem = Problem(LOSS)
    assert problem.status(1.0, 1.0) is Status.OPTIMAL
    assert problem.status(1.0, 1.0 - 0.9 * OPTIMAL_GAP * problem.span) is Status.OPTIMAL
    assert problem.status(1.0, 1.0 - 1.1 * OPTIMAL_GAP * problem.span) is Status.FEASIBLE
    assert problem.status(1.0, -math.inf) is Status.FEASIBLE


def test_a_solution_says_its_gap() -> None:
    assert Solution((0,), 3.0, Status.FEASIBLE, 1.0).gap == 2
    assert infeasible("x").gap == 0
    assert infeasible("x") == Solution((), math.inf, Status.INFEASIBLE, math.inf, "x")


@given(problems(4, 3))
def test_merging_ties_keeps_losses_costs_and_conditions(problem: Problem) -> None:
    """Every choice of the merged problem says the same as the choice it stands for."""
    merged, groups = problem.merged()
    rows, columns = merged.loss.values.shape
    assert not merged.ties
    for choice in itertools.product(range(columns), repeat=rows):
        whole = expand(choice, groups)
        allowed = merged.loss.allowed[range(rows), list(choice)].all()
        assert allowed == problem.mask[range(len(whole)), list(whole)].all()
        if not allowed:
            continue
        assert merged.total(choice) == pytest.approx(problem.total(whole), rel=1e-12, abs=1e-18)
        for one, two in zip(merged.costs, problem.costs, strict=True):
            assert one.total(choice) == pytest.approx(two.total(whole), rel=1e-12, abs=1e-18)
        for new, old in zip(merged.constraints, problem.constraints, strict=True):
            assert new.holds(choice) == old.holds(whole)


def test_ties_reach_through_one_another() -> None:
    layers = tuple(mp.Layer(name) for name in "abcd")
    loss = Table(layers, OPTIONS, np.arange(8).reshape(4, 2), "nats")
    merged, groups = Problem(loss, ties=((3, 1), (1, 0))).merged()
    assert groups == (0, 0, 1, 0)
    assert merged.loss.values.tolist() == [[0 + 2 + 6, 1 + 3 + 7], [4, 5]]
    assert [layer.name for layer in merged.loss.layers] == ["a", "c"]
    assert expand((1, 0), groups) == (1, 1, 0, 1)


def test_merged_standard_errors_add_in_squares_and_maxima_stay_maxima() -> None:
    stderr = np.array([[3.0, 0.0], [4.0, 1.0]])
    loss = Table(LAYERS, OPTIONS, LOSS.values, "nats", stderr=stderr)
    peak = Table(LAYERS, OPTIONS, np.array([[-5, 1], [-7, 3]]), "byte", "peak", reduce="max")
    merged, _ = Problem(loss, costs=(peak,), ties=((0, 1),)).merged()
    assert merged.loss.stderr is not None
    assert merged.loss.stderr.tolist() == [[5, 1]]
    assert isinstance(merged.costs[0], Table)
    assert merged.costs[0].values.tolist() == [[-5, 3]]


def test_merging_integers_that_overflow_goes_on_in_real_numbers() -> None:
    huge = Table(LAYERS, OPTIONS, np.full((2, 2), 2**62, dtype=np.int64), "byte", "size")
    merged, _ = Problem(LOSS, costs=(huge,), ties=((0, 1),)).merged()
    assert merged.costs[0].total([0]) == 2.0**63


def masked(*rows: list[bool]) -> Table:
    return Table(LAYERS, OPTIONS, np.ones((2, 2)), "byte", "size", allowed=np.array(rows))


BAD: dict[str, dict[str, Any]] = {
    "two costs are named 'size'; give each its own name": {
        "costs": (SIZE, masked([True] * 2, [True] * 2))
    },
    "cost 'size' is of other layers or options than the loss": {
        "costs": (Table(LAYERS[::-1], OPTIONS, np.ones((2, 2)), "byte", "size"),)
    },
    "tables and ties leave no option to layer 'a', 'b'; allow it one": {
        "costs": (masked([True, False], [False, True]),),
        "ties": ((0, 1),),
    },
    "tables and ties leave no option to layer 'b'; allow it one": {
        "costs": (masked([True, True], [True, False]),),
        "loss": Table(
            LAYERS, OPTIONS, np.ones((2, 2)), "x", allowed=np.array([[True, True], [False, True]])
        ),
    },
    "a loss adds up over layers; its reduce is 'sum'": {
        "loss": Table(LAYERS, OPTIONS, np.ones((2, 2)), "nats", reduce="max")
    },
    "constraint 'c' names layer 2, option 0; there are 2 layers and 2 options": {
        "constraints": (Constraint("c", ((2, 0, 1),), 0, 1),)
    },
    "constraint 'c' has the number nan; give a finite one": {
        "constraints": (Constraint("c", ((0, 0, math.nan),), 0, 1),)
    },
    "an interaction names layer 1, option -1": {"interactions": (Interaction(0, 0, 1, -1, 1.0),)},
    "an interaction names layer 0 twice; a pair is of two": {
        "interactions": (Interaction(0, 0, 0, 1, 1.0),)
    },
    "an interaction has the number inf": {"interactions": (Interaction(0, 0, 1, 1, math.inf),)},
    "a pair of interacting options stands twice; give each pair once": {
        "interactions": (Interaction(0, 0, 1, 1, 1.0), Interaction(1, 1, 0, 0, 2.0))
    },
    "a tie names layer -1, option 0": {"ties": ((0, -1),)},
}


@pytest.mark.parametrize(("message", "changes"), BAD.items())
def test_a_bad_problem_is_refused(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        Problem(**dict[str, Any]({"loss": LOSS} | changes))


def test_a_budget_on_a_maximum_masks_options_and_no_other_does() -> None:
    layers, options = (mp.Layer("a"), mp.Layer("b")), mp.options("w4a8", "w8a8")
    values = np.array([[1, 3], [2, 4]])
    peak = Table(layers, options, values, "byte", "peak", fixed=1, reduce="max")
    assert Budget(peak, 4).mask.tolist() == [[True, True], [True, False]]
    real = Table(layers, options, values * 0.1, "byte", "peak", reduce="max")
    assert Budget(real, 0.3).mask.tolist() == [
        [True, True],
        [True, False],
    ]  # 0.3 is 3 x 0.1 - 1 ulp
    total = Budget(Table(layers, options, values, "byte", "size"), 4)
    assert not total.on_maximum
    with pytest.raises(ValueError, match="budget 'size' is on no maximum, so it masks no option"):
        _ = total.mask
