"""Allocations that nest, as one problem: its options are chains of options, one for each budget.

A layer that takes a chain takes the chain's first option under the first budget, its second under
the second, and so on; the budgets of all of them hold together.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mpsearch.formats import Option
from mpsearch.problem import Budget, Constraint, Problem
from mpsearch.tables import Cost, Stages, Table

Integers = NDArray[np.int64]
Terms = tuple[tuple[int, int, float], ...]
ULP = 2.0**-52
LARGE = (4096, 4096)  # a weight on which the stored bits of formats are compared


def ranks(options: Sequence[Option], order: Sequence[Option | str] | None = None) -> Integers:
    """(K,) the place of each option in ``order``, else by its bits, and then equal where they are.

    ``ValueError`` where an option's bits are not known, or the order is of other options.
    """
    if order is None:
        bits = [_bits(option) for option in options]
        places = {each: place for place, each in enumerate(sorted(set(bits)))}
        return np.array([places[each] for each in bits])
    wanted = [o if isinstance(o, Option) else Option.read(o) for o in order]
    if len(wanted) != len(options) or set(wanted) != set(options):
        raise ValueError(
            f"order names {', '.join(map(str, wanted))}; name each option once, fewest bits first:"
            f" {', '.join(map(str, options))}"
        )
    return np.array([wanted.index(option) for option in options])


def _bits(option: Option) -> tuple[Fraction, ...]:
    """Stored bits of a weight, then bits of an activation (or of k, then of v)."""
    if not option.formats:
        raise ValueError(
            f"the bits of option {str(option)!r} are not known; give order=, fewest bits first"
        )
    return tuple(
        each.bits_per_weight(LARGE) if role == "weight" else Fraction(each.bits)
        for role, each in option.formats.items()
    )


def chains_of(rank: Integers, length: int, most: int) -> Integers:
    """(P, T) every sequence of T options whose ranks never fall; ``ValueError`` above ``most``."""
    chains: Integers = np.arange(len(rank))[:, None]
    for _ in range(length - 1):
        first, then = np.nonzero(rank[chains[:, -1:]] <= rank)
        chains = np.hstack([chains[first], then[:, None]])
        if len(chains) > most:
            raise ValueError(
                f"{len(rank)} options under {length} budgets make more than most={most} chains for"
                " a layer; give fewer budgets or options, or raise most"
            )
    return chains


def lifted(held: Sequence[Problem], chains: Integers, weights: Sequence[float]) -> Problem:
    """The problems of all budgets in one, whose options are chains.

    The loss of a chain is the weighted sum of its options' losses; see :func:`rounding`.
    """
    table, mask = held[0].loss, held[0].mask
    options = tuple(
        Option(label=" > ".join(str(table.options[k]) for k in chain)) for chain in chains.tolist()
    )
    large = float(np.abs(table.values.astype(np.float64)).max()) * sum(weights) >= 2.0**62
    values = table.values.astype(np.float64) if large else table.values
    loss = sum(w * values[:, column] for w, column in zip(weights, chains.T, strict=True))
    allowed = np.ones((len(table.layers), len(chains)), bool)
    for column in chains.T:
        allowed &= mask[:, column]
    fixed = sum(weights) * table.fixed
    made = Table(table.layers, options, np.asarray(loss), table.unit, allowed=allowed, fixed=fixed)
    budgets: list[Budget] = []
    rules: list[Constraint] = []
    for place, (each, column) in enumerate(zip(held, chains.T, strict=True), start=1):
        costs = {id(b.cost): _cost(b.cost, options, column, place) for b in each.budgets}
        budgets += [Budget(costs[id(b.cost)], b.limit) for b in each.budgets]
        rules += [replace(c, terms=_terms(c.terms, column)) for c in each.constraints]
    named = {budget.cost.name: budget.cost for budget in budgets}
    return Problem(made, tuple(budgets), tuple(named.values()), held[0].ties, tuple(rules))


def _cost(cost: Cost, options: tuple[Option, ...], column: Integers, place: int) -> Cost:
    """What a cost is under one budget: an option of it for each chain."""
    name = f"{cost.name} of allocation {place}"
    if isinstance(cost, Stages):
        stages = tuple(_terms(stage, column) for stage in cost.stages)
        return replace(cost, options=options, stages=stages, name=name)
    return replace(
        cost,
        options=options,
        values=cost.values[:, column],
        allowed=cost.allowed[:, column],
        stderr=None,
        name=name,
    )


def _terms(terms: Terms, column: Integers) -> Terms:
    """Terms ``(layer, option, number)`` for every chain that takes the option."""
    places = {k: np.flatnonzero(column == k).tolist() for k in {k for _, k, _ in terms}}
    return tuple((row, place, number) for row, k, number in terms for place in places[k])


def rounding(held: Sequence[Problem], weights: Sequence[float]) -> float:
    """How far weighted sums of losses, rounded as they are added, may be from the true ones."""
    table = held[0].loss
    size = float(np.abs(table.values.astype(np.float64)).max(axis=1).sum()) + abs(table.fixed)
    size *= sum(weights)
    whole = table.exact and all(isinstance(weight, int) for weight in weights)
    return 0.0 if whole and size < 1 / ULP else 2 * ULP * (len(weights) + 2) * size
