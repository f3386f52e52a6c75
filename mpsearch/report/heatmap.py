"""The sensitivity table as a heat map: layers across, options down, what was chosen outlined."""

import math
from dataclasses import dataclass

import numpy as np

from mpsearch.report.columns import Columns, margin, shortened
from mpsearch.report.data import Report
from mpsearch.report.markup import hint, label, svg, tag, width_of
from mpsearch.report.scales import Axis, written
from mpsearch.report.text import of_loss
from mpsearch.tables import Table

COLOURS = 12
ROW = 24


@dataclass(frozen=True)
class Heat:
    """Losses to colours 0 to 11: by logarithm where all but zeros and negatives are positive."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, table: Table) -> "Heat":
        """The range of the allowed numbers; of a logarithm at most eight decades."""
        values = table.values.astype(np.float64)[table.allowed]
        positive = values[values > 0]
        if not len(positive):
            return cls(float(values.min()), float(values.max()), log=False)
        high = float(positive.max())
        return cls(max(float(positive.min()), high * 1e-8), high, log=True)

    def colour(self, value: float) -> int:
        """The class of a value; what is below the range has the lowest."""
        if self.high <= self.low:
            return 0
        axis = Axis(self.low, self.high, 0, COLOURS - 1, self.log)
        return min(math.floor(axis(value) + 0.5), COLOURS - 1)


def heatmap_figure(report: Report) -> str:
    """The heat map of the report's table; empty where it has none."""
    table = report.loss
    if table is None:
        return ""
    texts = [shortened(str(option), 24) for option in table.options]
    columns = Columns.fitting([layer.name for layer in table.layers], margin(report))
    heat = Heat.of(table)
    key, top = _key(columns, heat, table)
    bottom = top + ROW * len(table.options)
    rows = [
        label(columns.left - 8, top + ROW * (k + 0.5) + 4, text, "tick", text_anchor="end")
        for k, text in enumerate(texts)
    ]
    chosen = _chosen(report, table)[: len(columns.names)]
    cells = [_cells(columns, heat, table, i, chosen[i], top) for i in range(len(columns.names))]
    outlines = [_outline(columns, i, k, top) for i, k in enumerate(chosen) if k is not None]
    words, end = columns.legend(bottom + 4)
    name = f"{table.unit} of each layer at each option"
    return svg(columns.width, end + 8, name, _hatching(), key, *rows, *cells, *outlines, words)


def _chosen(report: Report, table: Table) -> list[int | None]:
    column = {option: k for k, option in enumerate(table.options)}
    picked = [report.allocation.layers.get(layer.name) for layer in table.layers]
    return [None if option is None else column.get(option) for option in picked]


def _hatching() -> str:
    line = tag("path", d="M-1 1l2-2M0 6l6-6M5 7l2-2", class_="masked")
    size = {"width": 6, "height": 6}
    return tag("defs", tag("pattern", line, id="masked", patternUnits="userSpaceOnUse", **size))


def _cells(
    columns: Columns, heat: Heat, table: Table, row: int, chosen: int | None, top: float
) -> str:
    inset = 0.5 if columns.pitch < 12 else 1
    parts = []
    for k in range(len(table.options)):
        box = {
            "x": columns.x(row) + inset,
            "y": top + ROW * k + inset,
            "width": columns.pitch - 2 * inset,
            "height": ROW - 2 * inset,
        }
        text = hint(said(table, row, k, chosen=k == chosen))
        if table.allowed[row, k]:
            colour = f"cell c{heat.colour(float(table.values[row, k]))}"
            parts.append(tag("rect", text, class_=colour, **box))
        else:
            parts.append(tag("rect", text, class_="cell", fill="url(#masked)", **box))
    return tag("g", *parts)


def said(table: Table, row: int, k: int, *, chosen: bool) -> str:
    """A cell in one line."""
    head = f"{table.layers[row].name} at {table.options[k]}: "
    if not table.allowed[row, k]:
        return head + "not allowed"
    error = "" if table.stderr is None else f" ± {written(float(table.stderr[row, k]))}"
    counted = " ".join(of_loss(table.unit)).strip()
    tail = ", chosen" if chosen else ""
    return f"{head}{written(float(table.values[row, k]))}{error} ({counted}){tail}"


def _outline(columns: Columns, row: int, k: int, top: float) -> str:
    """An outline of the chosen cell; in thin columns a mark within it, which hides less."""
    if not columns.named:
        return _dash(columns.x(row), top + ROW * k, columns.pitch)
    box = {
        "x": columns.x(row) + 1.5,
        "y": top + ROW * k + 1.5,
        "width": columns.pitch - 3,
        "height": ROW - 3,
    }
    return tag("rect", class_="chosen-halo", **box) + tag("rect", class_="chosen", rx=1, **box)


def _dash(x: float, y: float, wide: float) -> str:
    return tag("rect", x=x + 0.5, y=y + 8, width=wide - 1, height=ROW - 16, class_="dash")


def _key(columns: Columns, heat: Heat, table: Table) -> tuple[str, float]:
    """The colours and what they stand for, the outline and the hatching; and where they end."""
    left, y, wide = columns.left, 20.0, 16
    parts = [label(left, 12, table.unit + (", log scale" if heat.log else ""), "title")]
    for colour in range(COLOURS):
        x = left + wide * colour
        parts.append(tag("rect", x=x, y=y, width=wide, height=12, class_=f"c{colour}"))
    ends = Axis(heat.low, heat.high, left + wide / 2, left + wide * (COLOURS - 0.5), heat.log)
    for value in _marks(heat):
        x = ends(value) if heat.high > heat.low else left + wide / 2
        parts.append(label(x, y + 26, written(value), "tick", text_anchor="middle"))
    x = left + wide * COLOURS + 24
    box = {"y": y - 1, "width": 14, "height": 14}
    outline = tag("rect", x=x, class_="chosen", rx=1, **box)
    chosen = outline if columns.named else _dash(x + 4, y - 6, columns.pitch)
    parts += [chosen, label(x + 21, y + 10, "chosen", "legend")]
    if not table.allowed.all():
        x += 33 + width_of("chosen")
        parts.append(tag("rect", x=x, fill="url(#masked)", **box))
        parts.append(label(x + 21, y + 10, "not allowed", "legend"))
    return tag("g", *parts), y + 38


def _marks(heat: Heat) -> list[float]:
    if heat.high <= heat.low:
        return [heat.low]
    inner = Axis(heat.low, heat.high, 0, 1, heat.log).ticks(4)
    return inner if len(inner) > 1 else [heat.low, heat.high]
