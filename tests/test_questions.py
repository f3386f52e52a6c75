"""Least cost, nested chains and next best answers, beside every choice tried."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

import mpsearch as mp
from mpsearch.problem import Budget, Constraint, Interaction, Problem, Solution, Status
from mpsearch.protocols import Solver
from mpsearch.questions import nested, tolerance, top_k
from mpsearch.solvers import Exhaustive, Milp
from mpsearch.tables import Stages, Table

OPTIONS = mp.options("w2a8", "w4a8", "w8a8")
SOLVERS: list[Solver] = [Exhaustive(), Milp()]
solvers = st.sampled_from(SOLVERS)


@st.composite
def problems(draw: DrawFn, layers: int = 4) -> Problem:
    """A loss and a size; often a budget on a second cost, a mask, a tie and a side constraint."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    shape = (layers, len(OPTIONS))
    names = tuple(mp.Layer(f"l{i}") for i in range(layers))
    loss: Any = rng.integers(-2, 9, shape) if draw(st.booleans()) else rng.normal(size=shape)
    scale = draw(st.sampled_from([1, 1, 1e-9]))
    mask = np.ones(shape, bool)
    if draw(st.booleans()):
        mask[rng.integers(layers), rng.integers(len(OPTIONS))] = False
    size: Any = rng.integers(1, 9, shape) if draw(st.booleans()) else rng.uniform(1, 9, shape)
    table = Table(names, OPTIONS, loss if scale == 1 else loss * scale, "nats", allowed=mask)
    costs = [Table(names, OPTIONS, size, "byte", "size", fixed=int(rng.integers(3)))]
    budgets, rules = [], []
    kind: Any = draw(st.sampled_from([None, "sum", "max", "stages"]))
    if kind == "stages":
        stages = tuple(
            tuple((row, k, int(rng.integers(1, 9))) for row in range(i, i + 2) for k in range(3))
            for i in range(layers - 1)
        )
        budgets.append(Budget(Stages(names, OPTIONS, stages, "byte", "sram"), 9))
    elif kind:
        other = Table(names, OPTIONS, rng.integers(1, 9, shape), "ms", "time", reduce=kind)
        budgets.append(Budget(other, 5 * layers if kind == "sum" else 7))
    if draw(st.booleans()):
        terms = tuple((row, 1, 1) for row in range(layers))
        rules.append(Constraint("one at 4 bits", terms, least=1))
    ties = ((0, layers - 1),) if draw(st.booleans()) else ()
    return Problem(table, tuple(budgets), tuple(costs), ties, tuple(rules))


def every(problem: Problem) -> Iterator[tuple[int, ...]]:
    rows, columns = problem.loss.values.shape
    return (c for c in itertools.product(range(columns), repeat=rows) if problem.feasible(c))


def picked(problem: Problem, answer: mp.Allocation) -> tuple[int, ...]:
    return tuple(problem.loss.options.index(option) for option in answer.values())


def near(number: float) -> Any:
    return pytest.approx(number, rel=1e-9, abs=1e-18)


# --- the least cost ---------------------------------------------------------------------------


@given(problems(), solvers, st.floats(0, 1))
@settings(max_examples=60)
def test_the_least_cost_within_a_loss_is_that_of_every_choice_tried(
    problem: Problem, solver: Solver, share: float
) -> None:
    choices = list(every(problem))
    size = next(c for c in problem.costs if c.name == "size")
    losses = sorted(problem.total(c) for c in choices)
    if not choices:
        with pytest.raises(mp.Infeasible, match="no allocation is within every budget"):
            tolerance(problem, "size", 0.0, solver=solver)
        return
    limit = losses[int(share * (len(losses) - 1))]
    answer = tolerance(problem, "size", limit, solver=solver)
    held = Budget(replace(problem.loss, name="held"), limit)
    within = [c for c in choices if held.within(c)]
    least = min(size.total(c) for c in within)
    choice = picked(problem, answer)
    assert problem.feasible(choice)
    assert held.within(choice)
    assert answer.cost["size"] == near(least)
    assert answer.loss == near(
        min(problem.total(c) for c in within if Budget(size, least).within(c))
    )
    assert answer.status is Status.OPTIMAL
    assert answer.provenance["least"] == answer.cost["size"]
    assert answer.provenance["bound"] <= least
    assert answer.provenance["bound"] == near(least)
    assert answer.provenance["limit"] == limit
    assert answer.figures["size"].limit is None


def simple(values: Sequence[Sequence[float]], *, reference: float | None = None) -> Problem:
    names = mp.numbered(len(values))
    loss = Table(names, OPTIONS, np.array(values), "nats", reference=reference)
    size = Table(names, OPTIONS, np.tile([2, 4, 8], (len(values), 1)), "byte", "size")
    return Problem(loss, (Budget(size, 3),), (size,))


@pytest.mark.parametrize(
    ("within", "limit", "size"),
    [
        (200, 200, 4),  # the budget of 3 on the cost in question is left out
        ("200", 200, 4),
        (130, 130, 8),
        ("29%", 129, 8),
        ("28.9%", 128.9, 12),
        ("0%", 100, 12),
        ("reference+61.25%", 129, 8),
        ("reference+25%", 100, 12),
    ],
)
def test_a_limit_is_a_number_or_a_share_above_the_best_or_the_reference(
    within: float | str, limit: float, size: int
) -> None:
    asked = simple([[100, 80, 51], [100, 49, 50]], reference=80)
    answer = tolerance(asked, "size", within, solver=Exhaustive())
    assert (answer.provenance["limit"], answer.cost["size"]) == (limit, size)


def test_a_share_of_a_negative_loss_is_above_it() -> None:
    asked = simple([[-50, -80, -100], [0, 0, 0]])
    answer = tolerance(asked, "size", "20%", solver=Exhaustive())
    assert (answer.provenance["limit"], answer.cost["size"]) == (-80, 6)


def test_a_loss_table_and_a_cost_table_are_enough() -> None:
    asked = simple([[100, 80, 51], [100, 49, 50]])
    answer = tolerance(asked.loss, asked.costs[0], 130, solver=Milp())
    assert {**answer.provenance, "solver": ""} == {
        "mpsearch": mp.__version__,
        "solver": "",
        "question": "tolerance",
        "within": 130,
        "limit": 130,
        "cost": "size",
        "least": 8,
        "bound": 8,
    }


def test_a_loss_out_of_reach_says_what_is_within_reach() -> None:
    asked = simple([[100, 80, 51], [100, 49, 50]])
    wanted = (
        r"no allocation has a loss of at most 99: 100.0 is the least achievable \(nats\); raise"
    )
    with pytest.raises(mp.Infeasible, match=wanted) as caught:
        tolerance(asked, "size", 99, solver=Milp())
    assert caught.value.least == {"loss": 100}


@pytest.mark.parametrize(
    ("within", "message"),
    [
        ("plenty", "a loss within 'plenty' is not understood; write a number, 5%"),
        ("-5%", "a loss within '-5%' is not understood"),
        ("reference+5%", "the loss has no unquantized reference, so 'reference"),
        (math.nan, "budget 'loss within the limit' is nan; give a finite number"),
        ("inf", "budget 'loss within the limit' is inf; give a finite number"),
    ],
)
def test_a_bad_tolerance_is_explained(within: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tolerance(simple([[3, 2, 1]]), "size", within, solver=Exhaustive())


def test_only_a_sum_is_made_least() -> None:
    asked = simple([[3, 2, 1]])
    names, options = asked.loss.layers, asked.loss.options
    peak = Table(names, options, np.array([[1, 2, 3]]), "byte", "peak", reduce="max")
    sram = Stages(names, options, (((0, 0, 3),),), "byte", "sram")
    for cost in (peak, sram):
        with pytest.raises(ValueError, match=f"'{cost.name}' is a maximum, and the cost to make"):
            tolerance(asked.loss, cost, 2, solver=Exhaustive())


def test_interactions_are_refused() -> None:
    asked = replace(simple([[3, 2, 1]] * 2), interactions=(Interaction(0, 0, 1, 0, 1.0),))
    with pytest.raises(ValueError, match="a limit on the loss takes no interactions; leave them"):
        tolerance(asked, "size", 2, solver=Exhaustive())
    with pytest.raises(ValueError, match="nested takes no interactions; leave them out"):
        nested(asked, "size", [4, 8], solver=Exhaustive())


def test_an_unknown_cost_is_explained() -> None:
    asked = simple([[3, 2, 1]])
    with pytest.raises(LookupError, match="no cost is named 'time'; there are: size"):
        tolerance(asked, "time", 2)
    with pytest.raises(TypeError, match="a loss table has no costs; give the cost table, not 's"):
        nested(asked.loss, "size", [4])


@dataclass(frozen=True)
class Careless:
    """Takes the dearest feasible choice, or nothing, and proves nothing."""

    gives_up: bool = False

    def solve(self, problem: Problem) -> Solution:
        feasible = list(every(problem))
        if self.gives_up or not feasible:
            return Solution((), math.inf, Status.UNKNOWN, -math.inf)
        worst = max(feasible, key=problem.total)
        return Solution(worst, problem.total(worst), Status.FEASIBLE, -math.inf, "careless")


def test_what_is_not_proven_is_not_called_optimal() -> None:
    asked = simple([[3, 2, 1], [3, 2, 1]])
    answer = tolerance(asked, "size", 4, solver=Careless())
    assert answer.status is Status.FEASIBLE
    assert answer.loss <= 4
    assert answer.provenance["bound"] is None
    share = tolerance(asked, "size", "50%", solver=Careless())
    assert share.status is Status.FEASIBLE
    chain = nested(asked, "size", [4, 8], solver=Careless())
    assert (chain.status, chain.bound) == (Status.FEASIBLE, -math.inf)
    assert {a.status for a in chain.allocations} == {Status.FEASIBLE}


@dataclass(frozen=True)
class Loose:
    """The best choice, dearest of equals; a bound 1 below it where the problem is of such a kind.

    ``least`` leaves the least cost unproven, ``best`` what has no budget, ``all`` everything.
    """

    of: str = ""

    def solve(self, problem: Problem) -> Solution:
        choices = sorted(every(problem), key=lambda c: (problem.total(c), [-k for k in c]))
        if not choices:
            return Solution((), math.inf, Status.INFEASIBLE, math.inf)
        kinds = {"": False, "least": problem.loss.name == "size", "all": True}
        loose = {**kinds, "best": not problem.budgets}[self.of]
        loss = problem.total(choices[0])
        if loose:
            return Solution(choices[0], loss, Status.FEASIBLE, loss - 1, "loose")
        return Solution(choices[0], loss, Status.OPTIMAL, loss, "loose")


def test_of_equal_costs_the_least_loss_is_taken_whatever_the_solver_takes() -> None:
    asked = simple([[3, 2, 1], [4, 1, 0]])  # 4 bits in either layer cost the same
    answer = tolerance(asked, "size", 6, solver=Loose())
    assert (answer.cost["size"], answer.loss, answer.status) == (6, 4, Status.OPTIMAL)


def test_all_of_an_answer_is_proven_or_it_is_not_optimal() -> None:
    asked = simple([[3, 2, 1], [4, 1, 0]])
    assert tolerance(asked, "size", "50%", solver=Loose()).status is Status.OPTIMAL
    least = tolerance(asked, "size", "50%", solver=Loose("least"))
    assert (least.status, least.provenance["bound"]) == (Status.FEASIBLE, least.cost["size"] - 1)
    assert tolerance(asked, "size", "50%", solver=Loose("best")).status is Status.FEASIBLE
    assert tolerance(asked, "size", 6, solver=Loose("best")).status is Status.OPTIMAL
    unsure = tolerance(asked, "size", 6, solver=Loose("all"))
    assert (unsure.status, unsure.bound) == (Status.FEASIBLE, unsure.loss - 1)


def test_an_answer_above_the_limit_is_never_given() -> None:
    asked = simple([[3, 2, 1], [3, 2, 1]])
    allowed = np.array([[True, True, False], [True, False, True]])
    asked = replace(asked, loss=replace(asked.loss, allowed=allowed))
    answer = tolerance(asked, "size", 4, solver=Careless())
    assert answer.loss <= 4
    assert answer.status is Status.FEASIBLE


def test_the_bound_of_a_chain_is_what_was_proven() -> None:
    made = nested(*crossing(), [4, 10], solver=Loose("all"))
    assert (made.loss, made.status) == (27, Status.FEASIBLE)
    assert made.bound == pytest.approx(26)
    assert [a.bound for a in made.allocations] == [a.bound for a in made.independent]


def test_a_solver_that_gives_up_is_named() -> None:
    with pytest.raises(RuntimeError, match="solver 'Careless': nothing found within the limits"):
        tolerance(simple([[3, 2, 1]]), "size", 2, solver=Careless(gives_up=True))


# --- a chain that nests -----------------------------------------------------------------------


def rises(chain: Sequence[Sequence[int]]) -> bool:
    return all(a <= b for row in zip(*chain, strict=True) for a, b in itertools.pairwise(row))


@given(problems(layers=3), solvers, st.sampled_from([(1, 1), (1, 3), (0.25, 2.5)]), st.data())
@settings(max_examples=50)
def test_a_chain_is_the_best_of_every_chain_tried(
    problem: Problem, solver: Solver, weights: tuple[float, ...], data: st.DataObject
) -> None:
    size = next(c for c in problem.costs if c.name == "size")
    totals = sorted({size.total(c) for c in every(problem)})
    if len(totals) < 2:
        return
    first = data.draw(st.integers(0, len(totals) - 2))
    limits = [totals[first], totals[data.draw(st.integers(first + 1, len(totals) - 1))]]
    made = nested(problem, "size", limits, weights=weights, solver=solver)
    held = [replace(problem, budgets=(*problem.budgets, Budget(size, n))) for n in limits]
    chain = [picked(problem, answer) for answer in made.allocations]
    assert rises(chain)
    assert all(each.feasible(c) for each, c in zip(held, chain, strict=True))
    best = min(
        weights[0] * problem.total(a) + weights[1] * problem.total(b)
        for a, b in itertools.product(*map(every, held))
        if rises([a, b])
    )
    assert made.loss == near(best) or abs(made.loss - best) <= 1e-9 * problem.loss.values.std()
    assert made.bound <= best
    assert made.status is Status.OPTIMAL
    for answer, alone, each, price in zip(
        made.allocations, made.independent, held, made.price, strict=True
    ):
        assert alone.loss == near(min(map(problem.total, every(each))))
        assert price == answer.loss - alone.loss
        assert answer.bound <= alone.loss
        assert answer.figures["size"].limit == alone.figures["size"].limit


def crossing() -> tuple[Table, Table]:
    """Two layers: under the small budget the second is worth the bits, under the large the first."""
    names = mp.numbered(2)
    loss = Table(names, OPTIONS, np.array([[10.0, 9.0, 0.0], [9.5, 4.0, 3.9]]), "nats")
    return loss, Table(names, OPTIONS, np.array([[1, 2, 9], [1, 3, 9]]), "byte", "size")


def test_the_price_of_nesting_is_what_it_costs_at_each_budget() -> None:
    made = nested(*crossing(), [4, 10], solver=Milp())
    bits = [[option.weight.bits for option in a.values()] for a in made.allocations]
    alone = [[option.weight.bits for option in a.values()] for a in made.independent]
    assert alone == [[2, 4], [8, 2]]
    assert bits == [[2, 4], [4, 4]]
    assert made.price == (0.0, 3.5)
    assert made.loss == 27.0
    assert made.allocations[0].status is Status.OPTIMAL
    assert made.allocations[1].status is Status.FEASIBLE  # alone it could be better
    told = {"solver": "milp (HiGHS)", "mpsearch": mp.__version__, "question": "nested"}
    assert made.allocations[0].provenance == told


@dataclass(frozen=True)
class Counted:
    """Keeps how many budgets each problem it solved had."""

    asked: list[int] = field(default_factory=list)

    def solve(self, problem: Problem) -> Solution:
        self.asked.append(len(problem.budgets))
        return Exhaustive().solve(problem)


def test_where_the_best_of_each_budget_nest_they_are_the_chain() -> None:
    loss, size = crossing()
    counted = Counted()
    made = nested(loss, size, [2, 4, 18], solver=counted)
    assert set(counted.asked) == {1}
    assert [a.layers for a in made.allocations] == [a.layers for a in made.independent]
    assert (made.price, made.status) == ((0, 0, 0), Status.OPTIMAL)
    assert made.bound == pytest.approx(made.loss, rel=1e-12)
    assert made.allocations[0].provenance["why"] == "the best of each budget nest"
    nested(loss, size, [4, 10], solver=counted)
    assert counted.asked[-1] == 2


def test_weights_turn_the_chain_to_the_budget_that_matters() -> None:
    made = nested(*crossing(), [4, 10], weights=[1, 9], solver=Milp())
    assert made.price == (4.5, 0.0)


def test_an_order_may_be_given_and_turned() -> None:
    loss, size = crossing()
    turned = nested(loss, size, [4, 10], order=["w8a8", "w4a8", "w2a8"], solver=Exhaustive())
    first, second = (picked(Problem(loss), a) for a in turned.allocations)
    assert all(a >= b for a, b in zip(first, second, strict=True))


def test_stored_bits_order_options_before_activation_bits_and_equal_ones_may_change_places() -> (
    None
):
    options = mp.options("w4a8", "int4g32/int8", "w4a4", "w4a8+gptq", "w3a16")
    names = mp.numbered(1)
    size = np.array([[1, 9, 9, 9, 9]])

    def second(*losses: float) -> list[str]:
        """What the layer moves to from 4 bits."""
        loss = Table(names, options, np.array([[0, *losses]]), "nats")
        cost = Table(names, options, size, "byte", "size")
        return [str(a["0"]) for a in nested(loss, cost, [1, 9], solver=Exhaustive()).allocations]

    assert second(-1, -2, 0, 0) == ["int4/int8", "int4g32/int8"]
    assert second(-1, 0, -2, 0) == ["int4/int8", "int4/int8+gptq"]
    assert second(-1, 0, 0, -2) == ["int4/int8", "int4g32/int8"]


def test_activation_bits_are_those_of_a_code() -> None:
    options = mp.options("int4/int8g32", "int4/int8")
    loss = Table(mp.numbered(1), options, np.array([[1, 0]]), "nats")
    size = Table(mp.numbered(1), options, np.array([[1, 9]]), "byte", "size")
    assert nested(loss, size, [1, 9], solver=Exhaustive()).loss == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"limits": [8, 4]}, r"limits grow from one to the next, got \[8, 4\]; write them small"),
        ({"limits": []}, r"limits grow from one to the next, got \[\]"),
        ({"limits": [4, "0.004kB"]}, r"limits grow from one to the next, got \[4, 4\]"),
        ({"weights": [1]}, r"weights are 2 numbers above zero, one a limit; got \[1\]"),
        ({"weights": [1, 0]}, r"weights are 2 numbers above zero, one a limit; got \[1, 0\]"),
        ({"weights": [1, math.inf]}, "weights are 2 numbers above zero"),
        ({"order": ["w2a8", "w4a8"]}, "order names int2/int8, int4/int8; name each option once"),
        ({"order": ["w2a8", "w4a8", "w4a8"]}, "name each option once, fewest bits first: int2/"),
        ({"most": 5}, "3 options under 2 budgets make more than most=5 chains for a layer; give"),
    ],
)
def test_a_bad_chain_is_explained(more: dict[str, Any], message: str) -> None:
    loss, size = crossing()
    given: dict[str, Any] = {"limits": [4, 10], "solver": Exhaustive()} | more
    with pytest.raises(ValueError, match=message):
        nested(loss, size, **given)


def test_labels_have_no_bits_but_an_order_will_do() -> None:
    loss, size = crossing()
    labels = tuple(mp.Option(label=text) for text in ("Q2_K", "Q4_K", "Q8_0"))
    loss, size = (replace(table, options=labels) for table in (loss, size))
    with pytest.raises(ValueError, match="the bits of option 'Q2_K' are not known; give order="):
        nested(loss, size, [4, 10], solver=Exhaustive())
    made = nested(loss, size, [4, 10], order=["Q2_K", "Q4_K", "Q8_0"], solver=Exhaustive())
    assert made.price == (0.0, 3.5)


def test_a_limit_that_leaves_nothing_is_infeasible() -> None:
    with pytest.raises(mp.Infeasible, match="size: 1 asked, 2 is the least achievable"):
        nested(*crossing(), [1, 10], solver=Milp())


def test_stages_and_rules_hold_for_every_allocation_of_a_chain() -> None:
    binding = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        names, shape = mp.numbered(3), (3, 3)
        loss = Table(names, OPTIONS, rng.normal(size=shape), "nats")
        size = Table(names, OPTIONS, rng.integers(1, 9, shape), "byte", "size")
        terms = tuple((row, k, int(rng.integers(1, 9))) for row in range(3) for k in range(3))
        sram = Stages(names, OPTIONS, (terms[:6], terms[3:]), "byte", "sram")
        rule = Constraint("two at 4 bits", tuple((row, 1, 1) for row in range(3)), most=2)
        asked = Problem(loss, (Budget(sram, 9),), (size,), constraints=(rule,))
        held = [replace(asked, budgets=(*asked.budgets, Budget(size, n))) for n in (9, 16)]
        if not any(map(asked.feasible, every(held[0]))):
            continue
        made = nested(asked, size, [9, 16], solver=Exhaustive())
        chains = [pair for pair in itertools.product(*map(every, held)) if rises(pair)]
        assert made.loss == near(min(asked.total(a) + asked.total(b) for a, b in chains))
        assert all(answer.cost["sram"] <= 9 for answer in made.allocations)
        binding += max(made.price) > 0
    assert binding > 2


# --- the next best ----------------------------------------------------------------------------


@given(problems(), solvers, st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=50)
def test_each_answer_is_the_best_so_far_apart_from_those_before(
    problem: Problem, solver: Solver, k: int, apart: int
) -> None:
    choices = sorted(every(problem), key=problem.total)
    if not choices:
        with pytest.raises(mp.Infeasible):
            top_k(problem, k, apart, solver=solver)
        return
    found = top_k(problem, k, apart, solver=solver)
    before: list[tuple[int, ...]] = []
    for answer in found:
        choice = picked(problem, answer)
        far = [c for c in choices if all(_distance(c, b) >= apart for b in before)]
        assert choice in far
        assert problem.total(choice) == near(problem.total(far[0]))
        assert answer.status is Status.OPTIMAL
        before.append(choice)
    assert [a.loss for a in found] == sorted(a.loss for a in found)
    assert [a.provenance["rank"] for a in found] == list(range(1, len(found) + 1))
    left = [c for c in choices if all(_distance(c, b) >= apart for b in before)]
    assert len(found) == k or not left


def _distance(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_tied_layers_count_one_by_one() -> None:
    tied = replace(simple([[3, 2, 0], [3, 2, 0], [9, 0, 9]]), budgets=(), ties=((0, 1),))
    first, second = top_k(tied, 2, 2, solver=Milp())
    assert _distance(picked(tied, first), picked(tied, second)) == 2
    assert second.loss == 4


@pytest.mark.parametrize(("k", "apart"), [(0, 1), (2, 0), (2, 2), (-1, 1)])
def test_answers_that_cannot_be_are_explained(k: int, apart: int) -> None:
    wanted = f"got the {k} best, apart in {apart} layers; ask for 1 or more, apart in 1 to 1"
    with pytest.raises(ValueError, match=wanted):
        top_k(simple([[3, 2, 1]]), k, apart, solver=Exhaustive())


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_question_has_the_same_answer(solver: Solver) -> None:
    loss, size = crossing()
    asked = Problem(loss, (Budget(size, 12),))
    assert tolerance(asked, "size", "5%", solver=solver) == tolerance(
        asked, "size", "5%", solver=solver
    )
    assert nested(asked, "size", [4, 10], solver=solver) == nested(
        asked, "size", [4, 10], solver=solver
    )
    assert top_k(asked, 3, solver=solver) == top_k(asked, 3, solver=solver)
