"""Formats mixed inside a weight, as they are written down, in plain Python and numpy."""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Sequence[float]]
Grid = list[list[float]]


def largest(sizes: Sequence[float], percent: float) -> set[int]:
    count = math.ceil(len(sizes) * percent / 100)
    return set(sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))[:count])


def outliers(rows: Rows, percent: float, others: Callable[[Rows], Grid]) -> Grid:
    """The largest as they are, the others rounded with zeros in these places."""
    width = len(rows[0])
    kept = largest([abs(v) for row in rows for v in row], percent)
    there = [[i * width + j in kept for j in range(width)] for i in range(len(rows))]
    holes = [[0.0 if t else v for v, t in zip(*pair)] for pair in zip(rows, there)]  # noqa: B905
    found = others(holes)
    return [[v if t else o for v, t, o in zip(*line)] for line in zip(rows, there, found)]  # noqa: B905


def partly_signs(rows: Rows, percent: float) -> Grid:
    """PB-LLM: the largest at 8 bits with a scale a row, the others a mean and a signed distance."""
    width = len(rows[0])
    kept = largest([abs(v) for row in rows for v in row], percent)
    found = []
    for i, row in enumerate(rows):
        there = [i * width + j in kept for j in range(width)]
        wide = [v for v, t in zip(row, there, strict=True) if t]
        scale = max(map(abs, wide), default=0.0) / 127
        rest = [v for v, t in zip(row, there, strict=True) if not t]
        mean = statistics.fmean(rest) if rest else 0.0
        away = statistics.fmean([abs(v - mean) for v in rest]) if rest else 0.0
        signs = [mean + (away if v >= mean else -away) for v in row]
        at8 = [round(v / scale) * scale if scale else 0.0 for v in row]
        found.append([a if t else s for a, s, t in zip(at8, signs, there, strict=True)])
    return found


def salient_channels(rows: Rows, percent: float) -> Grid:
    """PTQ1.61: the largest columns at 4 bits with a scale a row, signs with one a row and column."""
    w = np.array(rows)
    kept = largest((w**2).sum(0).tolist(), percent)
    there = np.array([j in kept for j in range(w.shape[1])])
    found = np.empty_like(w)
    scale = np.abs(w[:, there]).max(1, keepdims=True) / 7
    scale[scale == 0] = 1
    found[:, there] = np.clip(np.round(w[:, there] / scale), -7, 7) * scale
    sizes = np.abs(w[:, ~there])
    if sizes.size:
        u, s, v = np.linalg.svd(sizes, full_matrices=False)
        found[:, ~there] = np.where(w[:, ~there] >= 0, 1, -1) * (s[0] * np.outer(u[:, 0], v[0]))
    result: Grid = found.tolist()
    return result


def best_rank(values: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    u, s, v = np.linalg.svd(values, full_matrices=False)
    nearest: NDArray[np.float64] = (u[:, :rank] * s[:rank]) @ v[:rank]
    return nearest
