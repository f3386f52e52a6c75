"""Integer products of packed weights, literally: in 64-bit integers, one group at a time."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def token_codes(x: NDArray[np.float32]) -> tuple[Ints, Floats]:
    """(tokens, in) codes from -127 to 127, and each token's scale."""
    codes, scales = np.zeros(x.shape, np.int64), np.ones(len(x))
    for token, values in enumerate(x):
        peak = np.abs(values).max(initial=np.float32(0))
        if peak > 0:
            tiny = peak < np.float32(1e-34)  # the inverse would not be a float32
            inverse = 127.0 / np.float64(peak) if tiny else np.float32(127) / peak
            codes[token] = np.rint(values * inverse)
        scales[token] = np.float64(peak) / 127
    return codes, scales


def grid_codes(
    x: NDArray[np.float32], scale: float, zero: int, low: int, high: int
) -> tuple[Ints, Floats]:
    """(tokens, in) codes of a static grid, less its zero, and the scale of each token."""
    scaled = np.rint(x * (np.float32(1) / np.float32(scale)))
    return np.clip(scaled + zero, low, high).astype(np.int64) - zero, np.full(len(x), scale)


def sums(weight: Ints, codes: Ints, group: int) -> Ints:
    """(tokens, groups, out) products of (out, in) and (tokens, in) integers, summed by group."""
    starts = range(0, weight.shape[1], group)
    found = np.zeros((len(codes), len(starts), len(weight)), np.int64)
    for n, start in enumerate(starts):
        part = slice(start, start + group)
        found[:, n] = codes[:, part] @ weight[:, part].T
    return found


def output(found: Ints, steps: Floats, scales: Floats, bias: Floats) -> Floats:
    """(tokens, out): sums times (out, groups) steps times (tokens,) scales, and a bias."""
    whole: Floats = np.einsum("tgr,rg->tr", found.astype(np.float64), steps)
    return whole * scales[:, None] + bias
