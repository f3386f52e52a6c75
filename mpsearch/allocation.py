"""What a search gives: an option for every layer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsearch.documents import schema
from mpsearch.formats import Option
from mpsearch.problem import Problem, Solution, Status
from mpsearch.reading import BadDocument, Node, read, write

if TYPE_CHECKING:
    from mpsearch.conflict import Conflict

ALLOCATION = "mpsearch/allocation/1"


class Infeasible(ValueError):
    """No allocation is within every budget.

    Attributes:
        least: For every budgeted cost the least value any allocation has.
        conflict: Which budgets conflict, what holds them up, and what would do; where that was
            looked for.
    """

    def __init__(
        self, message: str, least: Mapping[str, float], conflict: "Conflict | None" = None
    ) -> None:
        """Keep what is achievable beside the message."""
        super().__init__(message)
        self.least = dict(least)
        self.conflict = conflict


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
        """The option of every module: what an exporter writes.

        Raises:
            ValueError: Layers that share a module, as its channels do: it has no option of its own.
        """
        owners: dict[str, str] = {}
        for name in self:
            for module in self.modules[name]:
                if owners.setdefault(module, name) != name:
                    raise ValueError(
                        f"layers {owners[module]!r} and {name!r} are parts of module {module!r},"
                        " which has no option of its own; run such a mix by mpsearch.quant.Mixed"
                    )
        return {module: self[name] for module, name in owners.items()}

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
