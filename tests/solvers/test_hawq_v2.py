"""HAWQ-V2's search against NNCF's rule written out, and its published ratio cases."""

import itertools
import json
from bisect import bisect_left
from pathlib import Path

import numpy as np
import pytest

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Problem
from mpsearch.solvers.hawq_v2 import HawqV2, selected
from mpsearch.solvers.knapsack import knapsack
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite


class TestHawqV2(SolverSuite):
    solver = HawqV2()
    supports = frozenset({"budgets", "masks", "ties", "max"})
    proves = False


def rule(
    trace: np.ndarray, perturbation: np.ndarray, flops: np.ndarray, bits: list[int], ratio: float
) -> list[int] | None:
    """NNCF's choice of bits, in the order of the traces, as its code has it."""
    count = len(trace)
    sequences = []
    for j in range(1, len(bits) + 1):
        for some in itertools.combinations(bits, j):
            for cuts in itertools.combinations(range(1, count), j - 1):
                ends = (0, *cuts, count)
                sizes = [b - a for a, b in itertools.pairwise(ends)]
                sequences.append(
                    [b for b, size in zip(some, sizes, strict=True) for _ in range(size)]
                )
    ratios = [8 * int(flops.sum()) / int((flops * s).sum()) for s in sequences]
    metrics = [
        int(sum(trace[i] * perturbation[i, bits.index(b)] for i, b in enumerate(s)))
        for s in sequences
    ]
    by_ratio = sorted(range(len(ratios)), key=lambda i: ratios[i])
    checked = by_ratio[bisect_left(sorted(ratios), ratio) :]
    return sequences[metrics.index(min(metrics[i] for i in checked))] if checked else None


@pytest.mark.parametrize("seed", range(40))
def test_takes_the_sequence_that_nncf_s_rule_takes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, bits = int(rng.integers(2, 8)), [2, 4, 8]
    trace = np.sort(rng.integers(1, 50, count))
    perturbation = np.sort(rng.integers(0, 40, (count, 3)), axis=1)[:, ::-1]
    flops = rng.integers(1, 30, count)
    ratio = float(rng.choice([1.0, 1.25, 1.5, 2.0, 3.0, 4.0]))
    layers = [Layer(f"l{i}") for i in range(count)]
    options = tuple(Option(label=f"w{b}") for b in bits)
    bops = Table(layers, options, np.outer(flops, bits), "bit operation", "bops")
    loss = Table(layers, options, (trace[:, None] * perturbation).astype(np.float64), "loss")
    asked = knapsack(Problem(loss, (Budget(bops, 8 * int(flops.sum()) / ratio),)), "hawq-v2")
    wanted = rule(trace, perturbation, flops, bits, ratio)
    assert asked is not None
    picks = selected(asked, np.arange(count), 10**6)
    assert picks is not None
    total = sum(trace[i] * perturbation[i, k] for i, k in enumerate(picks))
    assert wanted is not None
    assert total == sum(trace[i] * perturbation[i, bits.index(b)] for i, b in enumerate(wanted))
    if len({(i, b) for i, b in enumerate(wanted)} ^ {(i, bits[k]) for i, k in enumerate(picks)}):
        # Its index of the least metric may be that of a sequence that misses the ratio.
        assert 8 * int(flops.sum()) / int((flops * wanted).sum()) < ratio


@pytest.mark.shared
@pytest.mark.parametrize("case", range(16))
def test_a_compression_ratio_is_a_budget(case: int, shared: Path) -> None:
    """Sixteen of sixteen: the ratio of each setting of bits, and that it just keeps its budget."""
    published = json.loads((shared / "oracles/nncf_hawq/mixed_configs.json").read_text())
    given_ = published["compression_ratio_unit_cases"]
    (at_input, conv, between, fc), ratio = given_["cases"][case]
    ratio = given_.get(ratio, ratio) if isinstance(ratio, str) else ratio
    flops = given_["conv_flops"], given_["linear_flops"]
    layers, options = [Layer("conv"), Layer("fc")], tuple(Option(label=x) for x in "48")
    width = np.array([max(conv, at_input), max(fc, between)])
    bops = Table(layers, options, np.outer(flops, [4, 8]), "bit operation", "bops")
    choice = [[4, 8].index(int(b)) for b in width]
    assert 8 * sum(flops) / bops.total(choice) == pytest.approx(ratio, rel=1e-12)
    limit = 8 * sum(flops) / ratio
    assert Budget(bops, round(limit)).within(choice)
    assert not Budget(bops, round(limit) - 1).within(choice)


def test_refuses_too_many_sequences_and_an_order_that_is_none() -> None:
    layers = [Layer(f"l{i}") for i in range(200)]
    options = tuple(Option(label=x) for x in "abcdef")
    cost = Table(layers, options, np.tile(np.arange(6), (200, 1)), "byte", "size")
    loss = Table(layers, options, np.tile(np.arange(6)[::-1] ** 2.0, (200, 1)), "loss")
    problem = Problem(loss, (Budget(cost, 300),))
    with pytest.raises(
        ValueError, match="sequences are more than limit=1000000; use the solver ex"
    ):
        HawqV2().solve(problem)
    with pytest.raises(ValueError, match="order names each of the 200 layers once, by its number"):
        HawqV2([0, 1]).solve(problem)
