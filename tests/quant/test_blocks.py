import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mpsearch.formats import Format
from mpsearch.quant.blocks import scales
from mpsearch.quant.encoding import encode, round_trip
from tests.quant.weights import error, normal
from tests.references import blocks as reference

MX = ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8"]
ROWS = arrays.arrays(
    "float32",
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-100, 100, width=32).map(lambda v: v if abs(v) > 1e-3 else 0.0),
).map(torch.from_numpy)


def _blocks(w: torch.Tensor, size: int) -> list[list[float]]:
    return [row[i : i + size] for row in w.tolist() for i in range(0, len(row), size)]


@given(ROWS, st.sampled_from(MX))
def test_blocks_are_rounded_as_the_reference_does(w: torch.Tensor, name: str) -> None:
    found = round_trip(w, Format.parse(name), "minmax")
    wanted = [value for block in _blocks(w, 32) for value in reference.mx(block, name)]
    assert found.flatten().tolist() == wanted


@given(ROWS)
def test_nvfp4_is_rounded_as_the_reference_does(w: torch.Tensor) -> None:
    found = round_trip(w, Format.parse("nvfp4"), "minmax")
    wanted = torch.tensor([v for block in reference.nv(_blocks(w, 16)) for v in block])
    wanted = wanted.reshape(w.shape)
    near = (found - wanted).abs() <= 1e-5 * w.abs().max()
    steps = (found - w).abs() <= (wanted - w).abs() * (1 + 1e-4) + 1e-6  # or a middle, either way
    assert bool((near | steps).all())


def test_scales_are_those_of_ml_dtypes() -> None:
    code = torch.arange(255)
    mine = scales(code, None).numpy()
    theirs = code.numpy().astype(np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(mine, theirs)
    mine = scales(torch.arange(127), torch.tensor(1.0)).numpy()
    theirs = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(mine, theirs)


@given(ROWS, st.sampled_from([*MX, "nvfp4"]))
def test_the_best_scale_never_loses_to_the_rule_s(w: torch.Tensor, name: str) -> None:
    by = (error(round_trip(w, Format.parse(name), ranges), w) for ranges in ("mse", "minmax"))
    best, rule = by
    assert best <= rule * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize(("name", "bits"), [("nvfp4", 4.5), ("mxfp4", 4.25), ("mxfp8_e4m3", 8.25)])
def test_a_weight_costs_its_scale_too(name: str, bits: float) -> None:
    form, shape = Format.parse(name), (512, 512)
    whole = 4 if name == "nvfp4" else 0  # the tensor's scale
    assert form.bytes(shape) == 512 * 512 * bits / 8 + whole
    stored = encode(normal(*shape), form, "minmax").stored()
    assert sum(part.numel() * part.element_size() for part in stored.values()) == form.bytes(shape)


def test_nvfp4_beats_mxfp4_on_normal_weights() -> None:
    w = normal(64, 256)
    by_name = {name: error(round_trip(w, Format.parse(name)), w) for name in ("nvfp4", "mxfp4")}
    assert by_name["nvfp4"] < 0.8 * by_name["mxfp4"]


def test_a_block_of_zeros_beside_others_stays_zero() -> None:
    w = torch.zeros(2, 64)
    w[0, 40:] = normal(24)
    for name in (*MX, "nvfp4"):
        found = round_trip(w, Format.parse(name))
        assert found[1].tolist() == [0.0] * 64
        assert found[0, :32].tolist() == [0.0] * 32
