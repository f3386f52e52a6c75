"""Exhaustive against the plainest enumeration there is."""

import numpy as np
import pytest
from hypothesis import given

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Problem, Status
from mpsearch.solvers import Exhaustive
from mpsearch.tables import Table
from tests.references.enumeration import best
from tests.solvers.problems import problems


@given(problems())
def test_is_the_plain_enumeration(problem: Problem) -> None:
    choice, loss = best(problem)
    solution = Exhaustive().solve(problem)
    assert (solution.choice, solution.loss) == (choice, loss)
    assert solution.status is (Status.OPTIMAL if choice else Status.INFEASIBLE)
    assert solution.bound == solution.loss


def test_refuses_more_choices_than_its_limit_and_says_how_many() -> None:
    layers = tuple(Layer(f"l{i}") for i in range(40))
    table = Table(layers, tuple(Option(label=x) for x in "abc"), np.zeros((40, 3)), "loss")
    with pytest.raises(ValueError, match=f"{3**40} choices are more than limit=1000000; use Milp"):
        Exhaustive().solve(Problem(table))


def test_of_equal_losses_takes_the_cheapest_then_the_first() -> None:
    layers, options = (Layer("a"), Layer("b")), tuple(Option(label=x) for x in "xyz")
    loss = Table(layers, options, np.ones((2, 3)), "loss")
    size = Table(layers, options, np.array([[3, 2, 2], [5, 5, 5]]), "byte", "size")
    assert Exhaustive().solve(Problem(loss)).choice == (0, 0)
    assert Exhaustive().solve(Problem(loss, costs=(size,))).choice == (1, 0)


def test_sums_to_the_last_bit() -> None:
    """0.1 ten times is 1 when added exactly, and no more than a budget of 1."""
    layers, options = tuple(Layer(f"l{i}") for i in range(10)), tuple(Option(label=x) for x in "xy")
    loss = Table(layers, options, np.tile([1.0, 0.1], (10, 1)), "loss")
    size = Table(layers, options, np.tile([0.05, 0.1], (10, 1)), "byte", "size")
    solution = Exhaustive().solve(Problem(loss, (Budget(size, 1.0),)))
    assert solution.choice == (1,) * 10
    assert solution.loss == 1.0
