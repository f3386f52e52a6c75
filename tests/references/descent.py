"""AdaQuant as its paper writes it: gradients by hand, one weight after another."""

import math
from collections.abc import Sequence

Row = Sequence[float]


class Adam:
    """One number, moved against its gradient."""

    def __init__(self, value: float, rate: float) -> None:
        self.value, self.rate = value, rate
        self.first = self.second = 0.0
        self.step = 0

    def move(self, gradient: float) -> None:
        self.step += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.step)
        second = self.second / (1 - 0.999**self.step)
        self.value -= self.rate * first / (math.sqrt(second) + 1e-8)


def adaquant(
    weight: Row,
    scale: float,
    top: int,
    hessian: Sequence[Row],
    steps: int,
    rates: tuple[float, float],
) -> tuple[list[int], float, float]:
    """The codes ``-top .. top`` of one row, its scale, and ``sum_ij e_i H_ij e_j``: the least."""
    places = [Adam(w / scale, rates[0]) for w in weight]  # weights in steps of the first scale
    growth = Adam(0.0, rates[1])
    best: tuple[list[int], float, float] = [], scale, math.inf
    for _ in range(steps):
        size = math.exp(growth.value)
        exact = [place.value / size for place in places]
        codes = [min(max(round(x), -top), top) for x in exact]
        error = [q * size - w / scale for q, w in zip(codes, weight, strict=True)]
        slope = [2 * sum(h * e for h, e in zip(row, error, strict=True)) for row in hessian]
        lost = sum(e * s / 2 for e, s in zip(error, slope, strict=True))
        if lost < best[2]:
            best = codes, scale * size, lost
        inside = [abs(round(x)) <= top for x in exact]
        of_size = sum(
            s * (q - x if free else q)
            for s, q, x, free in zip(slope, codes, exact, inside, strict=True)
        )
        for place, s, free in zip(places, slope, inside, strict=True):
            place.move(s if free else 0.0)
        growth.move(of_size * size)
    return best
