"""Tied layers made one: their masks intersect, their numbers add up or take the maximum."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mpsearch.tables import Cost, Mask, Table


def groups_of(count: int, ties: Sequence[Sequence[int]]) -> Sequence[int]:
    """For each layer the number of its group of tied layers, in order of first appearance.

    Without ties it is ``range(count)``: no object a layer.
    """
    if not ties:
        return range(count)
    first = list(range(count))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    for tie in ties:
        for row in tie[1:]:
            a, b = sorted((root(tie[0]), root(row)))
            first[b] = a
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(root(row), len(numbers)) for row in range(count))


def merge(table: Table, groups: Sequence[int], mask: Mask) -> Table:
    """The table with each group one layer."""
    if isinstance(groups, range):
        return table if (mask == table.allowed).all() else replace(table, allowed=mask)
    index, shape = np.asarray(groups), (max(groups) + 1, len(table.options))
    allowed = np.ones(shape, bool)
    np.logical_and.at(allowed, index, mask)
    wide = np.abs(table.values.astype(np.float64)).max() * len(index) >= 2.0**63
    kind = np.float64 if wide else table.values.dtype
    values = np.zeros(shape, kind)
    if table.reduce == "sum":
        np.add.at(values, index, table.values)
    else:
        values = np.full(shape, table.values.min(), kind)
        np.maximum.at(values, index, table.values)
    stderr = None
    if table.stderr is not None:
        squares = np.zeros(shape)
        np.add.at(squares, index, table.stderr**2)
        stderr = np.sqrt(squares)
    layers = [table.layers[int(i)] for i in np.unique(index, return_index=True)[1]]
    return replace(table, layers=layers, values=values, stderr=stderr, allowed=allowed, notes={})


def merge_cost(cost: Cost, groups: Sequence[int], mask: Mask) -> Cost:
    """The cost with each group one layer."""
    if isinstance(groups, range) and not isinstance(cost, Table):
        return cost
    if isinstance(cost, Table):
        return merge(cost, groups, mask)
    layers = [cost.layers[groups.index(g)] for g in range(max(groups) + 1)]
    return replace(cost, layers=layers, stages=tuple(at(s, groups) for s in cost.stages))


def at(
    terms: tuple[tuple[int, int, float], ...], groups: Sequence[int]
) -> tuple[tuple[int, int, float], ...]:
    """Terms ``(layer, option, number)`` in the words of the groups."""
    return tuple((groups[row], column, value) for row, column, value in terms)
