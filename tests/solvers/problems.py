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
def numbers(draw: DrawFn, rows: int, columns: int, least: int, slope: int) -> Any:
    """(rows, columns) small integers, or those times a scale of the table, or one of each layer.

    With a slope they rise, or fall, from option to option, as bits make them do.
    """
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    whole = rng.integers(least, draw(st.sampled_from([9, 99, 1])), (rows, columns), endpoint=True)
    whole = slope * np.sort(slope * whole, axis=1) if slope else whole
    kind = draw(st.sampled_from(["whole", "large", "scaled", "mixed"]))
    if kind == "whole":
        return whole
    if kind == "large":
        return whole * 10**9 + whole**2
    exponents = rng.integers(-12, 7, (rows, 1) if kind == "mixed" else (1, 1))
    return whole / 7 * 10.0**exponents + draw(st.sampled_from([0.0, 0.1]))


@st.composite
def problems(draw: DrawFn, layers: int = 5, options: int = 4) -> Problem:
    """A problem with at most so many layers and options; some have no feasible choice."""
    rows = draw(st.sampled_from([layers, *range(1, layers), layers]))
    columns = draw(st.sampled_from([options, *range(1, options), options]))
    slope = draw(st.sampled_from([1, 0]))
    names = tuple(Layer(f"l{i}") for i in range(rows))
    labels = tuple(Option(label=f"o{k}") for k in range(columns))
    row, column = st.integers(0, rows - 1), st.integers(0, columns - 1)
    mask = np.ones((rows, columns), bool)
    for _ in range(draw(st.integers(0, 2))):
        mask[draw(row), draw(column)] = False
    mask[:, 0] = True
    choice = np.random.default_rng(draw(st.integers(0, 1 << 16))).integers(columns, size=rows)
    mask[np.arange(rows), choice] = True
    terms = st.lists(st.tuples(row, column, st.integers(-2, 5)), max_size=8).map(tuple)
    shares = st.sampled_from([0, 0, 0.1, 0.2, 0.4, 1e-13, -1e-13, -0.1])
    ends = st.sampled_from([None, 3, 1, 0, -1])

    def budget(number: int) -> Budget:
        kind = draw(st.sampled_from(["sum", "sum", "sum", "max", "stages"]))
        cost: Table | Stages
        if kind == "stages":
            stages = tuple(draw(st.lists(terms, min_size=1, max_size=3)))
            cost = Stages(names, labels, stages, "byte", f"c{number}", draw(st.integers(0, 2)))
        else:
            values = draw(numbers(rows, columns, -1, slope))
            reduce: Any = kind
            cost = Table(names, labels, values, "byte", f"c{number}", reduce=reduce)
        limit = cost.total(choice.tolist())
        more = draw(shares)
        return Budget(cost, limit + more * abs(limit) if more else limit)

    loss = Table(names, labels, draw(numbers(rows, columns, -3, -slope)), "loss", allowed=mask)
    few = st.sampled_from([0, 0, 0, 1, 2, 3])
    pairs: dict[Any, Interaction] = {}
    for _ in range(draw(few) if rows > 1 else 0):
        (a, b), i, j = draw(st.permutations(range(rows)))[:2], draw(column), draw(column)
        size = draw(st.sampled_from([-1.0, 0.3, 1e-9]))
        pairs[frozenset({(a, i), (b, j)})] = Interaction(a, i, b, j, size)

    def constraint(number: int) -> Constraint:
        given = draw(terms)
        total = sum(n for row, column, n in given if choice[row] == column)
        least, most = draw(ends), draw(ends)
        return Constraint(
            f"r{number}",
            given,
            None if least is None else total - least,
            None if most is None else total + most,
        )

    return Problem(
        loss,
        tuple(budget(number) for number in range(draw(st.sampled_from([1, 2, 3, 0])))),
        ties=tuple((draw(row), draw(row)) for _ in range(draw(few) // 2)),
        constraints=tuple(constraint(number) for number in range(draw(few))),
        interactions=tuple(pairs.values()),
    )
