"""Tables and stages: totals, masks, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.network import numbered
from mpsearch.tables import Stages, Table

LAYERS = (mp.Layer("a"), mp.Layer("b"))
OPTIONS = mp.options("w4a8", "w8a8")
VALUES = np.array([[1.0, 2.0], [3.0, 5.0]])


def table(**changes: Any) -> Table:
    given = {"layers": LAYERS, "options": OPTIONS, "values": VALUES, "unit": "loss"} | changes
    return Table(**given)


def test_totals_add_up_or_take_the_largest_and_include_what_is_fixed() -> None:
    assert table(fixed=0.5).total([1, 0]) == 5.5
    assert table(fixed=0.5, reduce="max").total([1, 0]) == 3.5
    assert table().least() == 4
    assert table(reduce="max").least() == 3
    assert table(allowed=np.array([[False, True], [True, True]])).least() == 5


def test_integers_add_up_exactly_and_real_numbers_to_the_last_bit() -> None:
    large = table(values=np.full((2, 2), 2**62, dtype=np.int64))
    assert large.exact
    assert large.total([0, 1]) == 2**63
    rows = tuple(mp.Layer(f"l{i}") for i in range(10))
    tenths = Table(rows, OPTIONS[:1], np.full((10, 1), 0.1), "loss")
    assert not tenths.exact
    assert tenths.total([0] * 10) == 1.0
    assert not table(values=VALUES.astype(np.int64), fixed=0.5).exact


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint16, np.int64])
def test_integers_of_any_width_are_exact(kind: Any) -> None:
    assert table(values=VALUES.astype(kind)).exact


@given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3))
def test_a_total_does_not_depend_on_the_order_of_layers(numbers: list[float]) -> None:
    rows = tuple(mp.Layer(name) for name in "abc")
    totals = {
        Table(rows, OPTIONS[:1], np.array(order)[:, None], "loss").total([0, 0, 0])
        for order in (numbers, numbers[::-1], sorted(numbers))
    }
    assert totals == {math.fsum(numbers)}


def test_masked_numbers_may_be_anything() -> None:
    mask = np.array([[True, False], [True, True]])
    masked = table(values=np.array([[1.0, math.nan], [3.0, 5.0]]), allowed=mask)
    assert masked.values.tolist() == [[1, 0], [3, 5]]
    assert masked.allowed.tolist() == mask.tolist()


def test_uniform_gives_pinned_layers_their_own_option() -> None:
    mask = np.array([[True, False], [True, True]])
    assert table().uniform(OPTIONS[1]) == (1, 1)
    assert table(allowed=mask).uniform(OPTIONS[1]) == (0, 1)
    assert table().uniform(mp.Option.parse("w2a8")) is None
    three = mp.options("w2a8", "w4a8", "w8a8")
    mask = np.array([[True, True, False], [True, True, True]])
    partly = Table(LAYERS, three, np.ones((2, 3)), "loss", allowed=mask)
    assert partly.uniform(three[2]) is None


def test_a_million_numbered_layers_are_one_table() -> None:
    groups = Table(numbered(1_000_000), OPTIONS, np.ones((1_000_000, 2)), "loss")
    assert groups.layers[17].name == "17"
    assert groups.total(np.zeros(1_000_000, int).tolist()) == 1_000_000


BAD: dict[str, dict[str, Any]] = {
    r"has 2 layers and 2 options, so its values have shape \(2, 2\), not \(2, 3\)": {
        "values": np.ones((2, 3))
    },
    r"its stderr have shape \(2, 2\), not \(1, 2\)": {"stderr": np.ones((1, 2))},
    r"its allowed have shape \(2, 2\), not \(2, 1\)": {"allowed": np.ones((2, 1), bool)},
    r"needs a layer and an option, got shape \(0, 2\)": {
        "layers": (),
        "values": np.ones((0, 2)),
    },
    "layer 'a' is named twice; name each layer once": {"layers": (mp.Layer("a"),) * 2},
    "option 'int4/int8' is named twice; name each option once": {"options": OPTIONS[:1] * 2},
    "values of table 'loss': nan for layer 'a' at 'int4/int8'; give a finite number, or mask": {
        "values": VALUES * math.nan
    },
    "values of table 'loss': inf for layer 'a' at 'int8/int8'": {"values": VALUES * [1, math.inf]},
    "stderr of table 'loss': -1.0 for layer 'a' at 'int4/int8'": {"stderr": -VALUES},
    "layer 'b' may take no option; allow it one": {
        "allowed": np.array([[True, True], [False, False]])
    },
    "reduce is 'sum' or 'max', not 'mean'": {"reduce": "mean"},
    "fixed of table 'loss' is inf; give a finite number": {"fixed": math.inf},
    "reference of table 'loss' is nan; give a finite number": {"reference": math.nan},
    r"values of table 'loss' add up to more than 2\^1000; use a larger unit": {
        "values": np.full((2, 2), 1e308)
    },
    r"table 'loss' holds 9223372036854775808; integers are below 2\^63": {
        "values": np.full((2, 2), 2**63, dtype=np.uint64)
    },
}


@pytest.mark.parametrize(("message", "changes"), BAD.items())
def test_a_bad_table_is_refused(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        table(**changes)


STAGES = (((0, 0, 3), (0, 1, 6), (1, 1, 1)), ((1, 0, 4), (1, 1, 8)))


def test_stages_take_the_largest_sum() -> None:
    sram = Stages(LAYERS, OPTIONS, STAGES, "byte", "sram", fixed=10)
    assert [sram.total(c) for c in ((0, 0), (0, 1), (1, 0), (1, 1))] == [14, 18, 16, 18]
    assert sram.exact
    assert sram.least() == 14
    assert not Stages(LAYERS, OPTIONS, (((0, 0, 0.5),),), "byte", "sram").exact


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(-5, 5)), max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_least_of_stages_is_below_every_total(stages: list[list[tuple[int, int, int]]]) -> None:
    cost = Stages(LAYERS, OPTIONS, tuple(map(tuple, stages)), "byte", "sram")
    assert all(cost.least() <= cost.total(c) for c in ((0, 0), (0, 1), (1, 0), (1, 1)))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "cost 'sram' has no stages; give at least one"),
        (
            (((2, 0, 1),),),
            "stage 0 of cost 'sram' names layer 2, option 0; there are 2 layers and 2",
        ),
        (((), ((0, -1, 1),)), "stage 1 of cost 'sram' names layer 0, option -1"),
        ((((0, 0, math.nan),),), "stage 0 of cost 'sram': nan for layer 'a'; give a finite number"),
    ],
)
def test_bad_stages_are_refused(stages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stages(LAYERS, OPTIONS, stages, "byte", "sram")
