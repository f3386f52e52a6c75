"""Our solvers against published allocations and measured tables of language models."""

from pathlib import Path

import numpy as np
import pytest

from mpsearch.problem import Budget, Problem, Status
from mpsearch.tables import Table
from tests.solvers.ours import PROVE, solved
from tests.solvers.published import bits, read
from tests.solvers.published_language import GGUF_MODELS, Gguf, dual, evopress, mcmoe, ompq

pytestmark = pytest.mark.shared
MIXED_UP = 1e-12  # of a sum: what rounding takes from a bound that is not ours


@pytest.mark.parametrize("solver", ["milp", "exhaustive"])
@pytest.mark.parametrize("total", range(12, 21))
def test_mc_moe_s_published_expert_bits_come_out_for_16_blocks(
    total: int, solver: str, shared: Path
) -> None:
    for block in range(16):
        problem, published = mcmoe(shared, block, total)
        solution = solved(solver, problem)
        assert bits(problem, solution.choice) == published, block
        assert solution.status is Status.OPTIMAL


def test_evopress_s_eighteen_searches_keep_their_budgets_to_the_bit(shared: Path) -> None:
    said = read(shared / "oracles/evopress/verified_summary.json")
    assert len(said) == 18
    for name, size, choice, mean in evopress(shared):
        weights = np.array([layer.params for layer in size.layers])
        assert size.total(choice) == mean * weights.sum(), name
        widths = np.array(choice) + 2
        groups = said[name.replace(" at ", "@")]["group_mean"]
        assert {str(n) for n in weights} == set(groups), name
        assert all(widths[weights == int(n)].mean() == of for n, of in groups.items()), name


def test_ompq_s_twenty_four_allocations_have_their_sizes_to_the_last_bit(shared: Path) -> None:
    found = list(ompq(shared))
    assert len(found) == 24
    for name, size, choice, said in found:
        assert size.total(choice) / 8 / 2**20 == said["size_mib"], name


def witnessed(size: Table, choice: list[int], seed: int) -> Problem:
    """A problem whose budget is exactly what a published choice costs."""
    rng = np.random.default_rng(seed)
    widths = np.arange(len(size.options))
    noise = rng.lognormal(0, 0.25, size.values.shape)
    loss = rng.lognormal(0, 1, (len(size.layers), 1)) * 4.0**-widths * noise
    return Problem(
        Table(size.layers, size.options, loss, "loss"), (Budget(size, size.total(choice)),)
    )


@pytest.mark.parametrize("solver", PROVE)
def test_published_choices_at_their_exact_cost_are_no_better_than_ours(
    solver: str, shared: Path
) -> None:
    """OMPQ's and EvoPress's losses are not public: seeded ones stand for them."""
    cases = [(size, choice) for _, size, choice, _ in (*ompq(shared), *evopress(shared))]
    for seed, (size, choice) in enumerate(cases):
        problem = witnessed(size, choice, seed)
        solution = solved(solver, problem)
        assert solution.status is Status.OPTIMAL
        assert solution.bound <= solution.loss <= problem.total(choice)
        assert problem.feasible(solution.choice)


@pytest.mark.parametrize("solver", PROVE[:1])
@pytest.mark.parametrize("model", GGUF_MODELS)
def test_gguf_recipes_are_no_better_and_no_answer_is_below_the_dual_bound(
    model: str, solver: str, shared: Path
) -> None:
    tables = Gguf(shared, model)
    exact, priced = 0, 0
    for recipe in read(shared / "oracles/gguf_tool_suite/recipes.json"):
        found = tables.priced(recipe["rules"]) if recipe["model"] == model else None
        if found is None:
            continue
        total, choice = found
        exact += abs(8 * total / tables.elements - recipe["bpw"]) < 1e-4
        priced += 1
        problem = tables.within(tables.size.total(choice))
        solution = solved(solver, problem)
        limit = problem.budgets[0].limit
        below = dual(tables.damage.values, tables.size.values.astype(float), limit)
        assert solution.status is Status.OPTIMAL
        assert solution.bound <= solution.loss <= problem.total(choice)
        assert below * (1 - MIXED_UP) <= solution.loss <= below * 1.01
        assert solution.gap <= 1e-9 * problem.span
    wanted = {"Qwen3-4B-Instruct-2507": (3, 12), "Qwen3.5-4B": (10, 19), "Qwen3.5-0.8B": (1, 7)}
    assert (exact, priced) == wanted[model]
