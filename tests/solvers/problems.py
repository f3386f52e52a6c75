"""Small problems of every kind for hypothesis: scales, ties, masks, several budgets, side rules."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Constraint, Interaction, Problem
from mpsearch.tables import Stages, Table


@st.composite
def numbers(draw: DrawFn, rows: int, columns: int, least: int) -> Any:
    """(rows, columns) small integers, or those times a scale of the table, or one of each layer."""
    whole = np.array(
        draw(
            st.lists(
                st.lists(st.integers(least, 9), min_size=columns, max_size=columns),
                min_size=rows,
                max_size=rows,
            )
        ),
        dtype=np.int64,
    )
    kind = draw(st.sampled_from(["whole", "large", "scaled", "mixed"]))
    if kind == "whole":
        return whole
    if kind == "large":
        return whole * 10**9 + whole**2
    exponents = st.integers(-12, 6)
    power = (
        draw(st.lists(exponents, min_size=rows, max_size=rows))
        if kind == "mixed"
        else [draw(exponents)] * rows
    )
    return whole / 7 * 10.0 ** np.array(power)[:, None] + draw(st.sampled_from([0.0, 0.1]))


@st.composite
def problems(draw: DrawFn, layers: int = 5, options: int = 4) -> Problem:
    """A problem with at most so many layers and options; some have no feasible choice."""
    rows, columns = draw(st.integers(1, layers)), draw(st.integers(1, options))
    names = tuple(Layer(f"l{i}") for i in range(rows))
    labels = tuple(Option(label=f"o{k}") for k in range(columns))
    row, column = st.integers(0, rows - 1), st.integers(0, columns - 1)
    mask = np.ones((rows, columns), bool)
    for _ in range(draw(st.integers(0, 2))):
        mask[draw(row), draw(column)] = False
    mask[:, 0] = True
    loss = Table(names, labels, draw(numbers(rows, columns, -3)), "loss", allowed=mask)
    choices = st.lists(column, min_size=rows, max_size=rows)
    terms = st.lists(st.tuples(row, column, st.integers(-2, 5)), max_size=8).map(tuple)

    def budget(number: int) -> Budget:
        kind = draw(st.sampled_from(["sum", "sum", "max", "stages"]))
        cost: Table | Stages
        if kind == "stages":
            stages = tuple(draw(st.lists(terms, min_size=1, max_size=3)))
            cost = Stages(names, labels, stages, "byte", f"c{number}", draw(st.integers(0, 2)))
        else:
            values = draw(numbers(rows, columns, -1))
            reduce: Any = kind
            cost = Table(names, labels, values, "byte", f"c{number}", reduce=reduce)
        shift = draw(st.sampled_from([0, 0, -1, 1, 0.5, 1e-13]))
        return Budget(cost, cost.total(draw(choices)) + shift)

    pairs: dict[Any, Interaction] = {}
    for _ in range(draw(st.integers(0, 3)) if rows > 1 else 0):
        (a, b), i, j = draw(st.permutations(range(rows)))[:2], draw(column), draw(column)
        size = draw(st.sampled_from([-1.0, 0.3, 1e-9]))
        pairs[frozenset({(a, i), (b, j)})] = Interaction(a, i, b, j, size)
    ends = st.none() | st.integers(-1, 6)
    return Problem(
        loss,
        tuple(budget(number) for number in range(draw(st.integers(0, 3)))),
        ties=tuple(draw(st.lists(st.tuples(row, row), max_size=2))),
        constraints=tuple(
            Constraint(f"r{i}", draw(terms), draw(ends), draw(ends))
            for i in range(draw(st.integers(0, 2)))
        ),
        interactions=tuple(pairs.values()),
    )
