"""A table from a file: the user's own measurements, interpolated between shapes.

The file is CSV, or JSON ``{"columns": [...], "rows": [[...], ...]}``. ``option`` names what was
measured. Rows are found by ``layer``, or by shape: ``m``, ``n``, ``k`` (see
:class:`mpsearch.hwmodels.gemm.Gemm`), ``cin``, ``cout``, ``height`` and ``groups``, ``kernel``,
``stride``, ``padding``, of which only the last four must be met exactly. Every other column is a
cost with its unit, such as ``latency [ms]``::

    m,n,k,option,latency [ms]
    1,4096,4096,w8a8,0.011

Between measured shapes the logarithm is interpolated along every axis on which the table has
neighbours, linearly in the logarithm of the size, and the median of these is taken: one odd
measurement then spoils nothing. Nothing is ever extrapolated.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mpsearch.formats import Option
from mpsearch.hwmodels.gemm import Gemm, gemms
from mpsearch.network import Layer, Network
from mpsearch.tables import Table

AXES = ("m", "n", "k", "cin", "cout", "height")
EXACT = ("groups", "kernel", "stride", "padding")
SCALES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "J": 1.0, "mJ": 1e-3, "uJ": 1e-6}
BASES = {"ms": "s", "us": "s", "ns": "s", "mJ": "J", "uJ": "J"}
Key = tuple[float, ...]


@dataclass(frozen=True)
class Lookup:
    """Every cost of a file, one table each.

    Attributes:
        path: The file.
        batch: Samples that a row of the file is of, where ``m`` is one of its columns.
    """

    path: str
    batch: int = 1

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """The file's costs; ``ValueError`` for what it does not cover."""
        sheet = self.sheet
        shapes = gemms(network) if sheet.axes or sheet.exact else None
        made = {}
        for name, unit, scale, column in sheet.costs:
            values = np.empty((len(network.layers), len(options)))
            for row, layer in enumerate(network.layers):
                place = sheet.place(layer, shapes, row, self.batch)
                for at, option in enumerate(options):
                    values[row, at] = sheet.value(layer, option, place, column) * scale
            allowed = network.mask(options)
            made[name] = Table(network.layers, tuple(options), values, unit, name, allowed=allowed)
        return made

    @cached_property
    def sheet(self) -> "Sheet":
        """What the file says."""
        return read(Path(self.path))


@dataclass(frozen=True, eq=False)
class Sheet:
    """A file's rows, ready to be asked.

    Attributes:
        path: Where it is.
        named: Whether rows are found by layer.
        axes: Columns interpolated in.
        exact: Columns met exactly.
        costs: Name, base unit, scale and place of each cost.
        rows: For each option, and layer or exact sizes, the costs of each point.
    """

    path: Path
    named: bool
    axes: tuple[str, ...]
    exact: tuple[str, ...]
    costs: tuple[tuple[str, str, float, int], ...]
    rows: Mapping[tuple[str, Any], "Points"]

    def place(self, layer: Layer, shapes: Gemm | None, row: int, batch: int) -> tuple[Any, Key]:
        """The exact part of a layer's key, and its point."""
        if shapes is None:
            return layer.name, ()
        sizes = _sizes(layer, shapes, row, batch)
        exact: Any = tuple(sizes[name] for name in self.exact)
        return (layer.name, *exact) if self.named else exact, tuple(sizes[n] for n in self.axes)

    def value(self, layer: Layer, option: Option, place: tuple[Any, Key], column: int) -> float:
        """A cost of a layer at an option."""
        group, point = place
        points = self.rows.get((str(option), group))
        if points is None:
            there = sorted({name for name, _ in self.rows})
            what = f"option {str(option)!r}" if str(option) not in there else "its shape"
            sizes = f" ({', '.join(f'{n} {v:g}' for n, v in zip(self.exact, group, strict=False))})"
            raise ValueError(
                f"{self.path}: has no row for layer {layer.name!r}{sizes if self.exact else ''} at"
                f" {str(option)!r}: {what} is not in it; it has options {', '.join(there)}"
            )
        found = points.at(point, column)
        if found is None:
            ranges = ", ".join(f"{n} {v:g}" for n, v in zip(self.axes, point, strict=True))
            raise ValueError(
                f"{self.path}: does not cover layer {layer.name!r} ({ranges}) at {str(option)!r};"
                f" it was measured at {points.covers(self.axes)}: measure that shape too"
            )
        return found


def _sizes(layer: Layer, shapes: Gemm, row: int, batch: int) -> dict[str, float]:
    window = layer.window
    first = (
        {name: float(getattr(window, name)[0]) for name in ("kernel", "stride", "padding")}
        if window
        else {}
    )
    groups = float(shapes.groups[row])
    return {
        "m": float(shapes.m[row]) * batch,
        "n": float(shapes.n[row]),
        "k": float(shapes.k[row]),
        "cin": float(shapes.channels[row]) * groups,
        "cout": float(shapes.n[row]) * groups,
        "height": float(window.image[0]) if window else 1.0,
        "groups": groups,
        "kernel": 1.0,
        "stride": 1.0,
        "padding": 0.0,
        **first,
    }


class Points:
    """Measured points of one option, and interpolation between them."""

    def __init__(self) -> None:
        self.costs: dict[Key, tuple[float, ...]] = {}
        self._grid: list[list[float]] = []
        self._known: dict[tuple[Key, int], float | None] = {}

    def at(self, point: Key, column: int) -> float | None:
        """A cost at a point; ``None`` where the table does not surround it."""
        if point in self.costs:
            return self.costs[point][column]
        if (point, column) not in self._known:
            self._grid = self._grid or [sorted(set(axis)) for axis in zip(*self.costs, strict=True)]
            found = self._between(point, column, tuple(range(len(point))))
            self._known[point, column] = None if found is None else math.exp(found)
        return self._known[point, column]

    def _between(self, point: Key, column: int, axes: tuple[int, ...]) -> float | None:
        """The logarithm at a point, interpolated along these axes."""
        if point in self.costs:
            return math.log(self.costs[point][column])
        lines = (self._along(point, column, axis, axes) for axis in axes)
        estimates = [line for line in lines if line is not None]
        return median(estimates) if estimates else None

    def _along(self, point: Key, column: int, axis: int, axes: tuple[int, ...]) -> float | None:
        """Between the nearest points on both sides on one axis, the others interpolated there."""
        rest = tuple(other for other in axes if other != axis)
        sides = []
        for side in _sides(self._grid[axis], point[axis]):
            for size in side:
                there = (*point[:axis], size, *point[axis + 1 :])
                value = self._between(there, column, rest)
                if value is not None:
                    sides.append((size, value))
                    break
        if len(sides) < 2 or min(sides[0][0], sides[1][0], point[axis]) <= 0:
            return None
        (low, a), (high, b) = sides
        share = math.log(point[axis] / low) / math.log(high / low)
        return a + share * (b - a)

    def covers(self, axes: Sequence[str]) -> str:
        """The ranges of each axis, as text."""
        columns = zip(axes, zip(*self.costs, strict=True), strict=True)
        return ", ".join(f"{name} {min(sizes):g} to {max(sizes):g}" for name, sizes in columns)


def _sides(grid: Sequence[float], size: float) -> Iterator[list[float]]:
    """Measured sizes below and above, nearest first."""
    yield [each for each in reversed(grid) if each < size]
    yield [each for each in grid if each > size]


def read(path: Path) -> Sheet:
    """The rows of a file; ``ValueError`` says what is wrong in it."""
    columns, rows = _cells(path)
    for name in ("option", *columns):
        if columns.count(name) != 1:
            raise ValueError(f"{path}: has {columns.count(name)} columns {name!r}; wanted one")
    axes = tuple(name for name in AXES if name in columns)
    exact = tuple(name for name in EXACT if name in columns)
    named = "layer" in columns
    known = {"option", "layer", *axes, *exact}
    costs = tuple(_cost(path, name) for name in columns if name not in known)
    if not costs or not (named or axes or exact):
        raise ValueError(
            f"{path}: wanted layer or sizes, option, and a cost such as 'latency [ms]'"
        )
    points: dict[tuple[str, Any], Points] = {}
    for number, row in enumerate(rows):
        cells = dict(zip(columns, row, strict=True))
        where = f"{path}: row {number + 1}"
        sizes = [_number(where, name, cells[name]) for name in exact]
        group: Any = (
            (cells["layer"], *sizes)
            if named and sizes
            else cells["layer"]
            if named
            else tuple(sizes)
        )
        option = str(Option.read(str(cells["option"])))
        point = tuple(_number(where, name, cells[name]) for name in axes)
        values = tuple(_number(where, name, cells[f"{name} [{unit}]"]) for name, unit, _ in costs)
        if min(values) <= 0:
            raise ValueError(f"{where}: a cost is {min(values)}; wanted numbers above zero")
        into = points.setdefault((option, group), Points()).costs
        if point in into:
            raise ValueError(f"{where}: {option} was measured at {cells} before; give it once")
        into[point] = values
    named_costs = tuple(
        (name, BASES.get(unit, unit), scale, at) for at, (name, unit, scale) in enumerate(costs)
    )
    return Sheet(path, named, axes, exact, named_costs, points)


def _cells(path: Path) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns, and the cells of every row."""
    if not path.is_file():
        raise ValueError(f"no file is {str(path)!r}; give the CSV or JSON file of measurements")
    if path.suffix == ".json":
        try:
            document = json.loads(path.read_text())
            columns, rows = list(document["columns"]), [list(row) for row in document["rows"]]
        except (ValueError, KeyError, TypeError) as reason:
            raise ValueError(f"{path}: wanted an object with columns and rows ({reason})") from None
    else:
        with path.open(newline="") as file:
            columns, *rows = [row for row in csv.reader(file) if row] or [[]]
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"{path}: row {number + 1} has {len(row)} cells, not {len(columns)}")
    if not rows:
        raise ValueError(f"{path}: has no rows; give at least one measurement")
    return [str(name).strip() for name in columns], rows


def _cost(path: Path, column: str) -> tuple[str, str, float]:
    """Name, unit and scale of a column such as ``latency [ms]``."""
    name, _, unit = column.partition(" [")
    if not name or not unit.endswith("]"):
        raise ValueError(f"{path}: column {column!r} is not understood; a cost is 'latency [ms]'")
    return name, unit[:-1], SCALES.get(unit[:-1], 1.0)


def _number(where: str, name: str, cell: Any) -> float:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {name} is {cell!r}; wanted a finite number")
    return number
