"""What engines say through PuLP, before anything is proven of it."""

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Problem, expand
from mpsearch.solvers import Exhaustive
from mpsearch.solvers.engine import asked
from mpsearch.solvers.lowering import lowered
from mpsearch.tables import Table
from tests.solvers.problems import problems

Engine = Literal["highs", "cbc"]


@pytest.mark.parametrize(("engine", "examples"), [("highs", 1000), ("cbc", 300)])
def test_claims_and_answers_are_right_within_tolerances(engine: Engine, examples: int) -> None:
    @settings(max_examples=examples)
    @given(problems(4, 3))
    def check(problem: Problem) -> None:
        found = lowered(problem)
        if found is None or found[0].settled:
            return
        program, groups = found
        best = Exhaustive().solve(problem)
        word = asked(program, engine, 10, np.zeros(len(program.rows)))
        assert word.says == ("optimal" if best.choice else "infeasible")
        if best.choice:
            assert word.picks is not None
            choice = expand(program.choice(word.picks), groups)
            loss, slack = problem.total(choice), 1e-9 * problem.span + math.ulp(best.loss)
            assert loss <= best.loss + slack

    check()


@pytest.mark.parametrize("engine", ["highs", "cbc"])
@pytest.mark.parametrize("size", [1, 10**6, 10**12])
def test_a_budget_of_integers_may_be_used_up_to_the_last_unit(engine: Engine, size: int) -> None:
    names, labels = (Layer("a"), Layer("b")), tuple(Option(label=x) for x in "xyz")
    loss = Table(names, labels, np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), "loss")
    cost = Table(names, labels, np.array([[0, 7, 11], [0, 6, 13]]) * size, "byte", "size")
    for limit, least in ((13, 4), (17, 3), (16, 4), (20, 3), (23, 3)):
        found = lowered(Problem(loss, (Budget(cost, limit * size),)))
        assert found is not None
        program, _ = found
        word = asked(program, engine, 10, np.zeros(len(program.rows)))
        assert word.picks is not None
        assert program.loss[word.picks].sum() == least
