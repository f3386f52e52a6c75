"""Hulls against the definition, both ways of making them against each other, and wide classes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from mpsearch.solvers import compiled, hull, supported


@st.composite
def classes(draw: DrawFn) -> tuple[Any, Any]:
    """(n, K) gains and usages, some equal, some in convex order, some near the largest."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 24))
    most = draw(st.sampled_from([2, 6, 99, 1 << 30, 1 << 58]))
    gain, usage = rng.integers(0, most, shape), rng.integers(0, most, shape)
    if draw(st.booleans()):
        usage, gain = np.sort(usage, axis=1), -np.sort(-gain, axis=1)
    return gain, usage


def one_by_one(gain: Any, usage: Any, start: int) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hull, "ROUNDS", 0)
        return hull._chained(gain, usage, start)


def corners(gain: Any, usage: Any) -> list[int]:
    """The entries that are least at some multiplier, the first of equal ones, in exact integers."""
    found = []
    for k in range(len(gain)):
        beaten = any(
            (g, u) != (gain[k], usage[k]) and g <= gain[k] and u <= usage[k]
            for g, u in zip(gain, usage, strict=True)
        )
        inside = any(
            usage[a] < usage[k] < usage[b]
            and (gain[k] - gain[a]) * (usage[b] - usage[a])
            >= (gain[b] - gain[a]) * (usage[k] - usage[a])
            for a in range(len(gain))
            for b in range(len(gain))
        )
        twin = any((gain[j], usage[j]) == (gain[k], usage[k]) for j in range(k))
        if not (beaten or inside or twin):
            found.append(k)
    return sorted(found, key=lambda k: usage[k])


@pytest.mark.parametrize("made", [hull._wrapped, hull._chained, one_by_one, None])
@given(case=classes())
def test_corners_are_what_is_least_at_some_multiplier(made: Any, case: Any) -> None:
    gain, usage = case
    found = hull.Hull(*made(gain, usage, 0)) if made else compiled.hull(gain, usage)
    if gain.max() >= 1 << 53:
        return  # slopes are rounded there; the next test holds
    for row in range(len(gain)):
        wanted = corners(gain[row].tolist(), usage[row].tolist())
        assert [found.first[row], *found.entry[found.owner == row]] == wanted


@pytest.mark.parametrize("made", [hull._wrapped, hull._chained, one_by_one, None])
@given(case=classes())
def test_edges_fall_and_lead_from_corner_to_corner(made: Any, case: Any) -> None:
    gain, usage = case
    found = hull.Hull(*made(gain, usage, 0)) if made else compiled.hull(gain, usage)
    assert (np.diff(found.owner) >= 0).all()
    for row in range(len(gain)):
        edges = found.owner == row
        entries = [found.first[row], *found.entry[edges]]
        assert (-np.diff(gain[row, entries]) == found.gain[edges]).all()
        assert (np.diff(usage[row, entries]) == found.usage[edges]).all()
        assert (found.gain[edges] > 0).all()
        assert (found.usage[edges] > 0).all()
        assert (np.diff(found.slope[edges]) < 0).all()
        assert usage[row, entries[0]] == usage[row].min()
        assert gain[row, entries[-1]] <= gain[row].min() * (1 + 2.0**-50)


@given(classes())
def test_compiled_hulls_are_those_of_numpy(case: Any) -> None:
    one, two = hull.hull(*case), compiled.hull(*case)
    for name in ("first", "owner", "entry", "gain", "usage", "slope"):
        assert getattr(one, name).tolist() == getattr(two, name).tolist()


@pytest.mark.parametrize("rounds", [0, 1, 16])
def test_wide_classes_are_sorted_whatever_their_shape(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hull, "ROUNDS", rounds)
    count = 5000
    place = np.arange(count)
    falling = (count - place) ** 2 + 10**9
    falling[-1] = 0  # bends all before it, one after the other
    shapes = {
        "convex": ((count - place) ** 2, count - 1),
        "concave": (count**2 - place**2, 1),
        "cascade": (falling, 1),
        "equal": (np.full(count, 3), 0),
    }
    gain = np.array([shape for shape, _ in shapes.values()])
    found = hull.hull(gain, np.tile(place, (len(gain), 1)))
    edges = np.bincount(found.owner, minlength=len(gain))
    assert edges.tolist() == [number for _, number in shapes.values()]


def test_a_million_options_are_no_matter() -> None:
    rng = np.random.default_rng(0)
    gain, usage = rng.integers(0, 1 << 40, (2, 1, 10**6))
    found = hull.hull(gain, usage)
    assert usage[0, found.first[0]] == usage.min()
    assert gain[0, found.entry[-1]] == gain.min()
    assert len(hull.hull(gain, np.zeros_like(gain)).owner) == 0


@given(st.lists(st.floats(0, 1e300, exclude_min=True), max_size=60), st.integers(1, 4))
def test_compiled_slopes_fall_in_the_order_of_numpy(slopes: list[float], copies: int) -> None:
    given = np.tile(np.array(slopes, np.float64), copies)
    wanted = np.argsort(-given, kind="stable")
    assert (compiled.steepest(given) == wanted).all()
    assert (supported.steepest(given) == wanted).all()
