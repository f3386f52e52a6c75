"""Problems as CLADO meets them: errors of layers that correlate, nearby and across the network."""

import itertools
from typing import Any

import numpy as np

from mpsearch.formats import Option
from mpsearch.network import Layer
from mpsearch.problem import Budget, Interaction, Problem
from mpsearch.tables import Floats, Table

BITS = (2, 4, 8)
NOISE = 0.15


def correlations(layers: int, rho: float, rng: np.random.Generator) -> Floats:
    """(layers, layers) half decays with distance, half is one direction with signs."""
    apart = np.abs(np.subtract.outer(np.arange(layers), np.arange(layers)))
    sign = rng.choice([-1.0, 1.0], layers)
    found = rho * (np.exp(-apart / 4) + np.outer(sign, sign)) / 2
    np.fill_diagonal(found, 1.0)
    return np.asarray(found)


def matrix(layers: int, rho: float, rng: np.random.Generator) -> Floats:
    """(3 layers, 3 layers) positive semidefinite: error sizes times correlations and noise."""
    sizes = rng.lognormal(0, 0.5, layers)[:, None] * 4.0 ** -np.array(BITS)
    error = np.sqrt(sizes * rng.lognormal(0, 0.25, sizes.shape)).ravel()
    given = np.kron(correlations(layers, rho, rng), np.ones((3, 3)))
    noise = NOISE * rng.normal(size=given.shape)
    given += np.where(given == 1.0, 0.0, (noise + noise.T) / 2)
    values, vectors = np.linalg.eigh(np.outer(error, error) * given)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def of_matrix(matrix: Floats, cost: Any, share: float = 0.35) -> Problem:
    """x'Gx at a share of the way from the cheapest choice to the dearest."""
    rows, columns = cost.shape
    layers = tuple(Layer(f"l{i}") for i in range(rows))
    labels = tuple(Option(label=f"o{k}") for k in range(columns))
    size = Table(layers, labels, cost, "byte", "size")
    low, high = int(cost.min(axis=1).sum()), int(cost.max(axis=1).sum())
    pairs = tuple(
        Interaction(a, i, b, j, 2 * float(matrix[a * columns + i, b * columns + j]))
        for a, b in itertools.combinations(range(rows), 2)
        for i, j in itertools.product(range(columns), repeat=2)
    )
    loss = Table(layers, labels, matrix.diagonal().reshape(cost.shape), "loss")
    limit = int(low + share * (high - low))
    return Problem(loss, (Budget(size, limit),), interactions=pairs)


def correlated(layers: int, rho: float, seed: int) -> Problem:
    """Three options a layer, bytes of random layer sizes."""
    rng = np.random.default_rng(seed)
    made = matrix(layers, rho, rng)
    sizes = rng.integers(1, 200, layers) * 1000
    return of_matrix(made, sizes[:, None] * np.array(BITS) // 8)


def signed(layers: int, options: int, seed: int) -> Problem:
    """A form that is not convex at all: losses and pairs of either sign."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(layers * options, layers * options))
    return of_matrix(made + made.T, rng.integers(1, 9, (layers, options)), 0.5)
