"""Bytes as stored, against what is really stored."""

import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import mpsearch as mp
from mpsearch.hwmodels import Size


@given(
    st.integers(2, 8),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["", "t", "g8", "g16a", "a", "ta"]),
)
def test_bytes_are_the_streams_counted_by_hand(
    bits: int, rows: int, columns: int, kind: str
) -> None:
    scales = {"t": 1, "g": rows * math.ceil(columns / (16 if "16" in kind else 8))}.get(
        kind[:1], rows
    )
    zeros = math.ceil(scales * bits / 8) if kind.endswith("a") else 0
    expected = math.ceil(rows * columns * bits / 8) + 2 * scales + zeros
    assert mp.Format.parse(f"int{bits}{kind}").bytes((rows, columns)) == expected


def test_the_size_of_a_network_is_that_of_its_saved_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten(), nn.Linear(360, 7)
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    options = mp.options("int3g16a/fp32", "int5/fp32")
    net = mp.trace(model, x)
    size = mp.cost(net, options)
    for column, option in enumerate(options):
        stored = mp.quantize(model, dict.fromkeys(("0", "4"), option), [x]).state_dict()
        parts: dict[str, Any] = {k: v for k, v in stored.items() if "num_batches" not in k}
        parts = {k: v for k, v in parts.items() if "running" not in k}  # buffers are no parameters
        written = sum(v.numel() * v.element_size() for v in parts.values())
        grew = 10 * 4 if "0.bias" not in dict(model.named_parameters()) else 0
        assert size.total([column] * 2) == written - grew, {k: v.shape for k, v in parts.items()}


def test_the_reference_is_every_parameter_unquantized() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))
    size = mp.cost(mp.trace(model, torch.zeros(1, 5)), mp.options("w4a8"))
    assert size.reference == sum(4 * p.numel() for p in model.parameters())
    assert size.fixed == 4 * 8


def test_a_bare_label_has_no_bytes() -> None:
    net = mp.Network((mp.Layer("a", 4),))
    with pytest.raises(ValueError, match="option 'Q4_K' names no weight format"):
        Size().costs(net, [mp.Option.read("Q4_K")])


def test_a_pinned_layer_may_take_its_option_only() -> None:
    net = mp.Network((mp.Layer("a", 4), mp.Layer("b", 4)), allowed={"a": ("int8/int8",)})
    table = Size().costs(net, mp.options("w4a8", "w8a8"))["size"]
    assert table.allowed.tolist() == [[False, True], [True, True]]
    with pytest.raises(ValueError, match="layer 'a' is pinned to int8/int8, which is not among"):
        Size().costs(net, mp.options("w4a8"))


def test_totals_are_exact_beyond_64_bits() -> None:
    layers = tuple(mp.Layer(f"l{i}", 1 << 60) for i in range(40))
    size = Size().costs(mp.Network(layers), mp.options("w8a8"))["size"]
    assert size.total([0] * 40) == 40 * ((1 << 60) + 2)


def test_ten_thousand_different_layers_take_less_than_a_second() -> None:
    sides = np.random.default_rng(0).integers(16, 4096, (10_000, 2)).tolist()
    layers = tuple(mp.Layer(f"l{i}", a * b, shapes=((a, b),)) for i, (a, b) in enumerate(sides))
    options = mp.options(*(f"w{bits}a8" for bits in range(2, 9)), "int4g128/int8")
    start = time.process_time()
    Size().costs(mp.Network(layers), options)
    assert time.process_time() - start < 1
