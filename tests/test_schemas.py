"""The published JSON Schemas agree with the readers, on what we write and on what is wrong."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import mpsearch as mp
from mpsearch.allocation import read_allocation
from mpsearch.documents import problem_document, read_problem
from mpsearch.pareto import read_frontier
from mpsearch.reading import BadDocument, Node, parse

FOLDER = Path(mp.__file__).parent / "schemas"
OPTIONS = mp.options("w4a4", "w8a8")
PROBLEM: dict[str, Any] = {
    "schema": "mpsearch/problem/1",
    "layers": [{"name": "a", "params": 100, "macs": 900}, {"name": "b"}],
    "options": ["int4/int4", "int8/int8"],
    "loss": {"unit": "loss", "values": [[0.3, 0.1], [0.2, 0.05]], "stderr": None},
    "costs": {
        "size": {"unit": "byte", "values": [[50, 100], [20, None]], "fixed": 10, "reference": 660},
        "sram": {
            "unit": "byte",
            "stages": [
                [["a", "int4/int4", 30], ["a", "int8/int8", 60], ["b", "int8/int8", 9]],
                [["b", "int4/int4", 8], ["b", "int8/int8", 16]],
            ],
        },
    },
    "budgets": {"size": 150, "sram": 80},
    "ties": [["a", "b"]],
    "allowed": {"b": ["int4/int4", "int8/int8"]},
    "constraints": [{"name": "one", "terms": [["a", "int4/int4", 1]], "min": 1, "max": None}],
    "interactions": [["a", "int4/int4", "b", "int8/int8", 0.01]],
}


def schema(name: str) -> Any:
    found = json.loads((FOLDER / f"{name}-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def written() -> dict[str, dict[str, Any]]:
    """One document of each kind, as we write it."""
    layers = (mp.Layer("a", 9, 90, "linear", "mlp", ((3, 3),), 3, 3, ("a", "c")), mp.Layer("b", 4))
    loss = mp.Table(layers, OPTIONS, np.array([[0.3, 0.1], [0.2, 0.05]]), "nats")
    size = mp.Table(
        layers,
        OPTIONS,
        np.array([[5, 9], [2, 4]]),
        "byte",
        "size",
        reference=52,
        notes={"runs as 8 bits": np.array([[True, False], [False, False]])},
    )
    best = mp.solve(loss, {size: 11}, solver="exhaustive")
    front = mp.frontier(loss, size, solver="exhaustive")
    problem = mp.Problem(loss, (mp.Budget(size, 11),))
    plain = json.loads(json.dumps(problem_document(problem), default=lambda array: array.tolist()))
    return {"allocation": best.document(), "frontier": front.document(), "problem": plain}


READERS: dict[str, Callable[[Node], Any]] = {
    "allocation": read_allocation,
    "frontier": read_frontier,
    "problem": read_problem,
}


@pytest.mark.parametrize("name", READERS)
def test_what_we_write_fits_its_schema_and_is_read_back(name: str) -> None:
    document = written()[name]
    schema(name).validate(document)
    READERS[name](parse(json.dumps(document), name))


def test_the_problem_of_the_design_fits() -> None:
    schema("problem").validate(PROBLEM)
    read_problem(parse(json.dumps(PROBLEM), "problem"))


def test_a_table_fits_with_and_without_masks(tmp_path: Path) -> None:
    layers = (mp.Layer("a"), mp.Layer("b"))
    for allowed in (np.ones((2, 2), bool), np.array([[True, False], [True, True]])):
        table = mp.Table(layers, OPTIONS, np.ones((2, 2)), "nats", allowed=allowed)
        mp.save_table(table, tmp_path / "table.json")
        schema("table").validate(json.loads((tmp_path / "table.json").read_text()))
        again = mp.load_table(tmp_path / "table.json")
        assert isinstance(again, mp.Table)
        assert (again.allowed == allowed).all()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "mpsearch/problem/2"),
        (("layers",), []),
        (("layers", 0, "params"), -1),
        (("layers", 0, "bits"), 3),
        (("layers", 0, "name"), ""),
        (("options",), ["a", "a"]),
        (("loss", "values", 0, 0), "x"),
        (("loss", "extra"), 1),
        (("costs", "size", "reduce"), "mean"),
        (("costs", "size", "stages"), []),
        (("costs", "sram", "stages"), []),
        (("budgets", "size"), None),
        (("ties",), [["a"]]),
        (("allowed", "b"), []),
        (("constraints", 0, "terms"), [["a", 1]]),
        (("interactions", 0), ["a", "b"]),
        (("provenance",), []),
        (("more",), 1),
    ],
)
def test_schema_and_reader_refuse_the_same(place: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(PROBLEM)
    at: Any = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    assert not schema("problem").is_valid(document)
    with pytest.raises(BadDocument):
        read_problem(parse(json.dumps(document), "problem"))
