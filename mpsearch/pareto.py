"""A frontier: allocations none of which is beaten, cheapest first, and what it can be asked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, overload

import numpy as np

from mpsearch.allocation import Allocation, Figure, Infeasible
from mpsearch.documents import layer_document, read_layers, schema
from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import OPTIMAL_GAP, RELATIVE_TOLERANCE, Status
from mpsearch.reading import BadDocument, Node, read, write
from mpsearch.tables import Floats

FRONTIER = "mpsearch/frontier/1"


@dataclass(frozen=True)
class Point:
    """One allocation of a frontier.

    Attributes:
        choice: An option index per layer.
        loss: Its loss.
        bound: No choice that costs at most as much loses less.
        cost: Its total of every cost.
        between: No choice that costs less than the frontier's next point loses less; the bound of
            that next point where nobody has proven more.
    """

    choice: tuple[int, ...]
    loss: float
    bound: float
    cost: Mapping[str, float]
    between: float | None = None


@dataclass(frozen=True, eq=False)
class Frontier(Sequence[Allocation]):
    """Allocations none of which is beaten in loss and in every cost it lies along, cheapest first.

    Attributes:
        layers: The layers a point chooses for.
        options: What it chooses from.
        unit: What the loss counts.
        points: Cheapest first.
        units: What each cost counts, where known.
        span: Sum over layers of (largest - smallest loss), the scale of gaps.
        recipe: How the network is quantized once options are chosen.
        provenance: Versions, methods, seeds and hashes.
        along: The costs it lies along; the others of a point are only told. By default all.
    """

    layers: tuple[Layer, ...]
    options: tuple[Option, ...]
    unit: str
    points: tuple[Point, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    span: float = 0.0
    recipe: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    along: tuple[str, ...] = ()

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
            return self._some(range(*index.indices(len(self))))
        point = self.points[index]
        closed = point.loss - point.bound <= OPTIMAL_GAP * self.span
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

    def _some(self, kept: range) -> "Frontier":
        """Some points; what lies between two of them is bounded anew."""
        points = [self.points[i] for i in kept]
        if len(self.costs) == 1 and kept.step > 1:
            last = [self.between(min(i + kept.step, len(self)) - 1) for i in kept]
            points = [replace(p, between=b) for p, b in zip(points, last, strict=True)]
        return replace(self, points=tuple(points))

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of the costs it lies along."""
        return self.along or tuple(self.points[0].cost if self.points else ())

    def at(self, **limits: float) -> Allocation:
        """The least loss within every limit given: ``front.at(size=120_000)``.

        :class:`Infeasible` where no point is within them, with the least value of each;
        ``LookupError`` for a cost it does not have.
        """
        known = self.points[0].cost if self.points else {}
        for name in limits.keys() - known.keys():
            there = ", ".join(repr(k) for k in known) or "none"
            raise LookupError(f"no cost is named {name!r}; there are {there}")
        inside = [
            i
            for i, p in enumerate(self.points)
            if all(_in(p.cost[n], x) for n, x in limits.items())
        ]
        if not inside:
            least = {n: min((p.cost[n] for p in self.points), default=math.inf) for n in limits}
            why = ", ".join(f"{n}={limits[n]} (the least is {least[n]})" for n in limits)
            raise Infeasible(
                f"no point of the frontier is within {why or 'it: it has no points'};"
                " give larger limits",
                least,
            )
        found = self[min(inside, key=lambda i: self.points[i].loss)]
        figures = {n: replace(f, limit=limits.get(n)) for n, f in found.figures.items()}
        return replace(found, figures=figures)

    def knee(self) -> Allocation:
        """The point farthest below the chord between the ends.

        Every objective is scaled so that the frontier reaches from 0 to 1: the knee is the point
        of least sum of them (with three, farthest below the plane through the three ends).
        """
        values = self._objectives()
        low, high = values.min(axis=0), values.max(axis=0)
        shares = (values - low) / np.where(high > low, high - low, 1.0)
        return self[int(shares.sum(axis=1).argmin())]

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """What the points beat: the volume between them and a reference worse than they.

        The reference names ``loss`` and every cost along the frontier; by default the largest
        value of each over the points. In the product of the objectives' units, exact but for
        rounding.
        """
        values = self._objectives()
        names = ("loss", *self.costs)
        if reference is not None and set(reference) != set(names):
            raise ValueError(
                f"a reference names {', '.join(names)}; got {', '.join(reference) or 'nothing'}"
            )
        worst = (
            values.max(axis=0)
            if reference is None
            else np.array([reference[name] for name in names], np.float64)
        )
        return _volume(worst - values[(values < worst).all(axis=1)])

    def _objectives(self) -> Floats:
        """(P, 1 + costs) the loss and the costs of every point."""
        if not self.points:
            raise ValueError("the frontier has no points; give looser budgets")
        rows = [[p.loss, *(p.cost[name] for name in self.costs)] for p in self.points]
        return np.array(rows, np.float64)

    def between(self, index: int) -> float:
        """The least loss that any choice can have that costs less than the next point.

        Between two points the true frontier lies from here up to the point's loss; nothing is
        left out where both are the same. At the last point it holds for every cost.
        """
        if len(self.costs) != 1:
            raise ValueError(
                f"what lies between two points is known along one cost; this frontier lies along"
                f" {', '.join(self.costs) or 'none'}"
            )
        place = range(len(self.points))[index]
        point = self.points[place]
        if point.between is not None:
            return point.between
        return self.points[min(place + 1, len(self) - 1)].bound

    def plot(self, cost: str | None = None, *, width: float = 960, height: float = 520) -> str:
        """An SVG picture of loss against a cost, by default the first it lies along."""
        draw = import_module("mpsearch.report.alone").frontier_alone  # report stands above
        picture: str = draw(self, cost or self.costs[0], width, height)
        return picture

    def document(self) -> dict[str, Any]:
        """The frontier as ``mpsearch/frontier/1``."""
        return {
            "schema": FRONTIER,
            "layers": [layer_document(layer) for layer in self.layers],
            "options": [str(option) for option in self.options],
            "loss": {"unit": self.unit},
            **({"along": list(self.along)} if self.along else {}),
            "points": [_point_document(point) for point in self.points],
        }

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write(path, self.document())

    @classmethod
    def load(cls, path: str | Path) -> "Frontier":
        """Read what :meth:`save` wrote; ``BadDocument`` names what is wrong, and where."""
        return read_frontier(read(path))


def _in(value: float, limit: float) -> bool:
    """As budgets are kept: exactly for integers, to 1e-12 for real numbers."""
    if isinstance(value, int):
        return value <= limit
    return value <= limit + RELATIVE_TOLERANCE * abs(limit)


def _volume(sides: Floats) -> float:
    """The volume of the union of boxes from 0 to each row of sides (all above zero).

    Sliced along the first side, the slice between two boxes' ends being the union of those that
    reach farther, one side less (While, Hingston, Barone and Huband, "A Faster Algorithm for
    Calculating Hypervolume", IEEE Transactions on Evolutionary Computation 10, 2006).
    """
    sides = sides[np.argsort(-sides[:, 0], kind="stable")]
    depth = sides[:, 0] - np.append(sides[1:, 0], 0.0)
    if sides.shape[1] == 2:
        return math.fsum(depth * np.maximum.accumulate(sides[:, 1]))
    largest, area, slices = sides[:0, 1:], 0.0, []
    for thick, side in zip(depth.tolist(), sides[:, 1:], strict=True):
        if not (largest >= side).all(axis=1).any():
            largest = np.vstack([largest[~(largest <= side).all(axis=1)], side])
            area = _volume(largest)
        slices.append(thick * area)
    return math.fsum(slices)


def _point_document(point: Point) -> dict[str, Any]:
    body: dict[str, Any] = {
        "choice": list(point.choice),
        "loss": point.loss,
        "bound": _finite(point.bound),
        "cost": dict(point.cost),
    }
    return body if point.between is None else body | {"between": _finite(point.between)}


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def read_frontier(node: Node) -> Frontier:
    """The frontier a document states."""
    members = schema(node, FRONTIER).object("schema layers options loss points", "along")
    layers, options = read_layers(members)
    unit = members["loss"].object("unit")["unit"].text()
    entries = members["points"].items()
    points = tuple(_read_point(p, len(layers), len(options)) for p in entries)
    along = tuple(name.text() for name in members["along"].items()) if "along" in members else ()
    for point, entry in zip(points, entries, strict=True):
        for name in (name for name in along if name not in point.cost):
            raise entry.error(f"a cost {name!r}, which the frontier lies along")
    front = Frontier(layers, options, unit, points, along=along)
    for earlier, later, entry in zip(points, points[1:], entries[1:], strict=False):
        names = along or tuple(later.cost)
        if len(names) == 1 and not (
            later.cost[names[0]] > earlier.cost.get(names[0], -math.inf)
            and later.loss < earlier.loss
        ):
            raise BadDocument(
                f"{entry.place}: is beaten by the point before it; points stand cheapest first,"
                " each with less loss than the one before"
            )
    return front


def _read_point(node: Node, rows: int, columns: int) -> Point:
    members = node.object("choice loss bound cost", "between")
    choice = []
    for entry in members["choice"].items(exactly=rows):
        if entry.count() >= columns:
            raise entry.error(f"an option's index, below {columns}")
        choice.append(entry.count())
    cost = {name: entry.number() for name, entry in members["cost"].members().items()}
    return Point(
        tuple(choice),
        members["loss"].number(),
        _read_bound(members["bound"]),
        cost,
        _read_bound(members["between"]) if "between" in members else None,
    )


def _read_bound(node: Node) -> float:
    return -math.inf if node.none() else node.number()
