"""Solve, frontier and guard on tables, without a model."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpsearch as mp
from mpsearch.baselines import guard, template, uniform
from mpsearch.problem import Budget, Problem, Solution, Status
from mpsearch.solvers import Exhaustive

OPTIONS = mp.options("w2a8", "w4a8", "w8a8")


def tables(seed: int, layers: int = 4, *, roles: int = 2) -> tuple[mp.Table, mp.Table]:
    rng = np.random.default_rng(seed)
    named = tuple(
        mp.Layer(f"l{i}", params=int(rng.integers(8, 90)), role=f"role{i % roles}")
        for i in range(layers)
    )
    loss = np.sort(rng.exponential(size=(layers, 3)), axis=1)[:, ::-1]
    size = np.array([[o.weight.bytes((1, n.params)) for o in OPTIONS] for n in named])
    reference = 4 * sum(n.params for n in named)
    return (
        mp.Table(named, OPTIONS, loss, "nats"),
        mp.Table(named, OPTIONS, size, "byte", "size", fixed=5, reference=reference + 5),
    )


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_a_frontier_holds_exactly_the_best_of_its_budgets_and_no_beaten_point(seed: int) -> None:
    loss, size = tables(seed)
    front = mp.frontier(loss, size, solver="exhaustive", points=8)
    every = [
        (size.total(c), loss.total(c)) for c in itertools.product(range(3), repeat=len(loss.layers))
    ]
    for allocation in front:
        rivals = [pair for pair in every if pair[0] <= allocation.cost["size"]]
        assert allocation.loss == min(z for _, z in rivals)
        assert allocation.cost["size"] == min(c for c, z in rivals if z <= allocation.loss)
    costs = [a.cost["size"] for a in front]
    assert costs == sorted(set(costs))
    assert front[-1].loss == min(z for _, z in every)


def test_of_equal_losses_the_frontier_keeps_the_cheapest() -> None:
    loss, size = tables(0)
    flat = mp.Table(loss.layers, OPTIONS, np.zeros((4, 3)), "nats")
    front = mp.frontier(flat, size, solver="exhaustive")
    assert [a.cost["size"] for a in front] == [size.least()]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("120", 120),
        ("0.12kB", 120),
        ("1KiB", 1024),
        (99.5, 99.5),
        ("uniform:w4a8", None),
        ("50%", None),
        ("4bit", None),
    ],
)
def test_budgets_are_read(budget: str | float, expected: float | None) -> None:
    loss, size = tables(3)
    limit = Budget.of(size, budget).limit
    weights = sum(n.params for n in loss.layers)
    wanted = {
        "uniform:w4a8": size.total([1] * 4),
        "50%": (4 * weights + 5) / 2,
        "4bit": weights * 4 / 8 + 5,
    }
    assert limit == (expected if expected is not None else wanted[str(budget)])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("4 parsecs", "size=4 parsecs is not understood; 'size' is counted in byte"),
        ("3ms", "size=3ms is not understood"),
        ("uniform:w3a8", "no option is 'w3a8' here; there are int2/int8"),
        ("uniform:nonsense", "no option is 'nonsense' here"),
        (math.nan, "budget 'size' is nan; give a finite number"),
        ("", "is not understood"),
    ],
)
def test_a_bad_budget_is_explained(budget: str | float, message: str) -> None:
    _, size = tables(3)
    with pytest.raises(ValueError, match=message):
        Budget.of(size, budget)


def test_bits_and_percentages_need_what_they_are_of() -> None:
    loss, size = tables(3)
    latency = mp.Table(loss.layers, OPTIONS, size.values, "ms", "latency")
    with pytest.raises(ValueError, match="'latency' has no unquantized reference"):
        Budget.of(latency, "25%")
    with pytest.raises(ValueError, match="'latency' is counted in ms"):
        Budget.of(latency, "4bit")
    assert Budget.of(latency, "3us").limit == pytest.approx(0.003)
    assert Budget.of(latency, "2s").limit == 2000


def test_infeasible_says_what_is_achievable() -> None:
    loss, size = tables(1)
    least = size.least()
    with pytest.raises(
        mp.Infeasible, match=rf"size: {least - 1} asked, {least} is the least"
    ) as caught:
        mp.solve(loss, {size: least - 1}, solver="exhaustive")
    assert caught.value.least == {"size": least}


def test_budgets_that_conflict_only_together_are_reported_so() -> None:
    loss, size = tables(1)
    turned = mp.Table(loss.layers, OPTIONS, size.values[:, ::-1], "byte", "other")
    with pytest.raises(mp.Infeasible, match="achievable alone, but not all conditions together"):
        mp.solve(loss, {size: size.least(), turned: turned.least()}, solver="exhaustive")


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_the_baselines_are_the_best_uniform_option_and_template(seed: int) -> None:
    loss, size = tables(seed)
    budget = Budget.of(size, "uniform:w4a8")
    problem = Problem(loss, (budget,))
    found = uniform(problem)
    assert found is not None
    assert found.loss == min(loss.total([o] * 4) for o in range(2))
    by_role = [
        loss.total(c)
        for a, b in itertools.product(range(3), repeat=2)
        if budget.within(c := [a, b, a, b])
    ]
    made = template(problem, Exhaustive())
    assert made is not None
    assert made.loss == min(by_role)


@dataclass(frozen=True)
class Careless:
    """A solver that answers with the cheapest choice and proves nothing."""

    def solve(self, problem: Problem) -> Solution:
        choice = tuple(0 for _ in problem.loss.layers)
        return Solution(choice, problem.total(choice), mp.Status.FEASIBLE, -math.inf)


def test_the_guard_returns_a_better_baseline_and_says_so() -> None:
    loss, size = tables(2)
    best = mp.solve(loss, {size: "uniform:w4a8"}, solver=Careless())
    assert {str(o) for o in best.values()} == {"int4/int8"}
    assert best.loss == loss.total([1] * 4)
    assert best.cost["size"] == size.total([1] * 4)
    assert "uniform int4/int8 is predicted better" in best.provenance["guard"]
    assert guard(best) is best


def test_pinned_layers_keep_their_option_in_every_baseline() -> None:
    loss, size = tables(2)
    allowed = np.ones((4, 3), bool)
    allowed[0, :2] = False
    pinned = mp.Table(loss.layers, OPTIONS, loss.values, "nats", allowed=allowed)
    best = mp.solve(pinned, {size: "100%"}, solver="exhaustive")
    assert best["l0"].weight.bits == 8
    assert best.uniform is not None
    assert best.uniform.layers["l0"].weight.bits == 8
    assert best.template is not None
    assert best.template.layers["l0"].weight.bits == 8


def test_unknown_names_are_explained() -> None:
    loss, size = tables(2)
    with pytest.raises(
        LookupError, match="nothing in solvers is named 'magic'; there are: dp, evolution, exact"
    ):
        mp.solve(loss, {size: "100%"}, solver="magic")
    with pytest.raises(LookupError, match="no cost is named 'latency'; there are: size"):
        mp.frontier(Problem(loss, (), (size,)), "latency")


def test_a_search_takes_the_losses_of_pairs_along() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    task = mp.Task(model.eval(), [torch.randn(16, 6)], [])
    options = mp.options("w2a8", "w4a8")
    found = mp.search(task, options, {"size": "uniform:w4a8"}, method="interactions")
    assert found.problem.interactions
    assert found.allocation.loss == found.problem.total(
        [options.index(option) for option in found.allocation.values()]
    )
    assert "interactions" in found.allocation.provenance["why"]
    alone = mp.search(task, options, {"size": "uniform:w4a8"}, method="kl")
    assert not alone.problem.interactions


@dataclass(frozen=True)
class Timed:
    """Real costs whose sum rounds differently with the rest added at once or at the end."""

    rest: float = 0.00024044700000000002

    def costs(self, network: mp.Network, options: Sequence[mp.Option]) -> dict[str, mp.Table]:
        """``latency``, the same for every option."""
        values = np.full((len(network.layers), len(options)), 6.1882e-05)
        table = mp.Table(network.layers, tuple(options), values, "s", "latency", fixed=self.rest)
        return {"latency": replace(table, reference=math.nextafter(table.least(), 0.0))}


def test_a_budget_that_rounding_alone_puts_below_the_least_is_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    task = mp.Task(model, [torch.randn(16, 6)], [])
    found = mp.search(task, mp.options("w4a8"), {"latency": "100%"}, models=[Timed()])
    [budget] = found.problem.budgets
    assert budget.limit < budget.cost.least()
    assert found.allocation.status is Status.OPTIMAL
