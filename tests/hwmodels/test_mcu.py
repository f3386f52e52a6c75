"""Microcontrollers: MLPerf Tiny's boards fitted on three networks and tried on the fourth."""

from pathlib import Path

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.hwmodels import Mcu, Size, Sram
from mpsearch.hwmodels.mcu import fit
from mpsearch.tables import Table
from mpsearch.testing import HardwareSuite

INTEGERS = mp.options("int2/int8", "int4/int8", "int8/int8")


class TestMcu(HardwareSuite):
    hardware = Mcu()
    options = INTEGERS


# MACs of convolutions (1 x 1 too), depthwise ones and linear layers in MLPerf Tiny's networks.
NETWORKS = {
    "image classification": (12_500_992, 0, 640),
    "keyword spotting": (2_368_000, 288_000, 768),
    "anomaly detection": (0, 0, 264_192),
    "visual wake words": (6_690_816, 798_336, 512),
}
# Milliseconds, in the same order.
BOARDS = {
    "stm32l4r5-tflm": (704.2, 181.9, 10.05, 600.6),
    "stm32l4r5": (226.9, 75.1, 7.58, 230.5),
    "stm32h7a3": (54.3, 16.8, 1.83, 50.7),
    "stm32u575": (139.7, 44.2, 4.85, 133.4),
    "stm32f746": (64.8, 19.1, 2.29, 57.0),
}


def network(name: str) -> mp.Network:
    conv, depthwise, linear = NETWORKS[name]
    layers = (
        mp.Layer("conv", 1, conv, "conv2d", "conv", ((1, 1, 1, 1),)),
        mp.Layer("dw", 1, depthwise, "conv2d", "depthwise", ((1, 1, 3, 3),)),
        mp.Layer("fc", 1, linear, "linear", "linear", ((1, 1),)),
    )
    return mp.Network(tuple(layer for layer in layers if layer.macs))


def predicted(board: str, name: str) -> float:
    found = Mcu(board).costs(network(name), mp.options("w8a8"))["latency"]
    assert isinstance(found, Table)
    return found.total([0] * len(found.layers)) * 1e3


@pytest.mark.parametrize("board", BOARDS)
def test_each_board_s_published_times_come_back(board: str) -> None:
    for name, milliseconds in zip(list(NETWORKS)[:3], BOARDS[board], strict=False):
        assert predicted(board, name) == pytest.approx(milliseconds, rel=0.005)


@pytest.mark.parametrize("board", BOARDS)
def test_the_network_that_was_not_fitted_is_predicted_within_sixteen_percent(board: str) -> None:
    error = predicted(board, "visual wake words") / BOARDS[board][3] - 1
    print(f"{board}: visual wake words {error:+.1%}")
    assert abs(error) < 0.16


def test_the_figures_of_a_device_are_what_a_fit_finds() -> None:
    macs = np.array([NETWORKS[name] for name in list(NETWORKS)[:3]], np.float64)
    seconds = np.array(BOARDS["stm32h7a3"][:3]) / 1e3
    found = fit(macs, seconds, 280e6)
    machine = Mcu("stm32h7a3").machine
    there = [machine[f"cycles.{op}.w8a8"] for op in ("conv2d", "depthwise", "linear")]
    assert found == pytest.approx(there, rel=0.01)
    with pytest.raises(ValueError, match="got 2 networks for 3 operators; measure as many or more"):
        fit(macs[:2], seconds[:2], 280e6)


def test_below_eight_bits_nothing_is_faster_and_the_table_says_so() -> None:
    net = mp.Network((mp.Layer("fc", 64, 640, "linear", "linear", ((8, 8),), 8, 8),))
    costs = Mcu().costs(net, mp.options("w4a4", "w8a8"))
    latency = costs["latency"]
    assert isinstance(latency, Table)
    assert latency.values[0, 0] == latency.values[0, 1]
    assert {t: w.tolist() for t, w in latency.notes.items()} == {
        "takes the cycles of w8a8": [[True, False]]
    }
    assert costs["flash"].total([0]) < costs["flash"].total([1])
    assert costs["sram"].total([0]) < costs["sram"].total([1])


def test_flash_and_sram_are_those_of_their_models() -> None:
    net = mp.Network((mp.Layer("fc", 64, 640, "linear", "linear", ((8, 8),), 8, 8),))
    options = mp.options("w4a8", "w8a8")
    costs = Mcu().costs(net, options)
    assert costs["flash"].total([0]) == Size().costs(net, options)["size"].total([0])
    assert costs["sram"].total([1]) == Sram().costs(net, options)["sram"].total([1])


def test_a_layer_takes_its_overhead_too(tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    figure = 'value = {}\nunit = "{}"\nbasis = "assumed"\nsource = "a test"\n'
    sections = [
        ("clock", 1e6, "Hz"),
        ("overhead", 500, "cycle"),
        ("cycles.linear.w8a8", 2, "cycle/MAC"),
    ]
    text = "".join(f"[figures.{n}]\n" + figure.format(v, u) for n, v, u in sections)
    board.write_text('title = "mine"\nmodel = "mcu"\n' + text)
    net = mp.Network((mp.Layer("fc", 64, 640, "linear", "linear", ((8, 8),), 8, 8),))
    found = Mcu(str(board)).costs(net, mp.options("w8a8"))["latency"]
    assert found.total([0]) == pytest.approx((2 * 640 + 500) / 1e6)


def test_what_a_board_cannot_run_is_refused() -> None:
    net = mp.Network((mp.Layer("fc", 64, 640, "linear", "linear", ((8, 8),), 8, 8),))
    with pytest.raises(
        ValueError, match="layer 'fc' at 'int4/fp16': device 'stm32h7a3' has no cyc"
    ):
        Mcu().costs(net, mp.options("w4a16"))
    lstm = mp.Network((mp.Layer("rnn", 64, 640, "lstm"),))
    with pytest.raises(
        ValueError, match="layer 'rnn' is a 'lstm'; wanted conv, linear or embedding"
    ):
        Mcu().costs(lstm, mp.options("w8a8"))
    with pytest.raises(ValueError, match="device 'h200' is priced by model 'roofline', not 'mcu'"):
        Mcu("h200").costs(net, mp.options("w8a8"))


def test_ten_thousand_layers_are_priced_at_once() -> None:
    layer = [mp.Layer(f"l{i}", 64, 640, "linear", "linear", ((8, 8),), 8, 8) for i in range(10_000)]
    found = Mcu().costs(mp.Network(tuple(layer)), mp.options(*(f"w{b}a8" for b in range(1, 9))))
    assert found["latency"].total([7] * 10_000) > 0
