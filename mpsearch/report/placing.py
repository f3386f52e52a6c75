"""Labels beside marks: each goes where it covers least of what is drawn already."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mpsearch.report.markup import width_of

HEIGHT = 14


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, right, bottom."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, reach: float) -> "Box":
        """A square around a point."""
        return cls(x - reach, y - reach, x + reach, y + reach)

    def overlap(self, other: "Box") -> float:
        """The area both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)

    @property
    def area(self) -> float:
        """Width times height."""
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass
class Places:
    """What is taken of a plot, and room for the next label."""

    plot: Box
    taken: list[Box] = field(default_factory=list)

    def take(self, boxes: Iterable[Box]) -> None:
        """Keep labels off these."""
        self.taken += boxes

    def line(self, corners: Sequence[tuple[float, float]]) -> None:
        """Keep labels off a line of horizontal and vertical pieces."""
        for (x, y), (u, v) in pairwise(corners):
            self.take([Box(min(x, u) - 2, min(y, v) - 2, max(x, u) + 2, max(y, v) + 2)])

    def beside(self, x: float, y: float, text: str) -> tuple[float, float]:
        """The baseline's left end of a label beside a point; it is taken then."""
        wide = width_of(text)
        offsets = [
            (11, 4.5),
            (-11 - wide, 4.5),
            (9, -8),
            (9, 17),
            (-9 - wide, -8),
            (-9 - wide, 17),
            (-wide / 2, -12),
            (-wide / 2, 22),
            (16, -20),
            (16, 29),
            (-16 - wide, -20),
            (-16 - wide, 29),
        ]
        boxes = [Box(x + dx, y + dy - HEIGHT + 3, x + dx + wide, y + dy + 3) for dx, dy in offsets]
        best = min(boxes, key=self._cost)
        self.taken.append(best)
        return best.left, best.bottom - 3

    def _cost(self, box: Box) -> float:
        covered = sum(box.overlap(other) for other in self.taken)
        return covered + 100 * (box.area - box.overlap(self.plot))
