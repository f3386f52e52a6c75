"""What solvers are given, and what they give back."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from mpsearch.limits import read_limit
from mpsearch.network import Layer, Numbered
from mpsearch.tables import LARGEST, Cost, Mask, Table
from mpsearch.ties import at, groups_of, merge, merge_cost

RELATIVE_TOLERANCE = 1e-12  # of a budget on real numbers; integers are compared exactly
OPTIMAL_GAP = 1e-9  # of the sum over layers of (largest - smallest loss)


class Status(Enum):
    """How a solve ended."""

    OPTIMAL = "proven optimal"
    FEASIBLE = "within every budget, optimality not proven"
    INFEASIBLE = "no choice is within every budget; loosen one or add a cheaper option"
    UNKNOWN = "nothing found within the limits set, and nothing proven; allow more time"


@dataclass(frozen=True, eq=False)
class Budget:
    """At most ``limit`` of a cost's total."""

    cost: Cost
    limit: float

    def __post_init__(self) -> None:
        """Refuse what is no limit."""
        if not abs(self.limit) <= LARGEST:
            raise ValueError(f"budget {self.cost.name!r} is {self.limit}; give a finite number")

    @classmethod
    def of(cls, cost: Cost, limit: "float | str") -> "Budget":
        """Read a limit: a number, ``6.7MB``, ``25%``, ``4.0bit`` or ``uniform:w4a8``.

        A percentage is of the unquantized network's cost; ``bit`` is the mean stored bits of the
        table's weights, scales counted; ``uniform:`` is what one option everywhere costs.
        """
        return cls(cost, read_limit(cost, limit) if isinstance(limit, str) else limit)

    @property
    def on_maximum(self) -> bool:
        """Whether it is on the largest of the chosen numbers: each option keeps it or not."""
        return isinstance(self.cost, Table) and self.cost.reduce == "max"

    @property
    def mask(self) -> Mask:
        """(L, K) which options keep a budget on a maximum; ``ValueError`` for any other."""
        cost = self.cost
        if not isinstance(cost, Table) or cost.reduce != "max":
            raise ValueError(f"budget {cost.name!r} is on no maximum, so it masks no option")
        if cost.exact:
            most = math.floor(self.limit) - int(cost.fixed)
            return np.asarray(cost.values <= min(max(most, -(2**63)), 2**63 - 1))
        slack = RELATIVE_TOLERANCE * abs(self.limit)
        return np.asarray(cost.values + cost.fixed <= self.limit + slack)

    def within(self, choice: Sequence[int]) -> bool:
        """Whether a choice keeps the budget: see :meth:`holds`."""
        return self.holds(self.cost.total(choice))

    def holds(self, total: float) -> bool:
        """Whether a total is within it: exactly for integers, to 1e-12 for real numbers."""
        if self.cost.exact:
            return total <= self.limit
        return total <= self.limit + RELATIVE_TOLERANCE * abs(self.limit)


@dataclass(frozen=True)
class Constraint:
    """``least <= sum of the terms' numbers <= most``; a term counts when its option is chosen.

    ``terms`` are ``(layer index, option index, number)``.
    """

    name: str
    terms: tuple[tuple[int, int, float], ...]
    least: float | None = None
    most: float | None = None

    def holds(self, choice: Sequence[int]) -> bool:
        """Whether a choice keeps it: exactly for integers, to 1e-12 of a bound otherwise."""
        numbers = [n for row, column, n in self.terms if choice[row] == column]
        exact = all(isinstance(n, int) for _, _, n in self.terms)
        total = sum(numbers) if exact else math.fsum(numbers)
        slack = 0 if exact else RELATIVE_TOLERANCE * max(abs(self.least or 0), abs(self.most or 0))
        return (self.least is None or total >= self.least - slack) and (
            self.most is None or total <= self.most + slack
        )


@dataclass(frozen=True)
class Interaction:
    """Loss added when two layers take these two options together."""

    first: int
    first_option: int
    second: int
    second_option: int
    loss: float


@dataclass(frozen=True, eq=False)
class Problem:
    """Pick one option per layer: least loss within every budget.

    Attributes:
        loss: The table to minimise.
        budgets: All hold together.
        costs: Every cost that is reported, budgeted or not.
        ties: Layer indices that must take the same option.
        constraints: Linear side conditions.
        interactions: Pairwise losses, each unordered pair of layers and options once.
    """

    loss: Table
    budgets: tuple[Budget, ...] = ()
    costs: tuple[Cost, ...] = ()
    ties: tuple[tuple[int, ...], ...] = ()
    constraints: tuple[Constraint, ...] = ()
    interactions: tuple[Interaction, ...] = ()

    def __post_init__(self) -> None:
        """Check that everything speaks of the loss's layers and options."""
        budgeted = tuple(b.cost for b in self.budgets if all(b.cost is not c for c in self.costs))
        object.__setattr__(self, "costs", (*budgeted, *self.costs))
        names = [cost.name for cost in self.costs]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"two costs are named {twice!r}; give each its own name")
        for cost in self.costs:
            if cost.options != self.loss.options or not _same(cost.layers, self.loss.layers):
                raise ValueError(
                    f"cost {cost.name!r} is of other layers or options than the loss;"
                    " write both for the same network and options"
                )
        if self.loss.reduce != "sum":
            raise ValueError("a loss adds up over layers; its reduce is 'sum'")
        self._check_indices()
        self._check_masks()

    def _check_indices(self) -> None:
        rows, columns = self.loss.values.shape
        terms = [(f"constraint {c.name!r}", term) for c in self.constraints for term in c.terms]
        seen: set[frozenset[tuple[int, int]]] = set()
        for i in self.interactions:
            seen.add(frozenset({(i.first, i.first_option), (i.second, i.second_option)}))
            terms.append(("an interaction", (i.first, i.first_option, i.loss)))
            terms.append(("an interaction", (i.second, i.second_option, i.loss)))
            if i.first == i.second:
                raise ValueError(f"an interaction names layer {i.first} twice; a pair is of two")
        if len(seen) < len(self.interactions):
            raise ValueError("a pair of interacting options stands twice; give each pair once")
        terms += [("a tie", (row, 0, 0)) for tie in self.ties for row in tie]
        for what, (row, column, number) in terms:
            if not (0 <= row < rows and 0 <= column < columns):
                raise ValueError(
                    f"{what} names layer {row}, option {column}; there are {rows} layers and"
                    f" {columns} options"
                )
            if not abs(number) <= LARGEST:
                raise ValueError(f"{what} has the number {number}; give a finite one")

    def _check_masks(self) -> None:
        """Layers that are tied, in however many steps, share an allowed option."""
        groups = np.asarray(groups_of(len(self.loss.layers), self.ties))
        allowed = self.mask
        if self.ties:
            allowed = np.ones((groups.max() + 1, len(self.loss.options)), bool)
            np.logical_and.at(allowed, groups, self.mask)
        for group in np.flatnonzero(~allowed.any(axis=1))[:1]:
            rows = np.flatnonzero(groups == group)
            tied = ", ".join(repr(self.loss.layers[int(row)].name) for row in rows)
            raise ValueError(f"tables and ties leave no option to layer {tied}; allow it one")

    @property
    def span(self) -> float:
        """Sum over layers of (largest - smallest loss), and of the sizes of interactions.

        The scale that gaps are measured on.
        """
        values, mask = self.loss.values.astype(np.float64), self.loss.allowed
        high, low = np.where(mask, values, -np.inf), np.where(mask, values, np.inf)
        pairs = [abs(pair.loss) for pair in self.interactions]
        widths = (high.max(axis=1) - low.min(axis=1)).data
        return math.fsum(itertools.chain(widths, pairs))

    def total(self, choice: Sequence[int]) -> float:
        """The loss of a choice, interactions included."""
        pairs = [
            i.loss
            for i in self.interactions
            if choice[i.first] == i.first_option and choice[i.second] == i.second_option
        ]
        chosen = np.ascontiguousarray(self.loss.chosen(choice)).data
        if self.loss.values.dtype == np.int64:  # beyond 2^53 a float would round each of them
            whole = sum(chosen)
            fine = whole & ((1 << 32) - 1)
            return math.fsum((whole - fine, fine, self.loss.fixed, *pairs))
        return math.fsum(itertools.chain(chosen, (self.loss.fixed, *pairs)))

    def feasible(self, choice: Sequence[int]) -> bool:
        """Whether a choice keeps masks, ties, budgets and constraints."""
        picked = np.asarray(choice)
        rows = np.arange(len(self.loss.layers))
        return (
            bool(self.loss.allowed[rows, picked].all())
            and all(
                bool(cost.allowed[rows, picked].all())
                for cost in self.costs
                if isinstance(cost, Table)
            )
            and all(len({choice[row] for row in tie}) == 1 for tie in self.ties)
            and all(budget.within(choice) for budget in self.budgets)
            and all(constraint.holds(choice) for constraint in self.constraints)
        )

    def status(self, loss: float, bound: float) -> Status:
        """``OPTIMAL`` when the gap is at most 1e-9 of :attr:`span`, else ``FEASIBLE``."""
        closed = loss - bound <= OPTIMAL_GAP * self.span
        return Status.OPTIMAL if closed else Status.FEASIBLE

    def merged(self) -> "tuple[Problem, Sequence[int]]":
        """The problem with ties made single layers, and for each layer its merged index.

        Masks of tied layers (and of costs) intersect, losses and costs add up (or take the
        maximum, where the cost does).
        """
        groups = groups_of(len(self.loss.layers), self.ties)
        made = {id(cost): merge_cost(cost, groups, self.mask) for cost in self.costs}
        pairs, inside = _merge_interactions(self.interactions, groups)
        merged = Problem(
            _with(merge(self.loss, groups, self.mask), inside),
            tuple(Budget(made[id(b.cost)], b.limit) for b in self.budgets),
            tuple(made[id(c)] for c in self.costs),
            (),
            tuple(replace(c, terms=at(c.terms, groups)) for c in self.constraints),
            pairs,
        )
        return merged, groups

    @property
    def mask(self) -> Mask:
        """(L, K) which options the loss and every cost allow."""
        mask = self.loss.allowed.copy()
        for cost in self.costs:
            if isinstance(cost, Table):
                mask &= cost.allowed
        return mask


def _same(ours: Sequence[Layer], theirs: Sequence[Layer]) -> bool:
    """Whether two tables speak of layers of the same names."""
    if ours is theirs or (isinstance(ours, Numbered) and isinstance(theirs, Numbered)):
        return len(ours) == len(theirs)
    return [layer.name for layer in ours] == [layer.name for layer in theirs]


def _merge_interactions(
    pairs: Sequence[Interaction], groups: Sequence[int]
) -> tuple[tuple[Interaction, ...], dict[tuple[int, int], float]]:
    """Interactions between groups, and what those inside a group add to its own options."""
    between: dict[tuple[tuple[int, int], tuple[int, int]], float] = {}
    inside: dict[tuple[int, int], float] = {}
    for pair in pairs:
        one = (groups[pair.first], pair.first_option)
        two = (groups[pair.second], pair.second_option)
        if one == two:
            inside[one] = inside.get(one, 0.0) + pair.loss
        elif one[0] != two[0]:
            key = (min(one, two), max(one, two))
            between[key] = between.get(key, 0.0) + pair.loss
    return tuple(Interaction(*a, *b, loss) for (a, b), loss in between.items()), inside


def _with(loss: Table, extra: Mapping[tuple[int, int], float]) -> Table:
    if not extra:
        return loss
    values = loss.values.astype(np.float64)
    for (row, column), more in extra.items():
        values[row, column] += more
    return replace(loss, values=values)


@dataclass(frozen=True)
class Solution:
    """A solver's answer.

    Attributes:
        choice: An option index per layer; empty when nothing was found.
        loss: The choice's loss; infinite when nothing was found.
        status: How it ended.
        bound: A proven lower bound on the loss of every feasible choice; infinite when there is
            none, minus infinity when nothing is proven.
        solver: Who answered, and on what engine.
    """

    choice: tuple[int, ...]
    loss: float
    status: Status
    bound: float
    solver: str = ""

    @property
    def gap(self) -> float:
        """How far the loss may be above the best: ``loss - bound``."""
        return 0.0 if self.loss == self.bound else self.loss - self.bound


def infeasible(solver: str) -> Solution:
    """The answer that there is no answer."""
    return Solution((), math.inf, Status.INFEASIBLE, math.inf, solver)


def expand(choice: Sequence[int], groups: Sequence[int]) -> tuple[int, ...]:
    """The choice per layer, from that of the merged problem (see :meth:`Problem.merged`)."""
    if isinstance(groups, range):
        return tuple(choice)
    return tuple(choice[group] for group in groups)
