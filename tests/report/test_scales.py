"""Axes, ticks and numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.report.scales import Axis, doubted, wide, written

finite = st.floats(-1e12, 1e12)
positive = st.floats(1e-30, 1e30)


@given(st.lists(finite, min_size=1, max_size=9))
def test_a_linear_axis_holds_its_values_in_order(values: list[float]) -> None:
    axis = Axis.over(values, 0, 100)
    pixels = [axis(value) for value in sorted(values)]
    assert pixels == sorted(pixels)
    assert all(0 <= pixel <= 100 for pixel in pixels)


@given(st.lists(positive, min_size=1, max_size=9))
def test_a_logarithmic_axis_holds_its_values_in_order(values: list[float]) -> None:
    axis = Axis.over(values, 100, 0, log=True)
    pixels = [axis(value) for value in sorted(values)]
    assert pixels == sorted(pixels, reverse=True)
    assert all(0 <= pixel <= 100 for pixel in pixels)


@pytest.mark.parametrize("count", [3, 6, 10])
@pytest.mark.parametrize("log", [False, True])
@given(low=st.floats(1e-9, 1e3), ratio=st.floats(1.01, 1e12))
def test_ticks_are_few_and_within_the_axis(count: int, log: bool, low: float, ratio: float) -> None:
    axis = Axis.over([low, low * ratio], 0, 100, log=log)
    ticks = axis.ticks(count)
    assert 1 <= len(ticks) <= 2 * count + 1
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)


def test_ticks_are_round_numbers() -> None:
    assert Axis(0.3, 9.8, 0, 1).ticks(5) == [2, 4, 6, 8]
    assert Axis(0.002, 3, 0, 1, log=True).ticks(4) == pytest.approx([0.01, 0.1, 1])
    assert Axis(1.1, 6, 0, 1, log=True).ticks(4) == pytest.approx([2, 5])


def test_a_single_value_has_an_axis_too() -> None:
    for value in (0.0, -3.0, 5.0):
        assert Axis.over([value], 0, 100)(value) == 50
    assert Axis.over([7.0], 0, 100, log=True)(7.0) == pytest.approx(50)


def test_only_positive_losses_that_span_much_need_a_logarithm() -> None:
    assert wide([0.01, 1])
    assert not wide([0.5, 1])
    assert not wide([0, 1])
    assert not wide([-1, 1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0123, "0.0123"),
        (1530.0, "1530"),
        (99_999.0, "10⁵"),
        (1.2e-6, "1.2×10⁻⁶"),
        (1e-6, "10⁻⁶"),
        (-2e7, "−2×10⁷"),
        (0, "0"),
        (-0.5, "−0.5"),
        (math.inf, "inf"),
    ],
)
def test_numbers_in_running_text(value: float, expected: str) -> None:
    assert written(value) == expected


def test_a_standard_error_says_how_many_digits_a_number_has() -> None:
    assert doubted(0.25881, 0.01042) == "0.259 ±\u00a00.010"
    assert doubted(-7.92, 0.36) == "−7.92 ±\u00a00.36"
    assert doubted(35.7, 1.4) == "35.7 ±\u00a01.4"
    assert doubted(3571, 142.0) == "3570 ±\u00a0140"
    assert doubted(3.379e-5, 1.4e-6) == "3.38×10⁻⁵ ±\u00a01.4×10⁻⁶"
    assert doubted(0.5, None) == doubted(0.5, 0.0) == doubted(0.5, math.inf) == "0.5"
