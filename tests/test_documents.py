"""Problems and tables as documents: exact round trips, one clear error for each thing wrong."""

import contextlib
import copy
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.documents import (
    load_problem,
    load_provenance,
    load_table,
    problem_document,
    read_problem,
    save_problem,
    save_table,
)
from mpsearch.problem import Problem
from mpsearch.reading import BadDocument, Node, parse, read, write
from mpsearch.tables import Stages, Table
from tests.solvers.problems import problems

PROBLEM = """{"schema": "mpsearch/problem/1",
 "layers": [{"name": "a", "params": 100, "macs": 900}, {"name": "b"}],
 "options": ["int4/int4", "int8/int8"],
 "loss": {"unit": "loss", "values": [[0.3, 0.1], [0.2, 0.05]], "stderr": null},
 "costs": {"size": {"unit": "byte", "values": [[50, 100], [20, 40]], "fixed": 10, "reference": 660},
           "sram": {"unit": "byte", "stages": [
             [["a", "int4/int4", 30], ["a", "int8/int8", 60], ["b", "int8/int8", 9]],
             [["b", "int4/int4", 8], ["b", "int8/int8", 16]]]}},
 "budgets": {"size": 150, "sram": 80},
 "ties": [["a", "b"]],
 "allowed": {"b": ["int4/int4", "int8/int8"]},
 "constraints": [{"name": "one at 8 bits",
                  "terms": [["a", "int8/int8", 1], ["b", "int8/int8", 1]], "min": 1, "max": null}],
 "interactions": [["a", "int4/int4", "b", "int8/int8", 0.01]]}"""
TABLE = """{"schema": "mpsearch/table/1", "layers": [{"name": "a"}, {"name": "b"}],
 "options": ["int4/int4", "int8/int8"], "unit": "byte", "values": [[50, 100], [20, null]]}"""


def changed(text: str, place: tuple[Any, ...], value: Any) -> Any:
    """The document with the value at a place, or without it where the value is ``...``."""
    document = json.loads(text)
    at = document
    for key in place[:-1]:
        at = at[key]
    if value is ...:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return document


def test_the_example_of_the_design_is_read_and_solved() -> None:
    problem = read_problem(parse(PROBLEM, "problem.json"))
    assert [layer.name for layer in problem.loss.layers] == ["a", "b"]
    assert problem.loss.layers[0].macs == 900
    assert {budget.cost.name: budget.limit for budget in problem.budgets} == {
        "size": 150,
        "sram": 80,
    }
    assert mp.solve(problem, solver="exhaustive")["a"].weight.bits == 8


def same(one: Problem, two: Problem) -> bool:
    """To the last bit, and integers as integers."""

    def plain(problem: Problem) -> Any:
        return json.dumps(problem_document(problem), default=lambda a: [str(a.dtype), a.tolist()])

    return bool(plain(one) == plain(two))


@given(problem=problems(4, 3))
@pytest.mark.parametrize("ending", ["json", "npz"])
def test_a_problem_is_read_back_to_the_last_bit(
    ending: str, problem: Problem, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("round") / f"problem.{ending}"
    save_problem(problem, path, {"seed": 3, "note": "λ"})
    again = load_problem(path)
    assert same(problem, again)
    assert load_provenance(path) == {"seed": 3, "note": "λ"}


FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
EXTRAS = st.builds(
    mp.Layer,
    st.text(min_size=1, max_size=5).filter(
        lambda s: not any(0xD800 <= ord(c) <= 0xDFFF for c in s)
    ),
    st.integers(0, 1 << 62),
    st.integers(0, 1 << 62),
    st.sampled_from(["layer", "conv2d"]),
    st.sampled_from(["layer", "mlp"]),
    st.lists(st.lists(st.integers(0, 99), max_size=4).map(tuple), max_size=2).map(tuple),
    st.integers(0, 99),
    st.integers(0, 99),
    st.lists(st.sampled_from(["a.b", "c"]), max_size=2, unique=True).map(tuple),
)


@given(
    layers=st.lists(EXTRAS, min_size=1, max_size=3, unique_by=lambda layer: layer.name),
    whole=st.booleans(),
    data=st.data(),
)
@pytest.mark.parametrize("ending", ["json", "npz"])
def test_a_table_is_read_back_to_the_last_bit(
    ending: str,
    layers: list[mp.Layer],
    whole: bool,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    count = 2 * len(layers)
    number: Any = st.integers(-(1 << 63) + 1, (1 << 63) - 1) if whole else FLOATS
    cells = st.lists(number, min_size=count, max_size=count)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    table = Table(
        layers,
        mp.options("w4a8", "k:int4/v:int2"),
        np.array(data.draw(cells), dtype=np.int64 if whole else np.float64).reshape(-1, 2),
        "nats",
        "perte",
        data.draw(st.none() | st.just(np.full((len(layers), 2), 0.1))),
        mask.reshape(-1, 2) | np.array([True, False]),
        data.draw(st.just(0) | FLOATS),
        data.draw(st.none() | FLOATS),
        data.draw(st.sampled_from(["sum", "max"])),
    )
    path = tmp_path_factory.mktemp("round") / f"table.{ending}"
    save_table(table, path)
    again = load_table(path)
    assert isinstance(again, Table)
    assert tuple(again.layers) == tuple(layers)
    assert again.options == table.options
    assert again.values.dtype == table.values.dtype
    assert again.values.tobytes() == table.values.tobytes()
    assert again.allowed.tolist() == table.allowed.tolist()
    assert (again.stderr is None) == (table.stderr is None)
    for key in ("unit", "name", "fixed", "reference", "reduce"):
        assert getattr(again, key) == getattr(table, key)


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_notes_are_read_back(tmp_path: Path, ending: str) -> None:
    where = np.array([[True, False], [False, True]])
    layers, options = (mp.Layer("a"), mp.Layer("b")), mp.options("w4a8", "w8a8")
    table = Table(layers, options, np.ones((2, 2)), "s", "latency", notes={"as fp32": where})
    save_table(table, tmp_path / f"t.{ending}")
    again = load_table(tmp_path / f"t.{ending}")
    assert isinstance(again, Table)
    assert {text: mask.tolist() for text, mask in again.notes.items()} == {
        "as fp32": where.tolist()
    }


def test_a_note_of_another_shape_is_refused() -> None:
    layers, options = (mp.Layer("a"), mp.Layer("b")), mp.options("w4a8")
    with pytest.raises(
        ValueError, match=r"its entries noted 'slow' have shape \(2, 1\), not \(1, 2\)"
    ):
        Table(layers, options, np.ones((2, 1)), "s", notes={"slow": np.ones((1, 2), bool)})


def test_stages_are_read_back(tmp_path: Path) -> None:
    stages = Stages(
        (mp.Layer("a"),), mp.options("w4a8"), (((0, 0, 3),), ((0, 0, 0.1),)), "byte", "sram", 1, 9.5
    )
    save_table(stages, tmp_path / "sram.json")
    again = load_table(tmp_path / "sram.json")
    assert isinstance(again, Stages)
    assert (again.stages, again.name, again.fixed, again.reference) == (
        stages.stages,
        "sram",
        1,
        9.5,
    )


def test_an_option_is_known_however_it_is_written() -> None:
    document = changed(PROBLEM, ("options",), ["w4a4", "w8a8"])
    problem = read_problem(Node(document, "problem"))
    assert [str(o) for o in problem.loss.options] == ["int4/int4", "int8/int8"]
    labels = changed(TABLE, ("options",), ["Q4_K", "Q6_K"])
    assert [str(o) for o in _table(labels).options] == ["Q4_K", "Q6_K"]


@cache
def schema(kind: str) -> Any:
    """The published schema."""
    path = Path(mp.__file__).parent / "schemas" / f"{kind}-1.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


def _table(document: Any) -> Any:
    from mpsearch.documents import read_table

    return read_table(Node(document, "table"))


DEEP = {"x": 1}
for _ in range(50):
    DEEP = {"x": DEEP}  # type: ignore[dict-item]

BAD: list[tuple[tuple[Any, ...], Any, str]] = [
    (("schema",), ..., r"problem: has schema None; this reads 'mpsearch/problem/1'"),
    (("schema",), "mpsearch/problem/2", r"has schema 'mpsearch/problem/2'; this reads 'mpsearch/problem/1'"),
    (("schema",), ["mpsearch/problem/1"], r"has schema \['mpsearch/problem/1'\]; this reads"),
    (("layers",), ..., r"problem: has no 'layers'; it is required"),
    (("layers",), [], r"problem\.layers: got \[\]; wanted a list of at least 1"),
    (("layers",), {}, r"problem\.layers: got \{\}; wanted a list"),
    (("layers", 1), {"name": "a"}, r"problem\.layers: layer 'a' is named twice; name it once"),
    (("layers", 1), "b", r"problem\.layers\[1\]: got 'b'; wanted an object"),
    (("layers", 1, "name"), "", r"problem\.layers\[1\]\.name: got ''; wanted a text that is not empty"),
    (("layers", 1, "name"), "\ud800", r"problem\.layers\[1\]\.name: .*wanted a text of whole Unicode"),
    (("layers", 0, "params"), -1, r"layers\[0\]\.params: got -1; wanted an integer that is not neg"),
    (("layers", 0, "params"), 1.5, r"layers\[0\]\.params: got 1\.5; wanted an integer that is not neg"),
    (("layers", 0, "params"), True, r"layers\[0\]\.params: got True; wanted a finite number"),
    (("layers", 0, "params"), 1 << 63, r"layers\[0\]\.params: .*; wanted a number below 2\^63"),
    (("layers", 0, "bits"), 4, r"layers\[0\]: key 'bits' is not known; keys are name, params, macs"),
    (("options",), ["int4/int4"] * 2, r"problem\.options: option 'int4/int4' is named twice"),
    (("options",), ["int4/int4", "w4a4"], r"problem\.options: option 'int4/int4' is named twice"),
    (("options",), [], r"problem\.options: got \[\]; wanted a list of at least 1"),
    (("loss",), ..., r"problem: has no 'loss'; it is required"),
    (("costs", "size", "unit"), ..., r"costs\.size: has no 'unit'; it is required"),
    (("loss", "values"), ..., r"problem\.loss: has no 'values'; it is required"),
    (("loss", "more"), 1, r"problem\.loss: key 'more' is not known; keys are unit, values"),
    (("loss", "values"), [[1, 2]], r"problem\.loss\.values: got \[\[1, 2\]\]; wanted a list of 2"),
    (("loss", "values", 1), [1], r"problem\.loss\.values\[1\]: got \[1\]; wanted a list of 2"),
    (("loss", "values", 1, 0), "1", r"loss\.values\[1\]\[0\]: got '1'; wanted a finite number"),
    (("loss", "values", 1, 0), 1e999, r"loss\.values\[1\]\[0\]: got inf; wanted a finite number"),
    (("loss", "values", 1), [None, None], r"loss\.values\[1\]: masks every option of layer 'b'; leave it"),
    (("loss", "stderr"), [[1, 1], [1, -1]], r"problem\.loss\.stderr: holds a negative number"),
    (("loss", "reduce"), "max", r"a loss adds up over layers; its reduce is 'sum'"),
    (("loss", "reduce"), "mean", r"loss\.reduce: no reduction is named 'mean'; there are 'sum', 'max'"),
    (("loss",), {"unit": "x", "stages": [[]]}, r"problem\.loss: .*wanted a table of 'values'"),
    (("costs", "size", "fixed"), None, r"costs\.size\.fixed: got None; wanted a finite number"),
    (("costs", "size", "stages"), [], r"costs\.size: has both 'stages' and 'values'; give one"),
    (("costs", "sram", "stages"), [], r"costs\.sram\.stages: got \[\]; wanted a list of at least 1"),
    (("costs", "sram", "stages", 0, 0), ["a", 1], r"stages\[0\]\[0\]: got \['a', 1\]; wanted a list of 3"),
    (("costs", "sram", "stages", 0, 0, 0), "z", r"stages\[0\]\[0\]\[0\]: no layer is named 'z'; there are"),
    (("costs", "sram", "stages", 0, 0, 1), "w2a2", r"\[0\]\[1\]: no option is named 'int2/int2'; there are"),
    (("budgets", "speed"), 3, r"budgets\.speed: no cost is named 'speed'; there are 'size', 'sram'"),
    (("budgets", "size"), "3", r"budgets\.size: got '3'; wanted a finite number"),
    (("ties",), [["a", "c"]], r"problem\.ties\[0\]\[1\]: no layer is named 'c'; there are 'a', 'b'"),
    (("ties",), [["a"]], r"problem\.ties\[0\]: got \['a'\]; wanted a list of at least 2"),
    (("allowed", "c"), ["w4a4"], r"problem\.allowed\.c: no layer is named 'c'"),
    (("allowed", "b"), [], r"problem\.allowed\.b: got \[\]; wanted a list of at least 1"),
    (("allowed", "b"), ["w2a2"], r"problem\.allowed\.b\[0\]: no option is named 'int2/int2'"),
    (("constraints", 0, "name"), ..., r"problem\.constraints\[0\]: has no 'name'; it is required"),
    (("constraints", 0, "min"), "1", r"problem\.constraints\[0\]\.min: got '1'; wanted a finite number"),
    (("constraints", 0, "sense"), "<=", r"constraints\[0\]: key 'sense' is not known; keys are name"),
    (("interactions", 0, 2), "a", r"interactions\[0\]: names layer 'a' twice; a pair is of different"),
    (("interactions",), [["a", "w4a4", "b", "w8a8", 1], ["b", "w8a8", "a", "w4a4", 2]],
     r"problem\.interactions\[1\]: this pair stands before; give each pair once"),
    (("interactions", 0), [1, 2], r"interactions\[0\]: got \[1, 2\]; wanted a list of 5"),
    (("provenance",), [], r"problem\.provenance: got \[\]; wanted an object"),
    (("note",), "x", r"problem: key 'note' is not known; keys are schema, layers, options, loss"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "message"), BAD)
def test_one_clear_error_names_the_place(place: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(BadDocument, match=message):
        read_problem(Node(changed(PROBLEM, place, value), "problem"))


def test_layers_that_may_take_nothing_in_common_are_no_tie() -> None:
    document = changed(PROBLEM, ("allowed",), {"a": ["w4a4"], "b": ["w8a8"]})
    with pytest.raises(
        BadDocument, match="problem: tables and ties leave no option to layer 'a', 'b'"
    ):
        read_problem(Node(document, "problem"))


TEXTS: list[tuple[str | bytes, str]] = [
    ("", r"bad: is not JSON: Expecting value: line 1 column 1"),
    ("[1, 2", r"bad: is not JSON: "),
    (b"\xff\xfe\xfa", r"bad: is not JSON: "),
    ('{"a": NaN}', r"bad: holds NaN; JSON has finite numbers only, null masks an option"),
    ('{"a": -Infinity}', r"bad: holds -Infinity; JSON has finite numbers only"),
    ('{"a": 1, "a": 2}', r"bad: key 'a' stands twice in one object; write it once"),
    ("9" * 5000, r"bad: is not JSON: "),
    ("[" * 100_000, r"bad: nested too deep; at most 40 levels are read"),
    (json.dumps(DEEP), r"bad: nested too deep; at most 40 levels are read"),
    ("3", r"bad: got 3; wanted an object"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS)
def test_text_that_is_no_document_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(BadDocument, match=message):
        read_problem(parse(text, "bad"))


def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpsearch.reading.MOST_BYTES", 500)
    (tmp_path / "big.json").write_text(PROBLEM)
    with pytest.raises(
        BadDocument, match=rf"big\.json: {len(PROBLEM)} bytes; at most 500 are read"
    ):
        load_problem(tmp_path / "big.json")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("loss.values.npy", bytes(100_000))
    with pytest.raises(
        BadDocument, match=r"bomb\.npz: unpacks to 100000 bytes; at most 500 are read"
    ):
        load_problem(tmp_path / "bomb.npz")


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match=r"none\.json: cannot be read: No such file"):
        load_problem(tmp_path / "none.json")
    with pytest.raises(BadDocument, match=r"cannot be read: Is a directory"):
        load_problem(tmp_path)


def test_a_path_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=r"cannot write '.*none/x\.json': No such file.*; name a file in"
    ):
        write(tmp_path / "none" / "x.json", {"a": 1})
    (tmp_path / "x.json").write_text("before")
    with pytest.raises(TypeError, match="object is not written as JSON"):
        write(tmp_path / "x.json", {"a": object()})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"cannot write '.*folder': Is a directory; name a file in"):
        write(tmp_path / "folder", {"a": 1})
    (tmp_path / "folder").rmdir()
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "before"


NPZ: list[tuple[dict[str, Any], str]] = [
    ({"schema": np.array(3)}, r"has schema .*; this reads 'mpsearch/problem/1'"),
    ({"schema": np.array([1, 2])}, r"has schema .*; this reads 'mpsearch/problem/1'"),
    ({"loss.values": np.ones((3, 2))}, r"got an array of shape \(3, 2\) and type float64; wanted numb"),
    ({"loss.values": np.ones((2, 2), complex)}, r"type complex128; wanted numbers"),
    ({"loss.values": np.array([[1, np.inf], [1, 1]])}, r"loss\.values\[0\]\[1\]: got inf; wanted a finite"),
    ({"loss.values": np.full((2, 2), np.nan)}, r"loss\.values\[0\]: masks every option of layer 'a'"),
    ({"loss.values": np.full((2, 2), 1 << 63, np.uint64)}, r"holds a number of 2\^63 or more; wanted less"),
    ({"loss.unit": np.ones(2)}, r"loss\.unit: got an array of shape \(2,\); wanted a text"),
    ({"layers": np.ones(2)}, r"layers: got an array of shape \(2,\); wanted a list"),
    ({"ties": np.ones((1, 2))}, r"ties: got an array of shape \(1, 2\); wanted a list"),
    ({"budgets.size": np.array(3.0)}, r"budgets\.size: got an array of shape \(\); wanted a finite number"),
    ({"loss.values.more": np.ones(2)}, r"array 'loss\.values\.more' stands inside what is no object"),
    ({"loss": np.array("{")}, r"\.loss: is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), NPZ)
def test_a_bad_npz_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    texts = {key: np.array(json.dumps(value)) for key, value in json.loads(PROBLEM).items()}
    given: dict[str, Any] = texts | arrays
    np.savez(tmp_path / "problem.npz", **given)
    with pytest.raises(BadDocument, match=message):
        load_problem(tmp_path / "problem.npz")


def test_an_npz_with_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", allow_pickle=True, schema=np.array([{}], dtype=object))
    with pytest.raises(
        BadDocument, match="is not an npz of texts and numbers: Object arrays cannot"
    ):
        load_problem(tmp_path / "p.npz")


def test_an_npz_that_claims_more_than_memory_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 45, 1 << 10)}
    )
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("loss.values.npy", header.getvalue())
    with pytest.raises(BadDocument, match="is not an npz of texts and numbers: "):
        load_problem(tmp_path / "p.npz")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["a", "b", "int4/int4", "int8/int8", "", "sum", "max", "mpsearch/problem/1"])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a document stands."""
    keys: Any = (
        value.keys()
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    return [here, *(place for key in keys for place in places(value[key], (*here, key)))]


READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "problem": (PROBLEM, lambda document: read_problem(Node(document, "problem"))),
    "table": (TABLE, _table),
}


@pytest.mark.parametrize("kind", READERS)
@given(value=JSON)
def test_any_value_is_read_or_refused(kind: str, value: Any) -> None:
    with contextlib.suppress(BadDocument):
        READERS[kind][1](value)


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_any_change_is_refused_or_read_and_then_fits_the_schema(
    kind: str, data: st.DataObject
) -> None:
    text, reader = READERS[kind]
    document = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(document)[1:]))
        document = changed(
            json.dumps(document), place, copy.deepcopy(data.draw(JSON | st.just(...)))
        )
        if len(places(document)) < 2:
            break
    try:
        reader(document)
    except BadDocument:
        return
    schema(kind).validate(document)


@given(text=st.binary(max_size=60) | st.text(max_size=60))
@example(text="{" + '"a":' * 3)
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    with contextlib.suppress(BadDocument):
        read_problem(parse(text, "text"))


@given(data=st.data())
def test_any_damage_to_an_npz_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    save_problem(read_problem(parse(PROBLEM, "problem")), path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(BadDocument):
        load_problem(path)


def test_reading_a_table_where_a_problem_is_wanted_says_which_schema(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(TABLE)
    with pytest.raises(
        BadDocument, match=r"table\.json: has schema 'mpsearch/table/1'; this reads"
    ):
        load_problem(tmp_path / "table.json")
    assert read(tmp_path / "table.json").value["unit"] == "byte"
