"""Allocations and frontiers: exact round trips, strict reading."""

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.allocation import Baseline, Figure, read_allocation
from mpsearch.pareto import Point, read_frontier
from mpsearch.reading import BadDocument, parse

DESIGN = """{"schema": "mpsearch/allocation/1",
 "layers": {"layer1.0.conv1": {"option": "int4/int8", "weight": "int4", "activation": "int8",
            "weight_bits": 4, "activation_bits": 8, "modules": ["layer1.0.conv1"]}},
 "loss": {"predicted": 0.0123, "unit": "KL (nats)", "bound": 0.0123, "status": "optimal"},
 "cost": {"size": {"value": 123456, "unit": "byte", "limit": 130000}},
 "recipe": {"ranges": "mse", "rounding": "nearest", "corrections": ["moments"]},
 "baselines": {"uniform": {"option": "int4/int8", "loss": 0.02, "cost": {"size": 129000}},
               "template": null},
 "measured": {"kl": 0.0131, "stderr": 0.0009, "metrics": {"top1": 0.91},
              "baselines": {"uniform": {"kl": 0.021}}},
 "provenance": {"mpsearch": "0.1.0", "estimator": "kl", "solver": "exact", "seed": 0,
                "model_sha256": "...", "data_sha256": "..."}}"""


def allocation(loss: float = 0.25, bound: float = 0.25, cost: float = 7) -> mp.Allocation:
    chosen = dict(zip("ab", mp.options("int4/int8", "k:int4/v:int2"), strict=True))
    return mp.Allocation(
        chosen,
        {"a": ("a", "a2"), "b": ("b",)},
        loss,
        "nats",
        bound,
        mp.Status.OPTIMAL,
        {"size": Figure(cost, "byte", 10)},
        {"ranges": "mse"},
        Baseline(dict.fromkeys("ab", chosen["a"]), 0.5, {"size": 9}, chosen["a"]),
        Baseline(chosen, 0.4, {"size": 9}),
        {"kl": 0.3},
        {"seed": 0},
    )


def test_the_example_of_the_design_is_read_and_answers_as_it_says() -> None:
    best = read_allocation(parse(DESIGN, "bits.json"))
    assert best["layer1.0.conv1"].weight.bits == 4
    assert best.cost == {"size": 123456}
    assert best.gap == 0
    assert best.uniform is not None
    assert best.uniform.cost == {"size": 129000}


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False) | st.just(-math.inf),
    st.integers(0, 1 << 62) | st.floats(0, 1e300),
)
def test_a_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, loss: float, bound: float, cost: float
) -> None:
    path = tmp_path_factory.mktemp("trip") / "bits.json"
    best = allocation(loss, bound, cost)
    best.save(path)
    again = mp.Allocation.load(path)
    assert again == best
    assert again.document() == best.document()


def test_modules_of_a_layer_share_its_option() -> None:
    assert [str(o) for o in allocation().by_module().values()] == ["int4/int8"] * 2 + [
        "k:int4/v:int2"
    ]


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(KeyError, match="no layer is named 'c'; there are 'a', 'b'"):
        allocation()["c"]


def _changed(**changes: Any) -> Any:
    return parse(json.dumps(json.loads(DESIGN) | changes), "bits.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "mpsearch/allocation/2"}, "has schema 'mpsearch/allocation/2'; this reads"),
        ({"layers": {}}, r"bits.json.layers: got {}; wanted at least one layer"),
        ({"more": 1}, "key 'more' is not known"),
        (
            {"layers": {"a": {"option": "int4/int8", "weight": "int8"}}},
            r"layers\.a\.weight: got 'int8'; wanted 'int4', as option 'int4/int8' says",
        ),
        ({"layers": {"a": {"option": "int4/int8", "weight_bits": 5}}}, r"got 5; wanted 4"),
        ({"cost": {"size": {"value": "big", "unit": "byte"}}}, r"cost\.size\.value: got 'big'"),
        (
            {"baselines": {"uniform": {"loss": 1, "cost": {}}}},
            "has neither 'option' nor 'layers'",
        ),
        (
            {"baselines": {"template": {"loss": 1, "cost": {}, "layers": {"x": "int4/int8"}}}},
            "names other layers than the allocation",
        ),
        (
            {"loss": {"predicted": 1, "unit": "u", "bound": 1, "status": "perfect"}},
            "no status is named 'perfect'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDocument, match=message):
        read_allocation(_changed(**changes))


def test_an_unwritable_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*nowhere.*name a file in a folder that"):
        allocation().save(tmp_path / "nowhere" / "bits.json")
    assert list(tmp_path.iterdir()) == []


def frontier() -> mp.Frontier:
    points = (
        Point((0, 0), 0.5, 0.5, {"size": 10}),
        Point((1, 0), 0.25, 0.2, {"size": 20}),
    )
    layers = (mp.Layer("a", 10), mp.Layer("b", 4, members=("b", "c")))
    return mp.Frontier(layers, mp.options("w4a8", "w8a8"), "nats", points, {"size": "byte"}, 1.0)


def test_a_frontier_is_a_sequence_of_allocations_cheapest_first(tmp_path: Path) -> None:
    front = frontier()
    assert len(front) == 2
    assert front[0].status is mp.Status.OPTIMAL
    assert front[1].status is mp.Status.FEASIBLE
    assert front[1].by_module()["c"].weight.bits == 4
    assert [a.cost["size"] for a in front[1:]] == [20]
    front.save(tmp_path / "front.json")
    again = mp.Frontier.load(tmp_path / "front.json")
    assert again.document() == front.document()
    assert again.layers == front.layers


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("points", 1, "loss"), 0.75, r"points\[1\]: is beaten by the point before it"),
        (("points", 0, "choice"), [0], r"points\[0\]\.choice: got \[0\]; wanted a list of 2"),
        (("points", 0, "choice"), [0, 2], r"choice\[1\]: got 2; wanted an option's index, below 2"),
        (("points", 0, "loss"), None, r"points\[0\]\.loss: got None; wanted a finite number"),
    ],
)
def test_a_bad_frontier_is_named_with_its_place(
    place: tuple[Any, ...], value: Any, message: str
) -> None:
    document = json.loads(json.dumps(frontier().document()))
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(BadDocument, match=message):
        read_frontier(parse(json.dumps(document), "front.json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.data())
def test_no_document_crashes_with_anything_but_a_bad_document(data: st.DataObject) -> None:
    for source, reader in (
        (DESIGN, read_allocation),
        (json.dumps(frontier().document()), read_frontier),
    ):
        document = json.loads(source)
        at = document
        while isinstance(at, dict | list) and len(at):
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or data.draw(st.booleans()):
                at[key] = data.draw(JSON)
                break
            at = at[key]
        try:
            text = json.dumps(document, allow_nan=False)
        except ValueError:
            continue
        with contextlib.suppress(BadDocument):
            reader(parse(text, "fuzz.json"))


def test_parts_of_a_module_have_no_option_of_their_module_s() -> None:
    apart = replace(allocation(), modules=dict.fromkeys(allocation().modules, ("one",)))
    with pytest.raises(ValueError, match="are parts of module 'one', which has no option of its"):
        apart.by_module()
