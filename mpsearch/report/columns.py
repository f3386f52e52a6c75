"""Layers side by side: one column each, with names where there is room and groups where not."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from mpsearch.report.data import Report
from mpsearch.report.markup import hint, label, tag, width_of

LIMIT = 1000  # columns drawn; more would make no picture
NAMED = 13  # pixels a column needs for its name
TILT = -60  # degrees


@dataclass(frozen=True)
class Columns:
    """Where each layer stands.

    Attributes:
        names: Names of the layers drawn.
        left: Pixels before the first column.
        pitch: Pixels from one column to the next.
    """

    names: tuple[str, ...]
    left: float
    pitch: float

    @classmethod
    def fitting(cls, names: Sequence[str], left: float, width: float = 1040) -> "Columns":
        """Columns that fill the width, none too thin to see nor too wide to compare."""
        shown = tuple(names[:LIMIT])
        pitch = min(max((width - left - 12) / len(shown), 5), 48)
        return cls(shown, left, math.floor(pitch))

    def x(self, column: int) -> float:
        """The left edge of a column."""
        return self.left + self.pitch * column

    @property
    def right(self) -> float:
        """The end of the last column."""
        return self.x(len(self.names))

    @property
    def width(self) -> float:
        """The width of a picture of them."""
        return max(self.right + 16, self.left + 420)

    @property
    def named(self) -> bool:
        """Whether there is room for every name."""
        return self.pitch >= NAMED

    def legend(self, top: float) -> tuple[str, float]:
        """Names under the columns, brackets under those that share a beginning; and the end."""
        groups = [(name, first, last) for name, first, last in grouped(self.names) if last > first]
        within = {i: len(name) + 1 for name, *ends in groups for i in range(ends[0], ends[1] + 1)}
        brackets_only = bool(groups) and not self.named
        parts, deep, last = [], 0.0, -math.inf
        for i, name in enumerate(self.names):
            x, text = self.x(i) + self.pitch / 2, shortened(name[within.get(i, 0) :])
            if (brackets_only and i in within) or x - last < NAMED - 1:
                continue
            parts.append(self._leaf(x, top, text, name))
            deep, last = max(deep, width_of(text, 11.5)), x
        bottom = top + 12 - deep * math.sin(math.radians(TILT))
        if groups:
            parts += self._brackets(groups, bottom if self.named else top + 6)
            bottom = max(bottom, top) + 26
        return tag("g", *parts), bottom

    def _leaf(self, x: float, top: float, leaf: str, name: str) -> str:
        turn = f"rotate({TILT} {x + 4:.1f} {top + 10:.1f})"
        return tag(
            "g",
            hint(name),
            label(x + 4, top + 10, leaf, "leaf", text_anchor="end", transform=turn),
        )

    def _brackets(self, groups: Sequence[tuple[str, int, int]], y: float) -> Iterator[str]:
        """A bracket under each group, named by as much of its name as fits under all."""
        room = [(last - first + 1) * self.pitch for _, first, last in groups]
        for parts in (99, 2, 1):
            texts = [".".join(name.split(".")[-parts:]) for name, _, _ in groups]
            if all(width_of(t, 11) <= r for t, r in zip(texts, room, strict=True)):
                break
        for (name, first, last), text, wide in zip(groups, texts, room, strict=True):
            left, right = self.x(first) + 2, self.x(last + 1) - 2
            line = tag("path", d=f"M{left} {y}v5H{right}v-5", class_="bracket")
            middle = (left + right) / 2
            shown = text if width_of(text, 11) <= wide + 4 else ""
            words = label(middle, y + 18, shown, "group", text_anchor="middle") if shown else ""
            yield tag("g", hint(name), line, words)


def margin(report: Report) -> float:
    """Pixels before the first column: every figure of a report leaves the same."""
    table = report.loss
    options = report.allocation.values() if table is None else table.options
    return max(64.0, *(20 + width_of(shortened(str(o), 24)) for o in options))


def grouped(names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Runs of layers of one block: its name, and its first and last column.

    >>> list(grouped(["stem", "blocks.0.fc1", "blocks.0.fc2", "blocks.1.fc1"]))
    [('stem', 0, 0), ('blocks.0', 1, 2), ('blocks.1', 3, 3)]
    """
    for name, run in groupby(range(len(names)), key=lambda i: block(names[i])):
        columns = list(run)
        yield name, columns[0], columns[-1]


def block(name: str) -> str:
    """A name up to its first number, where more follows; else the name."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return name


def shortened(name: str, most: int = 34) -> str:
    """A long name without its middle."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
