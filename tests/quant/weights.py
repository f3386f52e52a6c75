"""Small weights with what is awkward in them: rows of zeros, odd sizes, vectors, kernels."""

import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

SHAPES = st.one_of(
    st.tuples(st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 11)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)),
)
NUMBERS = st.floats(-4, 4, width=32).map(lambda v: v if abs(v) > 1 / 64 else 0.0)
WEIGHTS = arrays.arrays("float32", SHAPES, elements=NUMBERS).map(torch.from_numpy)
MATRICES = arrays.arrays(
    "float32", st.tuples(st.integers(1, 5), st.integers(1, 11)), elements=NUMBERS
).map(torch.from_numpy)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, weight: Tensor) -> float:
    """Squared error."""
    return float((found - weight).double().square().sum())
