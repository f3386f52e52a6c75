"""Water-filling: published rates, the conditions of an optimum, fits, and the laws of solvers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Problem
from mpsearch.solvers.exact import Exact
from mpsearch.solvers.waterfill import Waterfill, baq, fitted, waterfill
from mpsearch.tables import Table
from mpsearch.testing import SolverSuite


class TestWaterfill(SolverSuite):
    solver = Waterfill()
    supports = frozenset({"masks", "ties", "max"})
    proves = False


@pytest.mark.shared
@pytest.mark.parametrize("case", range(6))
def test_the_theory_s_rates_come_out(case: int, shared: Path) -> None:
    """Six of six, rate by rate, three of them with clipped rates."""
    given_ = json.loads((shared / "oracles/theory/waterfilling_cases.json").read_text())[case]
    found = waterfill(given_["a"], given_["w"], given_["R"], decay=4)
    np.testing.assert_allclose(found.rate, given_["b"], rtol=1e-9, atol=1e-9)
    assert found.loss == pytest.approx(given_["D_opt"], rel=1e-10)
    assert bool((found.rate > 0).all()) is given_["interior"]
    uniform = np.dot(given_["w"], given_["a"]) * 4.0 ** -given_["R"]
    assert uniform / found.loss == pytest.approx(given_["gain"], rel=1e-9)
    if given_["interior"]:
        assert given_["gain"] == pytest.approx(given_["am_over_gm"], rel=1e-9)


@pytest.mark.shared
def test_baq_s_published_code_gives_the_same_levels(shared: Path) -> None:
    """96 of 96 columns; the code's mean rate too."""
    golden = np.load(shared / "oracles/golden/baq_R2.npz")
    _, levels = baq(golden["loss_cal"], 2, decay=2**1.95)
    np.testing.assert_array_equal(levels, np.rint(2.0 ** golden["R"]))
    assert np.log2(levels).mean() == pytest.approx(float(golden["R_mean"]), rel=1e-6)


@given(seed=st.integers(0, 1 << 30))
def test_the_rates_satisfy_the_conditions_of_an_optimum(seed: int) -> None:
    """One more bit saves the level between the limits, no more at the high, no less at the low."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    a = np.exp(rng.normal(0, rng.choice([0.1, 1, 5]), n)) * rng.choice([1e-12, 1.0, 1e9])
    a *= rng.random(n) > 0.1
    w, f = rng.integers(1, 1000, n).astype(np.float64), rng.uniform(1.5, 8, n)
    low, high = rng.integers(0, 3, n), rng.integers(3, 9, n)
    share = rng.uniform(0, 1)
    rate = float(np.dot(w, low + share * (high - low)) / w.sum())
    found = waterfill(a, w, rate, decay=f, low=low, high=high)
    b = found.rate
    assert ((low <= b) & (b <= high)).all()
    saves = a * np.log(f) * f**-b
    between = (b > low) & (b < high)
    np.testing.assert_allclose(saves[between], found.level, rtol=1e-7)
    assert (saves[b == low] <= found.level * (1 + 1e-7)).all()
    assert (saves[b == high] >= found.level * (1 - 1e-7)).all()
    mean = np.dot(w, b) / w.sum()
    assert mean <= rate + 1e-9
    if (a > 0).all():
        assert mean == pytest.approx(rate, abs=1e-9)
    assert found.loss == pytest.approx(np.dot(w, a * f**-b), rel=1e-12)


def test_with_one_decay_and_no_limit_it_is_baq_s_closed_form() -> None:
    rng = np.random.default_rng(0)
    loss = rng.lognormal(0, 2, 50)
    for decay in (2.0, 3.5, 4.0):
        rates, levels = baq(loss, 3, decay=decay)
        found = waterfill(loss * decay**3, np.ones(50), 3, decay=decay, low=-99)
        np.testing.assert_allclose(found.rate, rates, rtol=1e-12)
        assert np.ptp(loss * decay ** (3 - rates)) <= 1e-9 * loss.max()  # all lose the same
        assert levels.min() >= 1


def test_at_the_ends_every_rate_is_at_its_limit() -> None:
    full = waterfill([1.0, 2.0], [1, 3], 5, decay=3, low=[1, 2], high=5)
    assert full.rate.tolist() == [5, 5]
    assert full.level == 0
    assert waterfill([1.0, 2.0], [1, 3], 1.75, decay=3, low=[1, 2]).rate.tolist() == [1, 2]
    assert waterfill([0.0, 0.0], [1, 1], 3, decay=4).rate.tolist() == [0, 0]
    assert waterfill([0.0, 1.0], [1, 1], 3, decay=4).rate.tolist() == [0, 6]


@pytest.mark.parametrize("decay", [2.1, 3.47, 5.4])
def test_the_decay_is_measured(decay: float) -> None:
    """Exact curves are found again, layer by layer; a flat or single one has the shared decay."""
    rng = np.random.default_rng(0)
    bits = np.tile([2.0, 3, 4, 8], (20, 1))
    f = decay * rng.uniform(0.8, 1.2, 20)
    height = rng.lognormal(0, 2, 20)
    curves = fitted(height[:, None] * f[:, None] ** -bits, bits, np.ones(20))
    assert curves is not None
    np.testing.assert_allclose(np.exp(curves.steep), f, rtol=1e-12)
    np.testing.assert_allclose(np.exp(curves.log_amplitude), height, rtol=1e-12)
    assert curves.own.all()
    loss = np.array([[1.0], [2.0], [4.0]]) * decay ** -bits[:3]
    counts = np.array([[True] * 4, [True, False, False, False], [False] * 4])
    curves = fitted(loss, bits[:3], np.array([1.0, 5.0, 1.0]), counts)
    assert curves is not None
    np.testing.assert_allclose(np.exp(curves.steep), decay, rtol=1e-12)
    np.testing.assert_allclose(np.exp(curves.log_amplitude), [1, 2, 0], rtol=1e-12)
    assert curves.own.tolist() == [True, False, False]
    assert fitted(np.ones((2, 4)), bits[:2], np.ones(2)) is None


def test_perfect_curves_are_all_but_solved() -> None:
    rng = np.random.default_rng(1)
    bits = np.arange(2, 9)
    size = rng.integers(100, 5000, 300)
    loss = size[:, None] * rng.lognormal(0, 1, (300, 1)) * rng.uniform(2.5, 5, (300, 1)) ** -bits
    layers = [Layer(f"l{i}") for i in range(300)]
    options = tuple(Option(label=f"w{b}") for b in bits)
    cost = Table(layers, options, size[:, None] * bits, "bit", "size")
    for mean in (2.5, 4.0, 7.0):
        budget = Budget(cost, int(size.sum() * mean))
        problem = Problem(Table(layers, options, loss, "loss"), (budget,))
        best, found = Exact().solve(problem).loss, Waterfill().solve(problem)
        assert found.bound <= best <= found.loss <= 1.05 * best


def test_refuses_numbers_that_are_none() -> None:
    wanted = [
        (([-1.0], [1], 1), {"decay": 4}, "amplitudes are finite and at least 0; component 0 is no"),
        (([1.0, 1], [1, 0], 1), {"decay": 4}, "weights are finite and above 0; component 1 is not"),
        (([1.0], [1], 1), {"decay": 1}, "a decay is finite and above 1; component 0 is not"),
        (([1.0], [1], 1), {"decay": 4, "low": 3, "high": 2}, "low is finite and at most high; com"),
        (([1.0], [1], 9), {"decay": 4, "high": 8}, "a mean rate of 9 lies outside low and high; g"),
    ]
    for numbers, more, message in wanted:
        with pytest.raises(ValueError, match=message):
            waterfill(*numbers, **more)
    with pytest.raises(ValueError, match="losses are finite and above 0, and a decay is above 1"):
        baq([0.0, 1.0], 2, decay=4)
