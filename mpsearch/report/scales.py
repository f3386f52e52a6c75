"""Axes: where a value stands, and the round numbers to write beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, end: float, *, log: bool = False
    ) -> "Axis":
        """An axis with a little room around the values."""
        low, high = min(values), max(values)
        if log:
            room = max((high / low) ** 0.06, 1.15)
            return cls(low / room, high * room, start, end, log=True)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a value; what lies outside stands at the edge."""
        held = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(held / self.low) / math.log(self.high / self.low)
        else:
            share = (held - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About so many round numbers within the axis."""
        found = _log_ticks(self.low, self.high, count) if self.log else []
        return found if len(found) > 1 else _ticks(self.low, self.high, count)


def wide(values: Sequence[float]) -> bool:
    """Whether positive values span so much that only a logarithm shows them all."""
    return min(values) > 0 and max(values) / min(values) > 20


def _ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(math.ceil(len(decades) / (count + 1)), 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**p for p in decades for d in digits if low <= d * 10.0**p <= high]
        if len(found) <= count:
            return found
    return [10.0**p for p in decades if p % every == 0 and low <= 10.0**p <= high]


def written(value: float) -> str:
    """A number in running text: ``1.2×10⁻⁶`` where a plain one would be long.

    >>> written(0.0123), written(1.2e-6), written(1e-6), written(250_000)
    ('0.0123', '1.2×10⁻⁶', '10⁻⁶', '2.5×10⁵')
    """
    plain = f"{value:.3g}"
    if value and math.isfinite(value) and not 1e-4 <= abs(float(plain)) < 1e5:
        head, power = f"{value:.2e}".split("e")
        head = head.rstrip("0").rstrip(".")
        raised = "10" + str(int(power)).translate(_SUPERSCRIPT)
        plain = raised if head == "1" else f"{head}×{raised}"
    elif "e" in plain:
        plain = f"{float(plain):.0f}"
    return plain.replace("-", "−")


def doubted(value: float, stderr: float | None) -> str:
    """A number and its standard error, to the digits it leaves; one line.

    >>> [doubted(v, e).split() for v, e in ((0.2588, 0.0104), (3.379e-5, 1.4e-6))]
    [['0.259', '±', '0.010'], ['3.38×10⁻⁵', '±', '1.4×10⁻⁶']]
    """
    if not stderr or not math.isfinite(stderr):
        return written(value)
    places = 1 - math.floor(math.log10(stderr))
    if not 0 < places <= 5 or abs(value) < 1e-4:
        return f"{written(value)} ±\u00a0{written(float(f'{stderr:.1e}'))}"
    return f"{value:.{places}f} ±\u00a0{stderr:.{places}f}".replace("-", "−")
