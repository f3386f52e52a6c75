"""Seeded tables shaped like real ones, and two families made to be hard, for tests and benchmarks.

Losses are ``a * 4^-bits * lognormal(0.25)`` with ``a`` lognormal, so neither convex nor always
falling, except where a family says otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.formats import Option
from mpsearch.network import numbered
from mpsearch.problem import Budget, Interaction, Problem
from mpsearch.tables import Table

Numbers = NDArray[Any]
BITS = {3: (2, 4, 8), 4: (2, 3, 4, 8), 6: (2, 3, 4, 5, 6, 8), 8: (1, 2, 3, 4, 5, 6, 7, 8)}
LLAMA_8B = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)) + 2 * ((14336, 4096),) + (
    (4096, 14336),
)  # fmt: skip
GROUP = 128  # weights that share a 16-bit scale


def _llm_int(rng: np.random.Generator, layers: int, bits: Numbers) -> Numbers:
    """Packed bytes and scales of a language model's blocks, one after another."""
    weights = np.resize([rows * columns for rows, columns in LLAMA_8B], layers)
    return np.asarray(weights[:, None] * bits // 8 + (weights // GROUP * 2)[:, None])


def _moe_int(rng: np.random.Generator, layers: int, bits: Numbers) -> Numbers:
    """Bytes of sizes from ten thousand to a hundred million, with no common divisor."""
    weights = np.exp(rng.uniform(np.log(1e4), np.log(1e8), layers)).astype(np.int64) | 1
    cost: Numbers = -(-weights[:, None] * bits // 8) + 2 * (weights[:, None] // GROUP)
    cost[0] += np.arange(len(bits)) % 2  # so that one is odd
    return cost


def _lat_real(rng: np.random.Generator, layers: int, bits: Numbers) -> Numbers:
    """Milliseconds: some bit-widths have no kernel of their own and are slower than the next."""
    size = np.exp(rng.normal(0, 1, (layers, 1)))
    slow = np.where(np.isin(bits, (2, 4, 8)), 1.0, 1.3)
    speed = (0.25 + bits / 8 * 0.75) * slow
    return np.asarray(size * speed * np.exp(rng.normal(0, 0.08, (layers, len(bits)))))


def _real_bits(rng: np.random.Generator, layers: int, bits: Numbers) -> Numbers:
    return np.asarray(np.exp(rng.normal(0, 1, (layers, 1))) * bits)


def _cnn_int(rng: np.random.Generator, layers: int, bits: Numbers) -> Numbers:
    """Bytes of convolutions whose channels double now and then."""
    channels = 64 << (4 * np.arange(layers) // layers)
    kernel = np.resize([1, 9, 1, 1], layers) * np.resize([4, 1, 4, 8], layers)
    weights = channels * channels * kernel + 8 * rng.integers(0, 64, layers)
    return np.asarray(weights[:, None] * bits // 8 + 4 * np.resize(channels, layers)[:, None])


def _same_int(rng: np.random.Generator, layers: int, bits: Numbers) -> Numbers:
    """Bytes of groups of equal size."""
    return np.tile(16 * bits + 2, (layers, 1))


_COSTS: dict[str, Callable[[np.random.Generator, int, Numbers], Numbers]] = {
    "llm_int": _llm_int,
    "moe_int": _moe_int,
    "lat_real": _lat_real,
    "convex_real": _real_bits,
    "cnn_int": _cnn_int,
    "same_int": _same_int,
}
HARD = ("strong", "subset")
FAMILIES = (*_COSTS, *HARD)


def _hard(rng: np.random.Generator, family: str, layers: int, width: int) -> tuple[Numbers, ...]:
    """Each option saves what it costs and a little more (strong), or exactly that (subset)."""
    cost = np.sort(rng.integers(1, 10_000, (layers, width)), axis=1)
    cost[:, 0] = 0
    if family == "subset":
        cost *= 2  # and a budget that is odd, so that none is met exactly
        return -cost, cost
    return -(cost + 1000 * (cost > 0)), cost


def _losses(rng: np.random.Generator, layers: int, bits: Numbers, noise: float) -> Numbers:
    sensitivity = np.exp(rng.normal(0, 1, (layers, 1)))
    jitter = np.exp(rng.normal(0, noise, (layers, len(bits))))
    return np.asarray(sensitivity * 4.0**-bits * jitter)


def instance(
    family: str,
    layers: int,
    options: int = 6,
    seed: int = 0,
    *,
    share: float = 0.35,
    more: Sequence[str] = (),
    scale: float = 1.0,
) -> Problem:
    """A problem of a family, its budget ``share`` of the way from the cheapest to the dearest.

    ``more`` names families that each add a budget, ``scale`` multiplies the losses.
    """
    rng = np.random.default_rng([seed, layers, options, FAMILIES.index(family)])
    bits = np.array(BITS[options])
    if family in HARD:
        loss, cost = _hard(rng, family, layers, options)
    else:
        cost = _COSTS[family](rng, layers, bits)
        loss = _losses(rng, layers, bits, 0.0 if family == "convex_real" else 0.25)
    rows, labels = numbered(layers), tuple(Option(label=f"w{b}") for b in bits)
    costs = [cost, *(_COSTS[name](rng, layers, bits) for name in more)]
    tables = [
        Table(rows, labels, values, "unit", f"{name}{place or ''}")
        for place, (name, values) in enumerate(zip((family, *more), costs, strict=True))
    ]
    return Problem(
        Table(rows, labels, loss if scale == 1.0 else loss * scale, "loss"),
        tuple(Budget(table, between(table, share)) for table in tables),
    )


def between(cost: Table, share: float) -> float:
    """A limit between the cheapest and the dearest total; a whole number where those are."""
    low = cost.total(cost.values.argmin(axis=1))
    high = cost.total(cost.values.argmax(axis=1))
    limit = low + share * (high - low)
    if not cost.exact:
        return limit
    return int(limit) | 1 if (cost.values % 2 == 0).all() else int(limit)


def interacting(layers: int, options: int, seed: int, correlation: float) -> Problem:
    """A positive semidefinite quadratic problem, as CLADO measures them, with noise.

    Errors of two layers go together the less the farther apart they stand, with signs of their own,
    and a little over the whole network.
    """
    bare = instance("llm_int", layers, options, seed)
    rng = np.random.default_rng([seed, layers, options])
    size = np.sqrt(bare.loss.values).ravel()
    apart = np.abs(np.subtract.outer(np.arange(layers), np.arange(layers)))
    signs = rng.choice([-1.0, 1.0], layers)
    joint = correlation * (0.7 * 0.6**apart + 0.3) * np.outer(signs, signs)
    joint[np.diag_indices(layers)] = 1.0
    noise = rng.normal(1, 0.15, (size.size, size.size))
    matrix = np.outer(size, size) * np.kron(joint, np.ones((options, options))) * noise
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    matrix = (vectors * values.clip(0)) @ vectors.T
    pairs = tuple(
        Interaction(i, k, j, m, float(2 * matrix[i * options + k, j * options + m]))
        for i in range(layers)
        for j in range(i + 1, layers)
        for k in range(options)
        for m in range(options)
    )
    own = np.diag(matrix).reshape(layers, options).copy()
    return replace(bare, loss=replace(bare.loss, values=own), interactions=pairs)
