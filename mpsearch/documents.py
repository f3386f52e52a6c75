"""Tables and problems as JSON or npz documents (``mpsearch/table/1``, ``mpsearch/problem/1``).

Writing then reading gives the same numbers back, to the last bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Constraint, Interaction, Problem
from mpsearch.reading import BadDocument, Node, read, write
from mpsearch.tables import Cost, Mask, Stages, Table

T = TypeVar("T")
TABLE = "mpsearch/table/1"
PROBLEM = "mpsearch/problem/1"
_LAYER = "params macs kind role shapes inputs outputs modules"
_NUMBERS = "unit values stderr fixed reference reduce stages name notes"


def schema(node: Node, wanted: str) -> Node:
    """The node, once its ``schema`` is the wanted one."""
    members = node.members()
    found = members["schema"].value if "schema" in members else None
    if not isinstance(found, str) or found != wanted:
        raise BadDocument(f"{node.place}: has schema {found!r}; this reads {wanted!r}")
    return node


@dataclass(frozen=True)
class _Names:
    """The layers and options a document speaks of, by name."""

    layers: tuple[Layer, ...]
    options: tuple[Option, ...]
    rows: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, int] = field(default_factory=dict)

    def terms(self, node: Node) -> tuple[tuple[int, int, float], ...]:
        """``[[layer, option, number], ...]`` as indices."""
        return tuple(
            (row.one_of(self.rows, "layer"), self.column(option), number.number())
            for row, option, number in (term.items(exactly=3) for term in node.items())
        )

    def column(self, node: Node) -> int:
        """The index of an option, however it is written."""
        known = dict(self.columns)
        text = node.text()
        return (
            known[text]
            if text in known
            else Node(str(Option.read(text)), node.place).one_of(known, "option")
        )


def _names(members: Mapping[str, Node]) -> _Names:
    layers = tuple(_layer(node) for node in members["layers"].items(least=1))
    options = tuple(Option.read(node.text()) for node in members["options"].items(least=1))
    for what, names in (("layer", [n.name for n in layers]), ("option", [str(o) for o in options])):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BadDocument(
                f"{members[what + 's'].place}: {what} {twice!r} is named twice; name it once"
            )
    return _Names(
        layers,
        options,
        {layer.name: i for i, layer in enumerate(layers)},
        {str(option): i for i, option in enumerate(options)},
    )


def read_layers(members: Mapping[str, Node]) -> tuple[tuple[Layer, ...], tuple[Option, ...]]:
    """The layers and options of a document, each named once."""
    names = _names(members)
    return names.layers, names.options


def _layer(node: Node) -> Layer:
    members = node.object("name", _LAYER)
    texts = {key: members[key].text() for key in ("name", "kind", "role") if key in members}
    counts = {
        key: members[key].count()
        for key in ("params", "macs", "inputs", "outputs")
        if key in members
    }
    shapes = tuple(tuple(n.count() for n in shape.items()) for shape in _items(members, "shapes"))
    modules = tuple(n.text() for n in _items(members, "modules"))
    return Layer(**texts, **counts, shapes=shapes, members=modules)  # type: ignore[arg-type]


def _items(members: Mapping[str, Node], key: str) -> list[Node]:
    return members[key].items() if key in members and not members[key].none() else []


def layer_document(layer: Layer) -> dict[str, Any]:
    """A layer as a problem lists it; what is not known is left out."""
    body = {
        "name": layer.name,
        "params": layer.params,
        "macs": layer.macs,
        "kind": layer.kind if layer.kind != "layer" else None,
        "role": layer.role if layer.role != "layer" else None,
        "shapes": [list(shape) for shape in layer.shapes],
        "inputs": layer.inputs,
        "outputs": layer.outputs,
        "modules": list(layer.members),
    }
    return {key: value for key, value in body.items() if value or key == "name"}


def _cost(node: Node, name: str, names: _Names) -> Cost:
    members = node.object("" if name == "loss" else "unit", _NUMBERS)
    unit = members["unit"].text() if "unit" in members else name
    fixed = members["fixed"].number() if "fixed" in members else 0
    given = members.get("reference")
    reference = None if given is None or given.none() else given.number()
    if "stages" not in members and "values" not in members:
        raise BadDocument(f"{node.place}: has no 'values'; it is required")
    if "stages" not in members:
        return _table(members, name, names, unit, fixed, reference)
    for key in ("values", "stderr", "reduce", "notes"):
        if key in members:
            raise BadDocument(f"{node.place}: has both 'stages' and {key!r}; give one")
    stages = tuple(names.terms(stage) for stage in members["stages"].items(least=1))
    return Stages(names.layers, names.options, stages, unit, name, fixed, reference)


def _table(
    members: Mapping[str, Node],
    name: str,
    names: _Names,
    unit: str,
    fixed: float,
    reference: float | None,
) -> Table:
    shape = (len(names.layers), len(names.options))
    values, allowed = members["values"].matrix(*shape)
    if not allowed.any(axis=1).all():
        row = int((~allowed.any(axis=1)).argmax())
        raise BadDocument(
            f"{members['values'].place}[{row}]: masks every option of layer"
            f" {names.layers[row].name!r}; leave it one"
        )
    stderr = None
    if "stderr" in members and not members["stderr"].none():
        stderr = members["stderr"].matrix(*shape)[0].astype(np.float64)
        if (stderr < 0).any():
            raise BadDocument(f"{members['stderr'].place}: holds a negative number; wanted none")
    reduce = "sum"
    if "reduce" in members:
        reduce = ("sum", "max")[members["reduce"].one_of({"sum": 0, "max": 1}, "reduction")]
    return Table(
        names.layers,
        names.options,
        values,
        unit,
        name,
        stderr,
        allowed,
        fixed,
        reference,
        reduce,  # type: ignore[arg-type]
        _notes(members, names),
    )


def _notes(members: Mapping[str, Node], names: _Names) -> dict[str, Mask]:
    """``{text: [[layer, option], ...]}`` as masks."""
    notes: dict[str, Mask] = {}
    for text, entries in members["notes"].members().items() if "notes" in members else ():
        notes[text] = np.zeros((len(names.layers), len(names.options)), bool)
        for row, option in (entry.items(exactly=2) for entry in entries.items()):
            notes[text][row.one_of(names.rows, "layer"), names.column(option)] = True
    return notes


def cost_document(cost: Cost) -> dict[str, Any]:
    """A table or stages as a problem holds them."""
    body: dict[str, Any] = {"unit": cost.unit}
    if isinstance(cost, Stages):
        body["stages"] = [
            [
                [cost.layers[row].name, str(cost.options[column]), value]
                for row, column, value in stage
            ]
            for stage in cost.stages
        ]
    else:
        full = bool(cost.allowed.all())
        body["values"] = cost.values if full else _masked(cost.values, cost.allowed)
        if cost.stderr is not None:
            body["stderr"] = cost.stderr
        if cost.reduce != "sum":
            body["reduce"] = cost.reduce
        notes = {text: _entries(cost, where) for text, where in cost.notes.items()}
        body |= {"notes": notes} if notes else {}
    if cost.fixed:
        body["fixed"] = cost.fixed
    if cost.reference is not None:
        body["reference"] = cost.reference
    return body


def _entries(table: Table, where: Mask) -> list[list[str]]:
    return [[table.layers[r].name, str(table.options[c])] for r, c in np.argwhere(where).tolist()]


def _masked(values: np.ndarray[Any, Any], allowed: Mask) -> Any:
    return [
        [x if ok else None for x, ok in zip(row, oks, strict=True)]
        for row, oks in zip(values.tolist(), allowed.tolist(), strict=True)
    ]


def save_table(table: Cost, path: str | Path) -> None:
    """Write a table or stages of a cost."""
    write(
        path,
        _headed(TABLE, table.layers, table.options) | {"name": table.name} | cost_document(table),
    )


def load_table(path: str | Path) -> Cost:
    """Read what :func:`save_table` wrote; ``BadDocument`` names what is wrong, and where."""
    return read_table(read(path))


def read_table(node: Node) -> Cost:
    """The table or stages a document states."""
    members = schema(node, TABLE).object("schema layers options unit", _NUMBERS)
    inner = {key: value.value for key, value in members.items() if key in _NUMBERS.split()}
    name = members["name"].text() if "name" in members else "loss"
    return _valid(node, lambda: _cost(Node(inner, node.place), name, _names(members)))


def _headed(name: str, layers: Sequence[Layer], options: Sequence[Option]) -> dict[str, Any]:
    return {
        "schema": name,
        "layers": [layer_document(layer) for layer in layers],
        "options": [str(option) for option in options],
    }


def _valid(node: Node, make: Callable[[], T]) -> T:
    """What ``make`` makes; a record's own refusal gets the document's name in front."""
    try:
        return make()
    except BadDocument:
        raise
    except (ValueError, OverflowError) as reason:
        raise BadDocument(f"{node.place}: {reason}") from None


def problem_document(
    problem: Problem, provenance: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A problem as a document; ``provenance`` says where it came from and changes nothing."""
    loss = problem.loss
    layer, option = [n.name for n in loss.layers], [str(o) for o in loss.options]
    body = _headed(PROBLEM, loss.layers, loss.options)
    body["loss"] = cost_document(loss)
    body["costs"] = {cost.name: cost_document(cost) for cost in problem.costs}
    body["budgets"] = {budget.cost.name: budget.limit for budget in problem.budgets}
    body["ties"] = [[layer[row] for row in tie] for tie in problem.ties]
    body["constraints"] = [
        {
            "name": c.name,
            "terms": [[layer[row], option[column], number] for row, column, number in c.terms],
            "min": c.least,
            "max": c.most,
        }
        for c in problem.constraints
    ]
    body["interactions"] = [
        [layer[i.first], option[i.first_option], layer[i.second], option[i.second_option], i.loss]
        for i in problem.interactions
    ]
    body["provenance"] = dict(provenance or {})
    return {key: value for key, value in body.items() if value not in ({}, [])}


def save_problem(
    problem: Problem, path: str | Path, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a problem; ``.npz`` for large ones."""
    write(path, problem_document(problem, provenance))


def load_problem(path: str | Path) -> Problem:
    """Read a problem; ``BadDocument`` names what is wrong, and where."""
    return read_problem(read(path))


def load_provenance(path: str | Path) -> dict[str, Any]:
    """What a problem says of where it came from."""
    members = schema(read(path), PROBLEM).members()
    return dict(members["provenance"].value) if "provenance" in members else {}


def read_problem(node: Node) -> Problem:
    """The problem a document states."""
    members = schema(node, PROBLEM).object(
        "schema layers options loss",
        "costs budgets ties allowed constraints interactions provenance",
    )
    if "provenance" in members:
        members["provenance"].members()
    return _valid(node, lambda: _problem(members))


def _problem(members: Mapping[str, Node]) -> Problem:
    names = _names(members)
    loss = _cost(members["loss"], "loss", names)
    if not isinstance(loss, Table):
        raise members["loss"].error("a table of 'values'")
    costs = {
        name: _cost(node, name, names)
        for name, node in (members["costs"].members() if "costs" in members else {}).items()
    }
    return Problem(
        _allowed(loss, members.get("allowed"), names),
        tuple(_budgets(members.get("budgets"), costs)),
        tuple(costs.values()),
        tuple(_tie(node, names) for node in _items(members, "ties")),
        tuple(_constraint(node, names) for node in _items(members, "constraints")),
        tuple(_interactions(members, names)),
    )


def _allowed(loss: Table, node: Node | None, names: _Names) -> Table:
    if node is None:
        return loss
    mask = loss.allowed.copy()
    for layer, options in node.members().items():
        row = Node(layer, options.place).one_of(names.rows, "layer")
        columns = [names.column(option) for option in options.items(least=1)]
        keep = np.zeros(mask.shape[1], bool)
        keep[columns] = True
        mask[row] &= keep
        if not mask[row].any():
            raise BadDocument(f"{options.place}: layer {layer!r} may take no option; allow it one")
    return replace(loss, values=np.where(mask, loss.values, 0), allowed=mask)


def _budgets(node: Node | None, costs: Mapping[str, Cost]) -> list[Budget]:
    if node is None:
        return []
    budgets = []
    for name, limit in node.members().items():
        if name not in costs:
            there = ", ".join(repr(c) for c in costs) or "none"
            raise BadDocument(f"{limit.place}: no cost is named {name!r}; there are {there}")
        budgets.append(Budget(costs[name], limit.number()))
    return budgets


def _tie(node: Node, names: _Names) -> tuple[int, ...]:
    return tuple(layer.one_of(names.rows, "layer") for layer in node.items(least=2))


def _constraint(node: Node, names: _Names) -> Constraint:
    members = node.object("name terms", "min max")
    ends = [
        None if key not in members or members[key].none() else members[key].number()
        for key in ("min", "max")
    ]
    return Constraint(members["name"].text(), names.terms(members["terms"]), *ends)


def _interactions(members: Mapping[str, Node], names: _Names) -> list[Interaction]:
    found: dict[frozenset[tuple[int, int]], Interaction] = {}
    for node in _items(members, "interactions"):
        one, o1, two, o2, loss = node.items(exactly=5)
        first, second = one.one_of(names.rows, "layer"), two.one_of(names.rows, "layer")
        if first == second:
            raise BadDocument(
                f"{node.place}: names layer {one.value!r} twice; a pair is of different layers"
            )
        pair = Interaction(first, names.column(o1), second, names.column(o2), loss.number())
        key = frozenset({(first, pair.first_option), (second, pair.second_option)})
        if key in found:
            raise BadDocument(f"{node.place}: this pair stands before; give each pair once")
        found[key] = pair
    return list(found.values())
