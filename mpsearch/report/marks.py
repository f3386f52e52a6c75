"""Marks of the frontier's picture, and the legend that says what they mean."""

import math
from collections.abc import Callable, Sequence

from mpsearch.report.data import THIS, UNIFORM, Run
from mpsearch.report.markup import label, tag, width_of

Corner = tuple[float, float]
Shape = Callable[[float, float, float, str], str]  # x, y, size, class


def kind(run: Run) -> str:
    """Which shape and colour a run has."""
    if run.name == THIS:
        return "this"
    if run.name.startswith(UNIFORM):
        return "uniform"
    return "point" if run.name.startswith("point") else "template"


def _circle(x: float, y: float, size: float, class_: str) -> str:
    return tag("circle", cx=x, cy=y, r=5 * size, class_=class_)


def _polygon(*corners: Corner) -> Shape:
    def shape(x: float, y: float, size: float, class_: str) -> str:
        points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in corners)
        return tag("polygon", points=points, class_=class_)

    return shape


_STAR = [
    (radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5))
    for i, radius in enumerate([10, 4.4] * 5)
]
SHAPES: dict[str, Shape] = {
    "point": _circle,
    "uniform": _polygon((0, -7), (7, 0), (0, 7), (-7, 0)),
    "template": _polygon((-5.5, -5.5), (5.5, -5.5), (5.5, 5.5), (-5.5, 5.5)),
    "this": _polygon(*_STAR),
}


def shade(left: float, top: float, right: float, bottom: float) -> str:
    """Where the true frontier may lie."""
    return tag(
        "rect", x=left, y=top, width=max(right - left, 0), height=max(bottom - top, 0), class_="gap"
    )


def legend(runs: Sequence[Run], width: float, *, line: bool, gap: bool) -> tuple[str, float]:
    """What shapes and lines mean, wrapped to the width; and where it ends."""
    there = {kind(run) for run in runs}
    others = [run.name for run in runs if kind(run) == "template"]
    measured = any(run.measured is not None for run in runs)
    entries = [
        (line, "frontier", "best found (predicted)"),
        (line and gap, "gap", "not ruled out by proof"),
        ("this" in there, "this", THIS),
        (bool(others), "template", others[0] if len(others) == 1 else "other mixes"),
        ("uniform" in there, "uniform", "one option everywhere"),
        ("point" in there, "point", "point of the frontier"),
        (measured, "hollow", "hollow: predicted"),
        (measured, "solid", "solid: measured, ± 2 standard errors"),
    ]
    x, y, parts = 12.0, 22.0, []
    for shown, key, text in entries:
        if not shown:
            continue
        wide = 48 + width_of(text)
        if x > 12 and x + wide > width:
            x, y = 12.0, y + 20
        parts += [_sample(key, x + 13, y - 4), label(x + 32, y, text, "legend")]
        x += wide
    return tag("g", *parts), y


def _sample(key: str, x: float, y: float) -> str:
    if key == "gap":
        return shade(x - 12, y - 6, x + 12, y + 6)
    if key == "frontier":
        return tag("path", d=f"M{x - 12} {y - 4}h12v8h12", class_="frontier")
    if key in ("hollow", "solid"):
        drawn = _circle(x, y, 1, key)
        bar = tag("path", d=f"M{x - 4} {y - 9}h8M{x} {y - 9}v18M{x - 4} {y + 9}h8", class_="error")
        return tag("g", bar if key == "solid" else "", drawn, class_="sample")
    return tag("g", SHAPES[key](x, y, 1, "solid"), class_=key)
