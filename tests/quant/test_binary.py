from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.encoding import encode, round_trip
from tests.quant.weights import MATRICES, error, normal
from tests.references import binary as reference


@given(MATRICES, st.sampled_from(["binary", "int1"]))
def test_rows_are_signs_times_the_mean_magnitude(w: Tensor, name: str) -> None:
    found = round_trip(w, Format.parse(name))
    wanted = torch.tensor([reference.xnor(row) for row in w.tolist()])
    assert torch.allclose(found, wanted, rtol=2**-10)


@given(MATRICES, st.floats(0.5, 2))
def test_no_other_scale_is_nearer(w: Tensor, factor: float) -> None:
    found = round_trip(w, Format.parse("binary"))
    assert error(found, w) <= error(found * factor, w) * (1 + 2**-9) + 1e-9


@given(MATRICES)
def test_rounding_twice_is_rounding_once(w: Tensor) -> None:
    once = round_trip(w, Format.parse("binary"))
    assert torch.equal(round_trip(once, Format.parse("binary")), once)


@pytest.mark.parametrize("seed", range(20))
def test_the_residual_is_the_reference_s(seed: int) -> None:
    w = normal(4, 31, seed=seed)
    found = round_trip(w, Format.parse("binary2"))
    wanted = torch.tensor([reference.residual(row) for row in w.tolist()])
    assert torch.allclose(found, wanted, atol=2e-3)


@given(MATRICES)
def test_a_second_order_never_loses_to_the_first(w: Tensor) -> None:
    one, two = (error(round_trip(w, Format.parse(f"binary{n}")), w) for n in ("", "2"))
    assert two <= one + 1e-4 * float(w.square().sum())


def test_four_values_are_held_exactly() -> None:
    row = torch.tensor([[1.75, 0.75, -0.25, -1.25] * 3])  # 0.25 + 1 and 0.5 with their signs
    assert torch.allclose(round_trip(row, Format.parse("binary2")), row, atol=1e-3)
    grouped = torch.cat([row, row * 2], 1)
    assert torch.allclose(round_trip(grouped, Format.parse("binary2g12")), grouped, atol=2e-3)


def test_three_16_bit_numbers_a_row_are_counted() -> None:
    assert Format.parse("binary2").bytes((10, 32)) == 10 * 8 + 10 * 3 * 2
    assert len(encode(normal(10, 32), Format.parse("binary2")).stored()["scale"]) == 30


@pytest.mark.shared
def test_groups_are_those_of_mc_moe(shared: Path) -> None:
    """4096 of 4096 weights at one bit."""
    golden = np.load(shared / "oracles" / "golden" / "mcmoe_rtn.npz")
    found = round_trip(torch.from_numpy(golden["W"]), Format.parse("binaryg128"))
    assert torch.allclose(found, torch.from_numpy(golden["q1"]), atol=1e-5)
