"""Why a problem has no answer: against brute force, and in words."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from mpsearch.conflict import why
from mpsearch.formats import Option
from mpsearch.network import Layer, numbered
from mpsearch.problem import Budget, Constraint, Problem
from mpsearch.refutation import refuted
from mpsearch.tables import Stages, Table
from tests.references.enumeration import best
from tests.solvers.problems import problems

NAMES = (Layer("a"), Layer("b"), Layer("c"))
OPTIONS = tuple(Option(label=x) for x in "xyz")
SIZE = Table(NAMES, OPTIONS, np.array([[1, 2, 4]] * 3), "byte", "size")
LATENCY = Table(NAMES, OPTIONS, np.array([[9, 5, 1]] * 3), "ms", "latency")
LOSS = Table(NAMES, OPTIONS, np.zeros((3, 3)), "loss")


def feasible(problem: Problem) -> bool:
    return bool(best(problem)[0])


def asked(size: float, latency: float, **more: Any) -> Problem:
    return Problem(LOSS, (Budget(SIZE, size), Budget(LATENCY, latency)), **more)


@settings(max_examples=150)
@given(problems(4, 3))
def test_the_least_conflicting_set_is_that_of_brute_force(problem: Problem) -> None:
    problem = replace(problem, interactions=())
    if feasible(problem):
        assert not refuted(*_merged(problem))
        return
    found = why(problem, feasible)
    names = [b.cost.name for b in problem.budgets]
    assert found.proven
    assert not feasible(_with(problem, found.conflict))
    for size in range(len(found.conflict)):
        for fewer in itertools.combinations(names, size):
            assert feasible(_with(problem, fewer))
    assert set(why(problem).conflict) <= set(names)
    json.dumps(found.document(), allow_nan=False)
    assert "no allocation is within every budget" in found.message()


def _merged(problem: Problem) -> tuple[Problem, tuple[Budget, ...]]:
    merged, _ = problem.merged()
    return merged, merged.budgets


def _with(problem: Problem, names: Any) -> Problem:
    return replace(problem, budgets=tuple(b for b in problem.budgets if b.cost.name in names))


@settings(max_examples=150)
@given(problems(4, 3))
def test_the_least_of_each_budget_and_what_would_do_are_right(problem: Problem) -> None:
    problem = replace(problem, interactions=(), constraints=())
    if feasible(problem):
        return
    found = why(problem, feasible)
    every = itertools.product(range(problem.loss.values.shape[1]), repeat=len(problem.loss.layers))
    open_ = replace(problem, budgets=())
    totals = [
        [b.cost.total(choice) for b in problem.budgets]
        for choice in every
        if open_.feasible(choice)
    ]
    for place, budget in enumerate(problem.budgets):
        least = min(total[place] for total in totals)
        given = found.least[budget.cost.name]
        if isinstance(budget.cost, Table) and not _maxima(problem):
            assert given == pytest.approx(least, rel=1e-12, abs=1e-300)
        assert given >= least or isinstance(budget.cost, Stages) or given == pytest.approx(least)
    if found.enough is not None:
        held = [Budget(b.cost, found.raised[b.cost.name]) for b in problem.budgets]
        assert feasible(replace(problem, budgets=tuple(held)))
        assert found.enough > found.percent


def _maxima(problem: Problem) -> bool:
    return any(isinstance(b.cost, Table) and b.cost.reduce == "max" for b in problem.budgets)


def test_one_budget_below_its_least_conflicts_by_itself() -> None:
    found = why(asked(2, 100))
    assert (found.conflict, found.proven) == (("size",), True)
    assert dict(found.least) == {"size": 3, "latency": 3}
    assert "size: 2 asked, 3 is the least achievable (byte)" in found.message()
    assert found.percent == pytest.approx(50, rel=1e-3)
    assert found.held == ()


def test_an_exact_limit_a_byte_below_the_least_is_told() -> None:
    large = replace(SIZE, values=SIZE.values * 10**14)
    found = why(Problem(LOSS, (Budget(large, 3 * 10**14 - 1),)))
    assert found.conflict == ("size",)
    assert found.proven


def test_budgets_that_hold_alone_conflict_together() -> None:
    other = replace(SIZE, name="other")
    problem = asked(5, 12)
    problem = replace(problem, budgets=(Budget(other, 100), *problem.budgets), costs=())
    found = why(problem, feasible)
    assert (found.conflict, found.proven) == (("size", "latency"), True)
    assert found.message() == (
        "no allocation is within every budget: each budget is achievable alone, but not all"
        f" conditions together: size, latency conflict; every budget raised by {found.enough:.4g} %"
        f" will do (other={found.raised['other']}, size={found.raised['size']},"
        f" latency={found.raised['latency']}); or loosen one further, or add cheaper options"
    )
    assert found.enough is not None
    assert 0 < found.percent < found.enough < 110
    assert "raise every budget by" in why(problem).message()


def test_what_only_whole_choices_cannot_keep_takes_the_solver() -> None:
    """Half of x and half of z would do."""
    tight = Problem(
        replace(LOSS, options=OPTIONS[::2], values=np.zeros((3, 2)), allowed=np.ones((3, 2), bool)),
        tuple(
            Budget(Table(NAMES, OPTIONS[::2], np.array([v] * 3), "u", n), 7)
            for n, v in (("one", [1, 4]), ("two", [4, 1]))
        ),
    )
    assert not feasible(replace(tight, budgets=tuple(Budget(b.cost, 7) for b in tight.budgets)))
    found = why(tight)
    assert (found.conflict, found.proven) == (("one", "two"), False) or found.proven
    told = why(tight, feasible)
    assert (told.conflict, told.proven) == (("one", "two"), True)


def test_layers_that_hold_the_least_up_are_named_largest_first() -> None:
    mask = np.array([[True] * 3, [False, True, True], [False, False, True]])
    forced = replace(asked(5, 100), loss=replace(LOSS, allowed=mask))
    found = why(forced)
    assert [(h.layers, h.option, h.excess) for h in found.held] == [
        (("c",), "z", 3),
        (("b",), "y", 1),
    ]
    assert (
        "held up by c (3 byte above the cheapest, at z), b (1 byte above the cheapest, at y)"
        in found.message()
    )


def test_ties_hold_the_least_up_too() -> None:
    values = np.array([[1, 9, 9], [9, 9, 1], [1, 1, 1]])
    problem = Problem(LOSS, (Budget(replace(SIZE, values=values), 4),), ties=((0, 1),))
    (held,) = why(problem).held
    assert (held.layers, held.excess) == (("a", "b"), 8)
    assert "a = b (8 byte above" in why(problem).message()


def test_a_maximum_masks_what_another_budget_needs() -> None:
    peak = replace(LATENCY, name="peak", reduce="max")
    problem = Problem(LOSS, (Budget(SIZE, 5), Budget(peak, 4)))
    found = why(problem, feasible)
    assert found.conflict == ("size", "peak")
    assert found.least["size"] == 12
    assert {h.budget for h in found.held} == {"size"}


def test_side_conditions_that_cannot_hold_need_no_budget() -> None:
    terms = tuple((row, 0, 1) for row in range(3))
    problem = asked(100, 100, constraints=(Constraint("four of three", terms, 4),))
    found = why(problem)
    assert found.conflict == ()
    assert found.percent == math.inf
    assert found.document()["percent"] is None
    assert found.message() == (
        "no allocation is within every budget: the side conditions cannot hold together, whatever"
        " the budgets; loosen a side condition or add cheaper options"
    )


def test_a_budget_may_conflict_with_side_conditions_alone() -> None:
    terms = tuple((row, 2, 1) for row in range(3))
    problem = asked(5, 100, constraints=(Constraint("two dear ones", terms, 2),))
    found = why(problem, feasible)
    assert (found.conflict, found.proven) == (("size",), True)
    assert "size cannot be kept together with the side conditions" in found.message()


def test_stages_are_priced_stage_by_stage() -> None:
    both = Stages(NAMES, OPTIONS, (((0, 0, 2), (0, 1, 3), (0, 2, 9)), ((1, 0, 4),)), "byte", "peak")
    found = why(Problem(LOSS, (Budget(both, 1),)))
    assert found.conflict == ("peak",)
    assert found.least["peak"] == 2


def test_the_document_holds_plain_values() -> None:
    document = why(asked(5, 12), feasible).document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(document) == {
        "limits", "units", "least", "conflict", "proven", "held", "percent", "enough", "raised",
    }  # fmt: skip


def test_many_layers_and_three_budgets_are_told_quickly() -> None:
    rng = np.random.default_rng(0)
    layers = numbered(20_000)
    options = tuple(Option(label=f"o{k}") for k in range(6))
    costs = [
        Table(layers, options, rng.integers(1, 100, (20_000, 6)), "byte", f"c{i}") for i in range(3)
    ]
    limits = [int(cost.least() * 1.5) for cost in costs]
    held = tuple(Budget(c, limit) for c, limit in zip(costs, limits, strict=True))
    found = why(Problem(replace(costs[0], name="loss", unit="loss"), held))
    assert found.conflict == ("c0", "c1")
    assert found.proven
