"""Sums fitted to allocations made by hand, and certificates in closed form."""

import itertools
import math

import numpy as np
import pytest

from mpsearch.sensitivity.additive import Additive, Certificate, bent, misordered, unbent
from mpsearch.tables import Floats

RNG = np.random.default_rng(0)
TRUTH = RNG.exponential(0.1, (5, 3))
TRUTH[:, 2] = 0
CHOICES = RNG.integers(3, size=(60, 5))
SUMS = TRUTH[np.arange(5), CHOICES].sum(axis=1)
MASK = np.ones((5, 3), bool)
MARKED = [False, False, True]


def test_a_sum_is_found_exactly() -> None:
    fit = Additive.fitted(CHOICES, 0.2 + SUMS, 3, 0.0)
    values, stderr, level = fit.anchored(MARKED, MASK)
    np.testing.assert_allclose(values, TRUTH, atol=1e-12)
    assert level == pytest.approx(0.2)
    np.testing.assert_allclose(stderr, 0, atol=1e-9)
    np.testing.assert_allclose(fit.losses(CHOICES), 0.2 + SUMS)


@pytest.mark.parametrize("curvature", [0.5, -4.0])
def test_the_curvature_of_losses_that_saturate_or_compound_is_found(curvature: float) -> None:
    losses = unbent(SUMS, curvature)
    bends = [bend * losses.max() for bend in (0.0, 0.5, 1.0, -1.0, -4.0)]
    fit = Additive.best(CHOICES, losses, 3, bends)
    assert fit.curvature == pytest.approx(curvature)
    values, _, level = fit.anchored(MARKED, MASK)
    np.testing.assert_allclose(values, TRUTH, atol=1e-9)
    assert level == pytest.approx(0, abs=1e-9)


def test_the_coverage_model_is_the_one_of_the_paper() -> None:
    c, a = 2.0, np.array([0.1, 0.3, 0.2])
    total = -c * np.log(1 - a).sum()
    assert unbent(total, 1 / c) == pytest.approx(c * (1 - np.prod(1 - a)))
    np.testing.assert_allclose(unbent(bent(SUMS, 0.4), 0.4), SUMS)
    assert bent(np.array([1.0, 2.0, 3.0]), 0.5).tolist() == [2 * math.log(2), math.inf, math.inf]
    assert bent(np.array(1e-9), 0.7) == pytest.approx(1e-9)


def test_each_allocation_is_predicted_from_all_others() -> None:
    losses = SUMS + RNG.normal(0, 0.05, len(SUMS))
    fit = Additive.fitted(CHOICES, losses, 3, 0.0)
    for left_out in (0, 17):
        rest = np.arange(len(losses)) != left_out
        other = Additive.fitted(CHOICES[rest], losses[rest], 3, 0.0)
        wanted = other.losses(CHOICES[left_out : left_out + 1])[0]
        assert fit.alone[left_out] == pytest.approx(wanted)


def test_standard_errors_are_those_of_least_squares() -> None:
    def fit(losses: Floats) -> tuple[Floats, Floats]:
        values, stderr, _ = Additive.fitted(CHOICES, losses, 3, 0.0).anchored(MARKED, MASK)
        return values, stderr

    noise = np.random.default_rng(1).normal(0, 0.01, (400, len(SUMS)))
    found = [fit(SUMS + row) for row in noise]
    spread = np.std([values for values, _ in found], axis=0)
    mean = np.mean([stderr for _, stderr in found], axis=0)
    assert (mean[:, 2] == 0).all()
    np.testing.assert_allclose(mean[:, :2], spread[:, :2], rtol=0.15)


def test_a_layer_without_a_marked_option_starts_from_its_least() -> None:
    mask = MASK.copy()
    mask[0, 2] = False
    mask[1] = [False, True, False]
    choices = np.where(mask[np.arange(5), CHOICES], CHOICES, mask.argmax(axis=1))
    fit = Additive.fitted(choices, TRUTH[np.arange(5), choices].sum(axis=1), 3, 0.0)
    values, _, level = fit.anchored(MARKED, mask)
    np.testing.assert_allclose(values[0, :2], TRUTH[0, :2] - TRUTH[0, :2].min(), atol=1e-12)
    assert values[1].tolist() == [0, 0, 0]
    assert level == pytest.approx(TRUTH[0, :2].min() + TRUTH[1, 1])


def test_numbers_never_seen_apart_are_an_error() -> None:
    together = np.repeat(np.array([[0, 0], [1, 1]]), 4, axis=0)
    with pytest.raises(ValueError, match="8 allocations tell only 2 of 3 numbers apart; give more"):
        Additive.fitted(together, np.arange(8.0), 2, 0.0)


def _slow(predicted: Floats, measured: Floats) -> float:
    wrong = []
    for i, j in itertools.combinations(range(len(measured)), 2):
        if measured[i] != measured[j]:
            sign = (measured[i] - measured[j]) * (predicted[i] - predicted[j])
            wrong.append(0.5 if sign == 0 else float(sign < 0))
    return sum(wrong) / len(wrong)


def test_misordered_pairs_are_counted() -> None:
    predicted, measured = RNG.integers(4, size=(2, 30)).astype(float)
    assert misordered(predicted, measured) == pytest.approx(_slow(predicted, measured))
    assert misordered(SUMS, SUMS) == 0
    assert misordered(-SUMS, SUMS) == pytest.approx(1)
    assert misordered(predicted, np.zeros(30)) == 0


def test_a_certificate_says_what_it_found_and_what_to_do() -> None:
    good = Certificate.of(np.array([1.0, 2, 3, 4.5]), np.array([1.0, 2, 3, 4]))
    assert good.r2 == pytest.approx(1 - 0.25 / 5)
    assert (good.misordered, good.residual) == (0, -0.125)
    assert good.stderr == pytest.approx(0.125)
    assert good.holds
    assert str(good) == "4 held-out allocations have R2 0.950 and 0.0% of pairs misordered"
    bad = Certificate.of(np.array([1.0, 2, 4, 3]), np.array([1.0, 2, 3, 4]))
    assert not bad.holds
    assert str(bad).endswith(
        "16.7% of pairs misordered; wanted 0.85 and at most 2%: choose by measuring"
    )


def test_losses_all_the_same_are_told_or_not() -> None:
    assert Certificate.of(np.zeros(3), np.zeros(3)).r2 == 1
    assert Certificate.of(np.ones(3), np.zeros(3)).r2 == 0


def test_a_certificate_is_of_several_allocations() -> None:
    with pytest.raises(ValueError, match=r"got \(1,\) predictions and \(1,\) measurements; wanted"):
        Certificate.of(np.zeros(1), np.zeros(1))
