"""What a search gives: an option for every layer, and the frontier such answers make."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from mpsearch.documents import layer_document, read_layers, schema
from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Problem, Solution, Status
from mpsearch.reading import BadDocument, Node, read, write

ALLOCATION = "mpsearch/allocation/1"
FRONTIER = "mpsearch/frontier/1"


class Infeasible(ValueError):
    """No allocation is within every budget.

    Attributes:
        least: For every budgeted cost the least value any allocation has.
    """

    def __init__(self, message: str, least: Mapping[str, float]) -> None:
        """Keep what is achievable beside the message."""
        super().__init__(message)
        self.least = dict(least)


@dataclass(frozen=True)
class Figure:
    """A cost of an allocation, and the budget it was held to."""

    value: float
    unit: str
    limit: float | None = None


@dataclass(frozen=True)
class Baseline:
    """A simple allocation to beat: one option everywhere, or one for each role of layer."""

    layers: Mapping[str, Option]
    loss: float
    cost: Mapping[str, float]
    option: Option | None = None


@dataclass(frozen=True)
class Allocation(Mapping[str, Option]):
    """An option for every layer: ``allocation["layer1.0.conv1"].weight.bits``.

    Attributes:
        layers: The option of each layer.
        modules: The modules of each layer.
        loss: The predicted loss.
        unit: What the loss counts.
        bound: A proven lower bound on the loss of any allocation within the budgets.
        status: How good the answer is proven to be.
        figures: Every cost, with its limit where there is one.
        recipe: How the network is quantized once options are chosen.
        uniform: The best option everywhere that keeps the budgets.
        template: The best choice of one option for each role of layer that keeps the budgets.
        measured: What a really quantized network gave, once verified.
        provenance: Versions, methods, seeds and hashes.
    """

    layers: Mapping[str, Option]
    modules: Mapping[str, tuple[str, ...]]
    loss: float
    unit: str
    bound: float
    status: Status
    figures: Mapping[str, Figure] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    uniform: Baseline | None = None
    template: Baseline | None = None
    measured: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, solution: Solution) -> "Allocation":
        """Name what a solver chose."""
        table = problem.loss
        limits = {budget.cost.name: budget.limit for budget in problem.budgets}
        return cls(
            named(problem, solution.choice),
            {layer.name: layer.modules for layer in table.layers},
            solution.loss,
            table.unit,
            solution.bound,
            solution.status,
            {
                cost.name: Figure(cost.total(solution.choice), cost.unit, limits.get(cost.name))
                for cost in problem.costs
            },
        )

    @property
    def cost(self) -> dict[str, float]:
        """Every cost's value."""
        return {name: figure.value for name, figure in self.figures.items()}

    @property
    def gap(self) -> float:
        """How far the loss may be above the best: ``loss - bound``."""
        return 0.0 if self.loss == self.bound else self.loss - self.bound

    def __getitem__(self, layer: str) -> Option:
        """The option of a layer."""
        if layer not in self.layers:
            there = ", ".join(repr(name) for name in list(self.layers)[:5])
            raise KeyError(f"no layer is named {layer!r}; there are {there}, ...")
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        """The layers' names."""
        return iter(self.layers)

    def __len__(self) -> int:
        """How many layers."""
        return len(self.layers)

    def by_module(self) -> dict[str, Option]:
        """The option of every module: what an exporter writes."""
        return {m: option for name, option in self.items() for m in self.modules[name]}

    def document(self) -> dict[str, Any]:
        """The allocation as ``mpsearch/allocation/1``."""
        return {
            "schema": ALLOCATION,
            "layers": {n: _layer_document(o, self.modules[n]) for n, o in self.items()},
            "loss": {
                "predicted": self.loss,
                "unit": self.unit,
                "bound": self.bound if math.isfinite(self.bound) else None,
                "status": self.status.name.lower(),
            },
            "cost": {
                name: {"value": figure.value, "unit": figure.unit, "limit": figure.limit}
                for name, figure in self.figures.items()
            },
            "recipe": self.recipe and dict(self.recipe),
            "baselines": {
                "uniform": _baseline_document(self.uniform),
                "template": _baseline_document(self.template),
            },
            "measured": self.measured and dict(self.measured),
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> "Allocation":
        """Read what :meth:`save` wrote; ``BadDocument`` names what is wrong, and where."""
        return read_allocation(read(path))


def named(problem: Problem, choice: Sequence[int]) -> dict[str, Option]:
    """A choice with the names of its layers and options."""
    table = problem.loss
    return {
        layer.name: table.options[column]
        for layer, column in zip(table.layers, choice, strict=True)
    }


def _layer_document(option: Option, modules: Sequence[str]) -> dict[str, Any]:
    body: dict[str, Any] = {"option": str(option)}
    for role, its_format in option.formats.items():
        body[role] = str(its_format)
        body[f"{role}_bits"] = its_format.bits
    return body | {"modules": list(modules)}


def _baseline_document(baseline: Baseline | None) -> dict[str, Any] | None:
    if baseline is None:
        return None
    head = {} if baseline.option is None else {"option": str(baseline.option)}
    body = {"loss": baseline.loss, "cost": dict(baseline.cost)}
    return head | body | {"layers": {name: str(option) for name, option in baseline.layers.items()}}


def read_allocation(node: Node) -> Allocation:
    """The allocation a document states."""
    members = schema(node, ALLOCATION).object(
        "schema layers loss cost", "recipe baselines measured provenance"
    )
    layers, modules = {}, {}
    for name, entry in members["layers"].members().items():
        layers[name], modules[name] = _read_layer(entry, name)
    if not layers:
        raise members["layers"].error("at least one layer")
    loss = members["loss"].object("predicted unit bound status")
    statuses = {status.name.lower(): status for status in Status}
    status = list(statuses.values())[
        loss["status"].one_of({name: i for i, name in enumerate(statuses)}, "status")
    ]
    baselines = _optional(members, "baselines")
    kinds = baselines.object("", "uniform template") if baselines else {}
    return Allocation(
        layers,
        modules,
        loss["predicted"].number(),
        loss["unit"].text(),
        -math.inf if loss["bound"].none() else loss["bound"].number(),
        status,
        {name: _read_figure(entry) for name, entry in members["cost"].members().items()},
        _free(members, "recipe"),
        _read_baseline(kinds.get("uniform"), layers),
        _read_baseline(kinds.get("template"), layers),
        _free(members, "measured"),
        _free(members, "provenance") or {},
    )


def _optional(members: Mapping[str, Node], key: str) -> Node | None:
    node = members.get(key)
    return None if node is None or node.none() else node


def _free(members: Mapping[str, Node], key: str) -> dict[str, Any] | None:
    """An object whose keys are free."""
    node = _optional(members, key)
    return None if node is None else {k: inner.value for k, inner in node.members().items()}


def _read_layer(node: Node, name: str) -> tuple[Option, tuple[str, ...]]:
    roles = "weight activation k v"
    known = f"{roles} " + " ".join(f"{role}_bits" for role in roles.split()) + " modules"
    members = node.object("option", known)
    option = Option.read(members["option"].text())
    expected = _layer_document(option, ())
    for key in known.split():
        if key in members and key != "modules" and members[key].value != expected.get(key):
            raise members[key].error(f"{expected.get(key)!r}, as option {str(option)!r} says")
    given = members["modules"].items() if "modules" in members else []
    return option, tuple(module.text() for module in given) or (name,)


def _read_figure(node: Node) -> Figure:
    members = node.object("value unit", "limit")
    limit = _optional(members, "limit")
    return Figure(
        members["value"].number(), members["unit"].text(), None if limit is None else limit.number()
    )


def _read_baseline(node: Node | None, layers: Mapping[str, Option]) -> Baseline | None:
    if node is None or node.none():
        return None
    members = node.object("loss cost", "option layers")
    option = Option.read(members["option"].text()) if "option" in members else None
    if "layers" in members:
        entries = members["layers"].members()
        if entries.keys() != layers.keys():
            raise BadDocument(f"{members['layers'].place}: names other layers than the allocation")
        chosen = {name: Option.read(entry.text()) for name, entry in entries.items()}
    elif option is not None:
        chosen = dict.fromkeys(layers, option)
    else:
        raise BadDocument(f"{node.place}: has neither 'option' nor 'layers'; one is required")
    cost = {name: entry.number() for name, entry in members["cost"].members().items()}
    return Baseline(chosen, members["loss"].number(), cost, option)


@dataclass(frozen=True)
class Point:
    """One allocation of a frontier: an option index per layer."""

    choice: tuple[int, ...]
    loss: float
    bound: float
    cost: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Frontier(Sequence[Allocation]):
    """Allocations none of which is beaten in both loss and cost, cheapest first.

    Attributes:
        layers: The layers a point chooses for.
        options: What it chooses from.
        unit: What the loss counts.
        points: Cheapest first.
        units: What each cost counts, where known.
        span: Sum over layers of (largest - smallest loss), the scale of gaps.
        recipe: How the network is quantized once options are chosen.
        provenance: Versions, methods, seeds and hashes.
    """

    layers: tuple[Layer, ...]
    options: tuple[Option, ...]
    unit: str
    points: tuple[Point, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    span: float = 0.0
    recipe: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many points."""
        return len(self.points)

    @overload
    def __getitem__(self, index: int) -> Allocation: ...
    @overload
    def __getitem__(self, index: slice) -> "Frontier": ...
    def __getitem__(self, index: int | slice) -> "Allocation | Frontier":
        """A point as an allocation."""
        if isinstance(index, slice):
            return replace(self, points=self.points[index])
        point = self.points[index]
        closed = point.loss - point.bound <= 1e-9 * self.span
        return Allocation(
            {n.name: self.options[c] for n, c in zip(self.layers, point.choice, strict=True)},
            {layer.name: layer.modules for layer in self.layers},
            point.loss,
            self.unit,
            point.bound,
            Status.OPTIMAL if closed else Status.FEASIBLE,
            {name: Figure(v, self.units.get(name, name)) for name, v in point.cost.items()},
            self.recipe,
            provenance=self.provenance,
        )

    def document(self) -> dict[str, Any]:
        """The frontier as ``mpsearch/frontier/1``."""
        return {
            "schema": FRONTIER,
            "layers": [layer_document(layer) for layer in self.layers],
            "options": [str(option) for option in self.options],
            "loss": {"unit": self.unit},
            "points": [
                {
                    "choice": list(p.choice),
                    "loss": p.loss,
                    "bound": p.bound if math.isfinite(p.bound) else None,
                    "cost": dict(p.cost),
                }
                for p in self.points
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> "Frontier":
        """Read what :meth:`save` wrote; ``BadDocument`` names what is wrong, and where."""
        return read_frontier(read(path))


def read_frontier(node: Node) -> Frontier:
    """The frontier a document states."""
    members = schema(node, FRONTIER).object("schema layers options loss points")
    layers, options = read_layers(members)
    unit = members["loss"].object("unit")["unit"].text()
    points = tuple(_read_point(p, len(layers), len(options)) for p in members["points"].items())
    for earlier, later, entry in zip(
        points, points[1:], members["points"].items()[1:], strict=False
    ):
        if len(later.cost) == 1 and not (
            _only(later) > _only(earlier) and later.loss < earlier.loss
        ):
            raise BadDocument(
                f"{entry.place}: is beaten by the point before it; points stand cheapest first,"
                " each with less loss than the one before"
            )
    return Frontier(layers, options, unit, points)


def _only(point: Point) -> float:
    return next(iter(point.cost.values()))


def _read_point(node: Node, rows: int, columns: int) -> Point:
    members = node.object("choice loss bound cost")
    choice = []
    for entry in members["choice"].items(exactly=rows):
        if entry.count() >= columns:
            raise entry.error(f"an option's index, below {columns}")
        choice.append(entry.count())
    bound = -math.inf if members["bound"].none() else members["bound"].number()
    cost = {name: entry.number() for name, entry in members["cost"].members().items()}
    return Point(tuple(choice), members["loss"].number(), bound, cost)
