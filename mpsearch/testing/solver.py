"""Laws of solvers: answers keep every condition, bounds hold, and optimal means optimal."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mpsearch.formats import options
from mpsearch.network import Layer
from mpsearch.problem import OPTIMAL_GAP, Budget, Constraint, Interaction, Problem, Status
from mpsearch.protocols import Solver
from mpsearch.tables import Cost, Stages, Table

Feature = Literal["budgets", "masks", "ties", "max", "stages", "constraints", "interactions"]
FEATURES: frozenset[Feature] = frozenset(
    ("budgets", "masks", "ties", "max", "stages", "constraints", "interactions")
)
_SCALES = (1e-12, 1e-6, 1.0, 1e6)
_LAYERS = tuple(Layer(f"l{i}", 10, 10) for i in range(4))
_OPTIONS = options("int2/int8", "int4/int8", "int8/int8")


def problem(seed: int, feature: Feature | None = None, *, scale: float = 1.0) -> Problem:
    """A problem of four layers and three options, some of them infeasible.

    Every third has real costs; losses are of the given scale, and every fourth has negative ones.
    """
    rng = np.random.default_rng(seed)
    shape = (len(_LAYERS), len(_OPTIONS))
    loss = rng.exponential(scale, shape) - (scale if seed % 4 == 3 else 0.0)
    mask = rng.random(shape) < 0.7 if feature == "masks" else np.ones(shape, bool)
    mask[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    table = Table(_LAYERS, _OPTIONS, loss, "loss", allowed=mask)
    cost = _cost(rng, "size", real=seed % 3 == 2)
    bare = Problem(table, (Budget(cost, _between(cost, rng.uniform(-0.05, 0.9))),))
    return _FEATURED[feature](rng, bare) if feature in _FEATURED else bare


def _cost(
    rng: np.random.Generator, name: str, reduce: Literal["sum", "max"] = "sum", *, real: bool
) -> Table:
    shape = (len(_LAYERS), len(_OPTIONS))
    values = rng.uniform(1, 9, shape) if real else rng.integers(1, 9, shape)
    return Table(_LAYERS, _OPTIONS, values, "byte", name, fixed=int(rng.integers(3)), reduce=reduce)


def _between(cost: Table, share: float) -> float:
    """A limit between the cheapest and the dearest total."""
    low, high = (cost.total(f(cost.values, axis=1)) for f in (np.argmin, np.argmax))
    limit = low + share * (high - low)
    return math.floor(limit) if cost.exact else limit


def _budgeted(bare: Problem, cost: Cost, limit: float) -> Problem:
    return replace(bare, budgets=(*bare.budgets, Budget(cost, limit)))


def _more_budgets(rng: np.random.Generator, bare: Problem) -> Problem:
    other = _cost(rng, "latency", real=True)
    return _budgeted(bare, other, _between(other, rng.uniform(0.1, 0.9)))


def _with_max(rng: np.random.Generator, bare: Problem) -> Problem:
    peak = _cost(rng, "peak", "max", real=bool(rng.integers(2)))
    return _budgeted(bare, peak, float(rng.integers(4, 10)))


def _with_stages(rng: np.random.Generator, bare: Problem) -> Problem:
    rows, columns = len(_LAYERS), len(_OPTIONS)
    stages = tuple(
        tuple(
            (r, c, int(rng.integers(1, 9)))
            for r in rng.permutation(rows)[:2]
            for c in range(columns)
        )
        for _ in range(3)
    )
    return _budgeted(
        bare, Stages(_LAYERS, _OPTIONS, stages, "byte", "sram"), int(rng.integers(4, 16))
    )


def _with_ties(rng: np.random.Generator, bare: Problem) -> Problem:
    return replace(bare, ties=(tuple(int(i) for i in rng.permutation(len(_LAYERS))[:2]),))


def _with_constraints(rng: np.random.Generator, bare: Problem) -> Problem:
    last = tuple((row, len(_OPTIONS) - 1, 1) for row in range(len(_LAYERS)))
    least = int(rng.integers(3))
    return replace(bare, constraints=(Constraint("dear", last, least, least + 1),))


def _with_interactions(rng: np.random.Generator, bare: Problem) -> Problem:
    scale = float(np.ptp(bare.loss.values))
    pairs = [
        (a, b) for a, b in itertools.combinations(range(len(_LAYERS)), 2) if rng.random() < 0.5
    ]
    return replace(
        bare,
        interactions=tuple(
            Interaction(a, int(rng.integers(3)), b, int(rng.integers(3)), scale * rng.normal())
            for a, b in pairs
        ),
    )


_FEATURED: dict[Feature | None, Callable[[np.random.Generator, Problem], Problem]] = {
    "budgets": _more_budgets,
    "max": _with_max,
    "stages": _with_stages,
    "ties": _with_ties,
    "constraints": _with_constraints,
    "interactions": _with_interactions,
}


def least_loss(problem: Problem) -> float:
    """The least loss of any feasible choice, by trying every one; infinite if there is none."""
    rows, columns = problem.loss.values.shape
    every = itertools.product(range(columns), repeat=rows)
    return min((problem.total(c) for c in every if problem.feasible(c)), default=math.inf)


class SolverSuite:
    """What any solver does.

    Attributes:
        solver: The solver.
        supports: What it takes; it refuses the rest with ``ValueError`` or
            ``NotImplementedError``.
        proves: Whether it solves problems of four layers to proven optimality.
    """

    solver: Solver
    supports: frozenset[Feature] = FEATURES
    proves: bool = True

    def problems(self) -> Iterator[Problem]:
        """Problems of every supported feature and of many scales."""
        for seed in range(24):
            yield problem(seed, scale=_SCALES[seed % len(_SCALES)])
        for feature in sorted(self.supports):
            for seed in range(8):
                yield problem(seed, feature, scale=_SCALES[seed % len(_SCALES)])

    def test_answers_keep_every_condition_and_say_their_loss(self) -> None:
        for asked in self.problems():
            solution = self.solver.solve(asked)
            if solution.choice:
                assert solution.status in (Status.OPTIMAL, Status.FEASIBLE)
                assert len(solution.choice) == len(asked.loss.layers)
                assert asked.feasible(solution.choice), f"{solution.choice} breaks a condition"
                assert solution.loss == asked.total(solution.choice)
            else:
                assert solution.status in (Status.INFEASIBLE, Status.UNKNOWN)
                assert solution.loss == math.inf

    def test_no_choice_has_less_loss_than_the_bound(self) -> None:
        for asked in self.problems():
            assert self.solver.solve(asked).bound <= least_loss(asked)

    def test_optimal_means_optimal(self) -> None:
        for asked in self.problems():
            solution = self.solver.solve(asked)
            if solution.status is Status.OPTIMAL:
                assert solution.loss - least_loss(asked) <= OPTIMAL_GAP * asked.span
                assert solution.gap <= OPTIMAL_GAP * asked.span

    def test_proves_what_is_small(self) -> None:
        if not self.proves:
            return  # this solver proves nothing
        for asked in self.problems():
            wanted = Status.OPTIMAL if least_loss(asked) < math.inf else Status.INFEASIBLE
            assert self.solver.solve(asked).status is wanted

    def test_says_infeasible_only_where_nothing_is_feasible(self) -> None:
        cases = list(self.problems())
        for asked in cases:
            if self.solver.solve(asked).status is Status.INFEASIBLE:
                assert least_loss(asked) == math.inf
        bare = problem(0)
        cost = bare.budgets[0].cost
        below = replace(bare, budgets=(Budget(cost, cost.least() - 1),))
        assert self.solver.solve(below).status in (Status.INFEASIBLE, Status.UNKNOWN)

    def test_refuses_what_it_does_not_support(self) -> None:
        for feature in sorted(FEATURES - self.supports):
            asked = problem(0, feature)
            try:
                self.solver.solve(asked)
            except (ValueError, NotImplementedError):
                continue
            raise AssertionError(f"it took a problem with {feature} and does not support them")

    def test_without_a_budget_each_layer_takes_its_best(self) -> None:
        asked = replace(problem(1), budgets=(), costs=())
        best = np.where(asked.loss.allowed, asked.loss.values, np.inf).argmin(axis=1)
        assert self.solver.solve(asked).choice == tuple(best)

    def test_a_budget_that_a_choice_costs_exactly_is_kept(self) -> None:
        for seed in range(12):
            bare = problem(seed)
            cost = bare.budgets[0].cost
            choice = tuple(int(i) for i in np.random.default_rng(seed).integers(3, size=4))
            asked = replace(bare, budgets=(Budget(cost, cost.total(choice)),))
            solution = self.solver.solve(asked)
            assert solution.choice
            assert asked.feasible(solution.choice)
            assert solution.bound <= asked.total(choice)
            if self.proves:
                assert solution.loss <= asked.total(choice)

    def test_a_dominated_option_changes_nothing(self) -> None:
        for seed in range(8):
            bare = problem(seed)
            wider = _widened(bare)
            one, two = self.solver.solve(bare), self.solver.solve(wider)
            assert one.choice == two.choice
            assert one.status is two.status

    def test_permuting_layers_permutes_the_answer(self) -> None:
        for seed in range(8):
            bare = problem(seed)
            order = np.random.default_rng(seed).permutation(len(_LAYERS)).tolist()
            one, two = self.solver.solve(bare), self.solver.solve(_permuted(bare, order))
            assert tuple(one.choice[i] for i in order if one.choice) == two.choice

    def test_scaling_the_loss_by_a_power_of_two_scales_the_answer(self) -> None:
        for seed in range(8):
            bare = problem(seed)
            scaled = replace(bare, loss=replace(bare.loss, values=bare.loss.values * 2.0**-40))
            assert self.solver.solve(bare).choice == self.solver.solve(scaled).choice

    def test_same_problem_same_answer(self) -> None:
        for seed in range(8):
            assert self.solver.solve(problem(seed)) == self.solver.solve(problem(seed))

    def test_takes_one_layer_and_one_option(self) -> None:
        table = Table(_LAYERS[:1], _OPTIONS[:1], np.array([[0.5]]), "loss")
        solution = self.solver.solve(Problem(table))
        assert (solution.choice, solution.loss) == ((0,), 0.5)


def _widened(bare: Problem) -> Problem:
    """With one more option that loses more and costs more than the last."""
    more = (*_OPTIONS, *options("int8g64/int8"))

    def wider(table: Table, by: float) -> Table:
        last = table.values[:, -1:] + (by if table.values.dtype == np.float64 else 1)
        return replace(
            table,
            options=more,
            values=np.hstack([table.values, last]),
            allowed=np.hstack([table.allowed, table.allowed[:, -1:]]),
        )

    budgets = tuple(
        Budget(wider(b.cost, 1.0), b.limit) for b in bare.budgets if isinstance(b.cost, Table)
    )
    return Problem(wider(bare.loss, float(np.ptp(bare.loss.values))), budgets)


def _permuted(bare: Problem, order: Sequence[int]) -> Problem:
    def turn(table: Table) -> Table:
        layers = [table.layers[i] for i in order]
        return replace(
            table, layers=layers, values=table.values[order], allowed=table.allowed[order]
        )

    budgets = tuple(
        Budget(turn(b.cost), b.limit) for b in bare.budgets if isinstance(b.cost, Table)
    )
    return Problem(turn(bare.loss), budgets)
