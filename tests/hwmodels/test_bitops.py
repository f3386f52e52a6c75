"""Bit operations: every variant against its source's own figures."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.hwmodels import BitOps
from mpsearch.testing import HardwareSuite


class TestUniq(HardwareSuite):
    hardware = BitOps("uniq")


class TestOmpq(HardwareSuite):
    hardware = BitOps("ompq")
    options = mp.options("int2/int8", "int4/int8", "int8/int8")  # outer layers stay at 8 bits


class TestClado(HardwareSuite):
    hardware = BitOps("clado")


class TestQonnx(HardwareSuite):
    hardware = BitOps("qonnx")


def conv(name: str, inputs: int, outputs: int, kernel: int, side: int, role: str) -> mp.Layer:
    shape = (outputs, inputs, kernel, kernel)
    params = math.prod(shape)
    return mp.Layer(name, params, params * side * side, "conv2d", role, (shape,))


def linear(name: str, inputs: int, outputs: int, role: str = "linear") -> mp.Layer:
    count = inputs * outputs
    return mp.Layer(name, count, count, "linear", role, ((outputs, inputs),))


def resnet18() -> list[tuple[mp.Layer, int]]:
    """Each layer with the number of the bit width it takes; a shortcut takes its unit's last."""
    layers = [(conv("stem", 3, 64, 7, 112, "first"), -1)]
    unit, width = 0, 64
    for stage, (channels, side) in enumerate(((64, 56), (128, 28), (256, 14), (512, 7))):
        for block in range(2):
            inputs = width if block == 0 else channels
            name = f"layer{stage + 1}.{block}"
            layers.append((conv(f"{name}.conv1", inputs, channels, 3, side, "conv"), unit))
            layers.append((conv(f"{name}.conv2", channels, channels, 3, side, "conv"), unit + 1))
            if inputs != channels:
                shortcut = conv(f"{name}.down", inputs, channels, 1, side, "pointwise")
                layers.append((shortcut, unit + 1))
            unit += 2
        width = channels
    return [*layers, (linear("fc", 512, 1000, "last"), -1)]


@pytest.mark.shared
@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_ompq_s_resnet18_figures_come_out_exactly(bits: int, shared: Path) -> None:
    published = json.loads((shared / "oracles/ompq/published_configs.json").read_text())["QAT"]
    case = published["ompq:bit_config_resnet18_modelsize_6.7_a6_75B"]
    layers = resnet18()
    options = mp.options(*(f"w{b}a{bits}" for b in range(4, 9)))
    table = BitOps("ompq").costs(mp.Network(tuple(one for one, _ in layers)), options)["bitops"]
    choice = [case["bits"][unit] - 4 if unit >= 0 else 0 for _, unit in layers]
    assert table.total(choice) == round(case["bops_g"][str(bits)] * 1e9)


def cnv() -> list[mp.Layer]:
    channels, sides = [3, 64, 64, 128, 128, 256, 256], [30, 28, 12, 10, 3, 1]
    convs = [
        conv(f"conv{i}", a, b, 3, side, "first" if i == 0 else "conv")
        for i, ((a, b), side) in enumerate(zip(itertools.pairwise(channels), sides, strict=True))
    ]
    return [*convs, linear("fc0", 256, 512), linear("fc1", 512, 512), linear("fc2", 512, 10)]


def test_qonnx_s_cnv_and_tfc_figures_come_out_exactly() -> None:
    """MACs and bit operations of FINN's CNV-W2A2, its first layer reading 8 bits, and TFC-W2A2."""
    layers = cnv()
    table = BitOps("qonnx").costs(mp.Network(tuple(layers)), mp.options("w2a2", "w2a8"))["bitops"]
    assert sum(layer.macs for layer in layers) == 59_461_376
    assert table.total([1] + [0] * 8) == 256_507_904
    tfc = [
        linear(f"fc{i}", a, b) for i, (a, b) in enumerate(((784, 64), (64, 64), (64, 64), (64, 10)))
    ]
    dense = BitOps("qonnx").costs(mp.Network(tuple(tfc)), mp.options("w2a2"))["bitops"]
    assert dense.total([0] * 4) == 236_032


def test_density_counts_only_weights_that_are_not_zero() -> None:
    layers = cnv()
    half = BitOps("qonnx", {"fc1": 0.5}).costs(mp.Network(tuple(layers)), mp.options("w2a2"))
    full = BitOps("qonnx").costs(mp.Network(tuple(layers)), mp.options("w2a2"))
    gone = full["bitops"].values - half["bitops"].values
    assert gone[:, 0].tolist() == [0] * 7 + [512 * 512 * 2, 0]


def test_uniq_counts_the_accumulator() -> None:
    """One dot product of 64 at 4 and 8 bits: 64 (4 x 8 + 4 + 8 + log2 64)."""
    net = mp.Network((linear("fc", 64, 1),))
    assert BitOps("uniq").costs(net, mp.options("w4a8"))["bitops"].total([0]) == 64 * (32 + 12 + 6)


def test_clado_counts_one_addition_less_than_products() -> None:
    """Two dot products of three: 6 products and 4 additions, at 4 and 8 bits."""
    net = mp.Network((linear("fc", 3, 2),))
    product, addition = 5 * 8 * 4 - 5 * 8 - 3 * 4 + 3, 3 * 8 + 3 * 4 + 29
    found = BitOps("clado").costs(net, mp.options("w4a8"))["bitops"]
    assert found.total([0]) == 6 * product + 4 * addition
    assert found.values.dtype == np.int64


def test_what_a_variant_cannot_count_is_refused() -> None:
    flat = mp.Network((mp.Layer("head", 10, 10),))
    with pytest.raises(ValueError, match="layer 'head' has no weight shape, so the length"):
        BitOps("uniq").costs(flat, mp.options("w4a8"))
    with pytest.raises(ValueError, match="no variant is named 'mac'; there are hawq-v3"):
        BitOps("mac")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"density of 'head' is 1\.5; wanted a share"):
        BitOps("qonnx", {"head": 1.5})
    with pytest.raises(ValueError, match="variant 'nncf' does not look at density"):
        BitOps("nncf", {"head": 0.5})
    with pytest.raises(LookupError, match="density names 'tail', which is no layer"):
        BitOps("qonnx", {"tail": 0.5}).costs(flat, mp.options("w4a8"))
