"""Which solver ``auto`` takes, and what it says of it."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.choosing import MANY_LAYERS, Choice, choose, chosen
from mpsearch.problem import Budget, Constraint, Interaction, Problem
from mpsearch.solvers import Exhaustive
from mpsearch.tables import Stages, Table

OPTIONS = mp.options("w2a8", "w4a8", "w8a8")


def problem(layers: int = 4, sums: int = 1, *, reduce: Any = "sum", **more: Any) -> Problem:
    names = mp.numbered(layers)
    loss = Table(names, OPTIONS, np.tile([4.0, 1.0, 0.0], (layers, 1)), "nats")
    numbers = np.tile([2, 4, 8], (layers, 1))
    costs = [Table(names, OPTIONS, numbers, "byte", f"c{i}", reduce=reduce) for i in range(sums)]
    return Problem(loss, tuple(Budget(cost, 6 * layers) for cost in costs), **more)


def stages(of: Problem, count: int = 1) -> Problem:
    made = [
        Stages(of.loss.layers, OPTIONS, (((0, 2, 8),), ((1, 2, 8),)), "byte", f"s{i}")
        for i in range(count)
    ]
    return Problem(of.loss, (*of.budgets, *(Budget(cost, 8) for cost in made)))


def pairs(layers: int, *, among: int | None = None) -> tuple[Interaction, ...]:
    rows = range(layers if among is None else among)
    return tuple(Interaction(a, 0, b, 0, 0.1) for a, b in itertools.combinations(rows, 2))


RULE = (Constraint("at most two at 8 bits", tuple((row, 2, 1) for row in range(4)), most=2),)


@pytest.mark.parametrize(
    ("asked", "name", "why"),
    [
        (problem(), "exact", "1 sum budget over 4 layers: exact proves the least loss at any size"),
        (
            problem(sums=0),
            "exact",
            "no sum budget over 4 layers: exact proves the least loss at any size",
        ),
        (
            problem(sums=3, reduce="max"),
            "exact",
            "no sum budget over 4 layers: exact proves the least loss at any size",
        ),
        (
            problem(4, ties=((0, 1), (1, 2))),
            "exact",
            "1 sum budget over 2 layers: exact proves the least loss at any size",
        ),
        (
            problem(9_999, sums=2),
            "milp",
            "2 sum budgets over 9,999 layers: below 10,000 layers milp can close the gap",
        ),
        (
            problem(10_000, sums=2),
            "lagrange",
            "2 sum budgets over 10,000 layers: from 10,000 layers on lagrange's gap is small",
        ),
        (stages(problem()), "milp", "1 budget on stages: milp is the one that takes them"),
        (
            problem(constraints=RULE),
            "milp",
            "1 side constraint: milp is the one that takes them",
        ),
        (
            problem(6, interactions=pairs(6)),
            "milp",
            "15 interactions among layers of 729 combinations: milp lists them",
        ),
        (
            problem(7, interactions=pairs(7)),
            "quadratic",
            "21 interactions among layers of more than 1,000 combinations: quadratic searches, and bounds what it cannot list",
        ),
        (
            problem(2_000, interactions=pairs(2_000, among=7)),
            "milp",
            "21 interactions among 6,000 options: quadratic takes 4,096, milp any number",
        ),
        (
            problem(2, ties=((0, 1),), interactions=pairs(2)),
            "milp",
            "1 interaction among layers of 1 combination: milp lists them",
        ),
    ],
)
def test_the_shape_of_a_problem_chooses_and_says_why(asked: Problem, name: str, why: str) -> None:
    assert choose(asked) == Choice(name, why)


def test_stages_and_constraints_are_both_named() -> None:
    asked = stages(problem(), 2)
    both = Problem(asked.loss, asked.budgets, constraints=RULE)
    assert choose(both).why == (
        "2 budgets on stages and 1 side constraint: milp is the one that takes them"
    )


def test_ties_bring_many_layers_below_the_border() -> None:
    tied = problem(MANY_LAYERS, sums=2, ties=((0, 1),))
    assert choose(tied).name == "milp"


def test_layers_that_interact_count_their_allowed_options_only() -> None:
    asked = problem(7, interactions=pairs(7))
    allowed = np.ones((7, 3), bool)
    allowed[:, 2] = False
    masked = Problem(
        Table(asked.loss.layers, OPTIONS, asked.loss.values, "nats", allowed=allowed),
        asked.budgets,
        interactions=asked.interactions,
    )
    assert "128 combinations" in choose(masked).why


def test_a_thousand_layers_that_all_interact_overflow_nothing() -> None:
    ring = tuple(Interaction(i, 0, i + 1, 0, 0.1) for i in range(1_299))
    assert choose(problem(1_300, interactions=ring)).name == "quadratic"


def test_a_name_is_taken_at_its_word_and_a_solver_is_itself() -> None:
    by, choice = chosen("exhaustive", problem())
    assert (by, choice) == (Exhaustive(), Choice("exhaustive"))
    own = Exhaustive(limit=7)
    assert chosen(own, problem()) == (own, Choice("Exhaustive"))


def test_a_name_that_is_not_there_is_refused_not_replaced() -> None:
    with pytest.raises(LookupError, match="nothing in solvers is named 'magic'; there are: "):
        chosen("magic", problem())


def test_what_auto_names_is_made_by_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpsearch.choosing.make", lambda kind, name: (kind, name))
    by, choice = chosen("auto", problem())
    assert by == ("solvers", "exact")  # type: ignore[comparison-overlap]
    assert choice.why


def test_provenance_holds_who_answered_and_why() -> None:
    choice = Choice("milp", "two budgets")
    assert choice.provenance("milp (HiGHS)") == {"solver": "milp (HiGHS)", "why": "two budgets"}
    assert choice.provenance() == {"solver": "milp", "why": "two budgets"}
    assert Choice("milp").provenance() == {"solver": "milp"}


def test_choosing_loads_no_solver() -> None:
    code = (
        "import sys, mpsearch.choosing;"
        "assert not [m for m in sys.modules if m.startswith('mpsearch.solvers')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
