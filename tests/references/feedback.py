"""Rounding that looks at what a layer reads, as its papers define it: no factors, no updates."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def nearest(value: Floats, scale: Floats, zero: Floats, low: int, high: int) -> Floats:
    codes = np.clip(np.rint(value / scale + zero), low, high)
    out: Floats = (codes - zero) * scale
    return out


def gptq(
    weight: Floats, scale: Floats, zero: Floats, hessian: Floats, damp: float, low: int, high: int
) -> Floats:
    """Column by column, all later ones at their optimum given the errors made so far."""
    width = weight.shape[1]
    damped = hessian + damp * np.mean(np.diag(hessian)) * np.eye(width)
    done = weight.copy()
    for j in range(width):
        rest, error = damped[j:, j:], weight[:, :j] - done[:, :j]
        best = weight[:, j:] + np.linalg.solve(rest, damped[j:, :j] @ error.T).T
        done[:, j] = nearest(best[:, 0], scale[:, j], zero[:, j], low, high)
    return done


def error(weight: Floats, other: Floats, inputs: Floats) -> float:
    """Squared error of what a linear layer writes."""
    return float((((other - weight) @ inputs.T) ** 2).sum())
