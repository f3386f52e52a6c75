"""Arrays of multipliers: published cycle counts, what really runs, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.hwmodels import Systolic
from mpsearch.network import Window
from mpsearch.testing import HardwareSuite

INTEGERS = mp.options("int2/int8", "int4/int8", "int8/int8")


class TestBitFusion(HardwareSuite):
    hardware = Systolic()
    options = INTEGERS


class TestScaleSim(HardwareSuite):
    hardware = Systolic("scale-sim-32")
    options = INTEGERS


class TestMpic(HardwareSuite):
    hardware = Systolic("mpic")
    options = INTEGERS


def conv(
    name: str, channels: int, outputs: int, kernel: int, side: int, groups: int = 1
) -> mp.Layer:
    shape = (outputs, channels // groups, kernel, kernel)
    macs = outputs * side * side * channels // groups * kernel * kernel
    sizes = (kernel, kernel), (1, 1), (0, 0), (1, 1)
    window = Window(*sizes, groups, (side, side), (side, side))
    role = "first" if channels == 3 else "conv"
    return mp.Layer(name, outputs, macs, "conv2d", role, (shape,), window=window)


def linear(name: str, inputs: int, outputs: int, rows: int = 1) -> mp.Layer:
    macs = rows * inputs * outputs
    return mp.Layer(name, inputs * outputs, macs, "linear", "linear", ((outputs, inputs),))


# Cycles of 16 images: total less waiting for memory, as Bit Fusion's simulator prints them.
ALEXNET = [
    (conv("conv1", 3, 96, 11, 55), "w8a8", 3_339_600),
    (conv("conv2", 96, 512, 5, 28, 2), "w4a4", 5_017_600),
    (conv("conv3", 256, 768, 3, 14), "w4a4", 2_709_504),
    (conv("conv4", 384, 768, 3, 14, 2), "w4a4", 2_032_128),
    (conv("conv5", 384, 512, 3, 14, 2), "w4a4", 1_354_752),
    (linear("fc1", 18_432, 8192), "w4a4", 1_179_648),
    (linear("fc2", 8192, 8192), "w4a4", 524_288),
    (linear("fc3", 8192, 1000), "w8a8", 262_144),
]


@pytest.mark.parametrize(
    ("layer", "option", "cycles"), ALEXNET, ids=lambda x: getattr(x, "name", x)
)
def test_bit_fusion_s_alexnet_comes_out_exactly(layer: mp.Layer, option: str, cycles: int) -> None:
    found = Systolic(batch=16).costs(mp.Network((layer,)), mp.options(option))
    assert found["cycles"].total([0]) == cycles
    assert found["latency"].total([0]) == cycles / 500e6


@pytest.mark.parametrize(("dataflow", "cycles"), [("ws", 22_400), ("os", 20_352), ("is", 22_400)])
def test_scale_sim_s_product_of_256_comes_out_exactly(dataflow: str, cycles: int) -> None:
    net = mp.Network((linear("fc", 256, 256, rows=256),))
    model = Systolic("scale-sim-32", dataflow=dataflow)  # type: ignore[arg-type]
    assert model.costs(net, mp.options("w8a8"))["cycles"].total([0]) == cycles


@pytest.mark.parametrize(
    ("option", "rate"),
    [("w2a2", 6.5), ("w4a2", 4.0), ("w8a2", 2.2), ("w2a4", 3.9), ("w4a4", 3.5), ("w8a8", 2.1)],
)
def test_mpic_takes_its_published_cycles(option: str, rate: float) -> None:
    net = mp.Network((linear("fc", 650, 100),))
    assert Systolic("mpic").costs(net, mp.options(option))["latency"].total([0]) == pytest.approx(
        65_000 / rate / 250e6
    )


def test_what_has_no_unit_runs_wider_and_the_table_says_so() -> None:
    net = mp.Network((linear("fc", 640, 320),))
    table = Systolic().costs(net, mp.options("w3a5", "w4a8", "w4a4"))["cycles"]
    assert table.values[0, 0] == table.values[0, 1] > table.values[0, 2]
    (note,) = table.notes
    assert note == "runs at 4-bit weights and 8-bit activations"
    assert table.notes[note].tolist() == [[True, False, False]]


def test_energy_is_the_array_s_and_each_operand_once_through_its_buffer() -> None:
    layer = mp.Layer("fc", 32 * 64, 32 * 64, "linear", "linear", ((32, 64),), 64, 32)
    table = Systolic().costs(mp.Network((layer,)), mp.options("w4a4"))["energy"]
    bits = 32 * 64 * 4 * 0.050 + 64 * 4 * 0.173 + 32 * 4 * 0.106
    assert table.total([0]) == pytest.approx((1 * 235.1 + bits) * 1e-12)


def test_a_depthwise_layer_fills_one_column() -> None:
    layer = conv("dw", 64, 64, 3, 10, 64)
    found = Systolic().costs(mp.Network((layer,)), mp.options("w8a8"))["cycles"]
    assert found.total([0]) == 64 * 10 * 10 * 9


def test_ten_thousand_layers_are_priced_at_once() -> None:
    net = mp.Network(tuple(linear(f"l{i}", 4096, 4096, 128) for i in range(10_000)))
    options = mp.options(*(f"w{b}a8" for b in range(1, 9)))
    table = Systolic().costs(net, options)["cycles"]
    assert table.values.dtype == np.int64
    assert (np.diff(table.values, axis=1) >= 0).all()


def test_what_it_cannot_price_is_refused(tmp_path: Path) -> None:
    net = mp.Network((linear("fc", 64, 32),))
    with pytest.raises(ValueError, match="option 'int4/fp16': device 'bitfusion' multiplies integ"):
        Systolic().costs(net, mp.options("w4a16"))
    with pytest.raises(ValueError, match="layer 'flat' has no weight shape"):
        Systolic().costs(mp.Network((mp.Layer("flat", 9, 9),)), mp.options("w4a8"))
    with pytest.raises(LookupError, match=r"no device is named 'eyeriss'; there are .*bitfusion"):
        Systolic("eyeriss").costs(net, mp.options("w4a8"))
    with pytest.raises(ValueError, match="no dataflow is named 'rs'; there are ws, os and is"):
        Systolic(dataflow="rs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch is 0; wanted at least 1"):
        Systolic(batch=0)
