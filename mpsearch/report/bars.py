"""Bits of every layer as bars, above the layer's share of the weights and of the loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpsearch.formats import Option
from mpsearch.report.columns import Columns, margin, shortened
from mpsearch.report.data import Report
from mpsearch.report.markup import hint, label, svg, tag
from mpsearch.report.scales import written

GAP = 42  # pixels between two panels, for the title of the lower one


@dataclass(frozen=True)
class Panel:
    """One row of bars.

    Attributes:
        title: What the bars count.
        values: One a layer; ``None`` where a layer has none.
        height: Of the largest bar.
        class_: Which colour.
        numbers: Whether to write each number above its bar.
    """

    title: str
    values: tuple[float | None, ...]
    height: float
    class_: str
    numbers: bool = False


def bars_figure(report: Report) -> str:
    """Bits of weights and activations by layer, in the order of the network.

    Options that are bare labels of another program have no bits; each is a row of its own then.
    """
    names = list(report.allocation)
    options = list(report.allocation.values())
    roles = list(dict.fromkeys(role for option in options for role in option.formats))
    used = list(dict.fromkeys(map(str, options)))
    rows = [] if roles else used
    columns = Columns.fitting(names, margin(report))
    parts, y = [], 0.0
    if rows:
        drawn, y = _rows(columns, rows, options, y)
        parts.append(drawn)
    panels, same = bit_panels(roles, options)
    for panel in [*panels, *share_panels(report, columns.names)]:
        drawn, y = _panel(columns, panel, y)
        parts.append(drawn)
    for text in same:
        y += 20
        parts.append(label(columns.left, y, text, "muted"))
    words, bottom = columns.legend(y + 2)
    hover = [_hover(columns, i, y, report) for i in range(len(columns.names))]
    return svg(columns.width, bottom + 8, "bits of every layer", *parts, words, *hover)


def bit_panels(roles: Sequence[str], options: Sequence[Option]) -> tuple[list[Panel], list[str]]:
    """A panel for each role; where all layers have one format, a sentence in place of bars."""
    panels, same = [], []
    for role in roles:
        formats = [option.formats.get(role) for option in options]
        kinds = {str(f) for f in formats}
        if len(kinds) == 1 and len(options) > 1 and role != "weight":
            same.append(f"{role}: {kinds.pop()} in every layer")
            continue
        bits = tuple(None if f is None else float(f.bits) for f in formats)
        colour = "weight" if role == "weight" else "activation"
        panels.append(Panel(f"{role} bits", bits, 96, colour, numbers=True))
    return panels, same


def share_panels(report: Report, names: Sequence[str]) -> list[Panel]:
    """Shares in per cent of all weights, and of the predicted loss, where they are known."""
    panels = []
    table, front = report.loss, report.frontier
    layers = table.layers if table is not None else front.layers if front is not None else ()
    params = {layer.name: float(layer.params) for layer in layers}
    panels += _share("share of the weights, %", params, names)
    if table is not None:
        panels += _share("share of the predicted loss, %", chosen_losses(report), names)
    return panels


def chosen_losses(report: Report) -> dict[str, float]:
    """What the table predicts for each layer's option."""
    table = report.loss
    if table is None:
        return {}
    column = {option: i for i, option in enumerate(table.options)}
    given = report.allocation.layers
    return {
        layer.name: float(table.values[row, column[given[layer.name]]])
        for row, layer in enumerate(table.layers)
        if given.get(layer.name) in column
    }


def _share(title: str, by_name: Mapping[str, float], names: Sequence[str]) -> list[Panel]:
    whole = math.fsum(by_name.values())
    if whole <= 0 or min(by_name.values()) < 0:
        return []
    shares = tuple(100 * by_name[n] / whole if n in by_name else None for n in names)
    return [Panel(title, shares, 44, "share")]


def _panel(columns: Columns, panel: Panel, top: float) -> tuple[str, float]:
    """A panel and where it ends."""
    known = [value for value in panel.values[: len(columns.names)] if value is not None]
    most = max([*known, 1e-12])
    high = top + GAP - (0 if panel.numbers else 8)
    base = high + panel.height
    parts = [label(columns.left, top + 16, panel.title, "title")]
    for level in _levels(most, panel):
        y = base - panel.height * level / most
        parts.append(tag("line", x1=columns.left, x2=columns.right, y1=y, y2=y, class_="grid"))
        text = written(float(f"{level:.2g}"))
        parts.append(label(columns.left - 6, y + 4, text, "tick", text_anchor="end"))
    inset = 1 if columns.pitch < 12 else 2.5
    for i, value in enumerate(panel.values[: len(columns.names)]):
        if value is None:
            continue
        tall = panel.height * value / most
        box = {"x": columns.x(i) + inset, "width": columns.pitch - 2 * inset}
        parts.append(tag("rect", y=base - tall, height=tall, class_=panel.class_, rx=1.5, **box))
        if panel.numbers and columns.named:
            middle = columns.x(i) + columns.pitch / 2
            parts.append(label(middle, base - tall - 4, f"{value:g}", "bits", text_anchor="middle"))
    parts.append(tag("line", x1=columns.left, x2=columns.right, y1=base, y2=base, class_="axis"))
    return tag("g", *parts), base


def _levels(most: float, panel: Panel) -> list[float]:
    """Where lines are drawn: the bits that occur, or the largest share."""
    if not panel.numbers:
        return [most]
    kept: list[float] = []
    for value in sorted({v for v in panel.values if v is not None}, reverse=True):
        if all(abs(other - value) * panel.height / most >= 13 for other in kept):
            kept.append(value)
    return kept


def _rows(
    columns: Columns, rows: Sequence[str], options: Sequence[Option], top: float
) -> tuple[str, float]:
    """A row for each option, and a mark where a layer takes it."""
    parts = []
    for number, text in enumerate(rows):
        y = top + 20 * number
        shown = shortened(text, 24)
        parts.append(label(columns.left - 8, y + 14, shown, "tick", text_anchor="end"))
        parts.append(
            tag("line", x1=columns.left, x2=columns.right, y1=y + 20, y2=y + 20, class_="grid")
        )
    for i, option in enumerate(options[: len(columns.names)]):
        y = top + 20 * rows.index(str(option)) + 3
        box = {"x": columns.x(i) + 1, "width": columns.pitch - 2}
        parts.append(tag("rect", y=y, height=14, rx=2, class_="weight", **box))
    return tag("g", *parts), top + 20 * len(rows)


def _hover(columns: Columns, i: int, bottom: float, report: Report) -> str:
    """A column that says all about its layer."""
    name = columns.names[i]
    text = hint(f"{name}: {report.allocation[name]}")
    box = {"x": columns.x(i), "y": 0, "width": columns.pitch, "height": bottom}
    return tag("rect", text, class_="hover", **box)
