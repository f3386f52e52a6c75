"""FPGAs: FINN's published cycles and estimates, hls4ml's legal factors, and the chosen folding."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.hwmodels import Fpga
from mpsearch.hwmodels.fpga import (
    Stage,
    bram18,
    divisors,
    legal_reuse,
    mvau_cycles,
    mvau_dsps,
    mvau_luts,
    window_cycles,
)
from mpsearch.network import Network
from mpsearch.solvers import Milp
from mpsearch.testing import HardwareSuite
from mpsearch.testing.hardware import network

INTEGERS = mp.options("int2/int8", "int4/int8", "int8/int8")


class TestFpga(HardwareSuite):
    hardware = Fpga(weights="lutram", multipliers="dsp")
    options = INTEGERS

    def network(self) -> Network:
        whole = network()
        return Network(tuple(n for n in whole.layers if n.kind != "embedding"), fixed=whole.fixed)

    def test_costs_are_finite_and_positive(self) -> None:
        for cost in self.costs():  # what is not used may be zero: block memory, here
            totals = [cost.total([i] * len(cost.layers)) for i in range(len(self.options))]
            assert all(math.isfinite(total) and total >= 0 for total in totals)

    def test_the_reference_is_no_less_than_the_fewest_bits(self) -> None:
        """Of a resource it is what the part has, which may be less."""
        found = {cost.name: cost.reference for cost in self.costs()}
        assert {name for name, most in found.items() if most is None} == {"cycles", "uram"}
        assert all(most > 0 for most in found.values() if most is not None)


# FINN's CNV: rows, columns, pixels, and the folding of its published w1a1 example.
CNV = [
    (Stage(64, 27, 900), 16, 3, 32_400),
    (Stage(64, 576, 784), 32, 32, 28_224),
    (Stage(128, 576, 144), 16, 32, 20_736),
    (Stage(128, 1152, 100), 16, 32, 28_800),
    (Stage(256, 1152, 9), 4, 32, 20_736),
    (Stage(256, 2304, 1), 1, 32, 18_432),
    (Stage(512, 256, 1), 1, 4, 32_768),
    (Stage(512, 512, 1), 1, 8, 32_768),
    (Stage(10, 512, 1), 5, 1, 1024),
]


def test_finn_s_cnv_takes_its_published_cycles() -> None:
    cycles = [mvau_cycles(stage, pe, simd) for stage, pe, simd, _ in CNV]
    assert cycles == [published for *_, published in CNV]
    assert round(100e6 / max(cycles)) == 3052


def cnv() -> mp.Network:
    layers = []
    for number, (stage, *_) in enumerate(CNV):
        shape = (stage.rows, stage.columns)
        count = math.prod(shape)
        layers.append(
            mp.Layer(f"l{number}", count, count * stage.pixels, "linear", shapes=(shape,))
        )
    return mp.Network(tuple(layers))


def test_the_chosen_folding_keeps_up_with_cnv_s_rate_on_no_more_multipliers() -> None:
    model = Fpga(rate=100e6 / 32_800)
    costs = model.costs(cnv(), mp.options("w1a1"))
    assert costs["cycles"].total([0] * 9) <= 32_800
    assert costs["cycles"].reduce == "max"
    chosen = [model._folded(stage, 1, 1, 32_800) for stage, *_ in CNV]
    assert sum(f.pe * f.simd for f in chosen) <= sum(pe * simd for _, pe, simd, _ in CNV)


@given(
    st.sampled_from([1, 2, 3, 4, 6, 8, 12]),
    st.sampled_from([1, 2, 3, 4, 6, 9, 12]),
    st.integers(1, 9),
    st.integers(1, 200),
)
@settings(max_examples=40)
def test_no_legal_folding_in_time_has_fewer_multipliers(
    rows: int, columns: int, pixels: int, most: int
) -> None:
    stage = Stage(rows, columns, pixels)
    found = Fpga()._folded(stage, 4, 4, most)
    every = itertools.product(divisors(rows), divisors(columns))
    in_time = [pe * simd for pe, simd in every if rows // pe * (columns // simd) * pixels <= most]
    if in_time:
        assert found.cycles <= most
        assert found.pe * found.simd == min(in_time)
    else:
        assert found.cycles == pixels


def test_finn_s_estimates_of_a_small_unit_come_out() -> None:
    """4 x 4 at INT2: 317 LUTs, or 313 and a DSP, with weights in LUTs; 315 without."""
    stage = Stage(4, 4, 1)
    assert math.floor(mvau_luts(stage, 1, 1, 2, 2, embedded=True)) == 317
    assert math.floor(mvau_luts(stage, 1, 1, 2, 2, by="dsp", embedded=True)) == 313
    assert math.floor(mvau_luts(stage, 1, 1, 2, 2)) == 315
    assert mvau_dsps(1, 1, 2, 2) == 1
    assert bram18(2, 16) == 1


def test_eight_bit_units_have_a_slice_for_every_two_lanes() -> None:
    """The lanes the RTL really builds; its estimate divides by four at any width."""
    assert [mvau_dsps(8, 3, w, w) for w in (4, 8, 16)] == [6, 12, 24]


@pytest.mark.parametrize(
    ("width", "depth", "blocks"),
    [
        (1, 16_384, 1),
        (1, 16_385, 2),
        (2, 8192, 1),
        (4, 4096, 1),
        (9, 2049, 2),
        (18, 1024, 1),
        (36, 512, 1),
        (36, 513, 2),
    ],
)
def test_block_memories_are_counted_by_their_shapes(width: int, depth: int, blocks: int) -> None:
    assert bram18(width, depth) == blocks


def test_a_window_generator_fills_then_streams() -> None:
    """One channel, 4 x 4 image, 3 x 3 window: 11 to fill, then 2 rows of 18."""
    assert window_cycles(1, 1, (4, 4), (2, 2), (3, 3)) == 11 + 2 * 18


@pytest.mark.parametrize(
    ("factor", "legal"),
    [(1, True), (2, True), (3, False), (16, True), (24, False), (32, True), (512, True)],
)
def test_hls4ml_s_rule_of_reuse(factor: int, legal: bool) -> None:
    """16 inputs, 32 outputs: below 16 a divisor, above it a multiple of 16 that divides 512."""
    assert legal_reuse(16, 32, factor) is legal


def test_hls4ml_folds_by_the_largest_legal_factor_in_time() -> None:
    layer = mp.Layer("fc", 512, 512, "linear", shapes=((32, 16),))
    costs = Fpga(flow="hls4ml", rate=1e6, multipliers="dsp").costs(
        mp.Network((layer,)), mp.options("w8a8")
    )
    assert costs["cycles"].total([0]) == 64
    assert costs["dsp"].total([0]) == 512 // 64 // 2


def test_fixed_point_is_priced_by_its_bits() -> None:
    net = mp.Network((mp.Layer("fc", 512, 512, "linear", shapes=((32, 16),)),))
    costs = Fpga().costs(net, (mp.Option.read("fx8.4/fx8.4"), mp.Option.read("int8/int8")))
    assert costs["lut"].values[0, 0] == costs["lut"].values[0, 1]


def test_a_maximum_and_sums_are_solved_together() -> None:
    net = cnv()
    costs = Fpga(rate=100e6 / 32_800).costs(net, mp.options("w1a1", "w2a2", "w4a4"))
    loss = mp.Table(
        net.layers, mp.options("w1a1", "w2a2", "w4a4"), np.outer(range(1, 10), [4, 2, 1]), "loss"
    )
    fits: dict[mp.Table | mp.Stages, float | str] = {
        costs["cycles"]: 32_800,
        costs["bram18"]: "100%",
        costs["lut"]: "80%",
    }
    best = mp.solve(loss, fits, solver=Milp())
    assert best.cost["cycles"] <= 32_800
    assert best.cost["bram18"] <= 280 * 0.8


def test_what_is_no_stage_is_refused() -> None:
    table = mp.Network((mp.Layer("table", 64, 0, "embedding", shapes=((8, 8),)),))
    with pytest.raises(ValueError, match="layer 'table' is a 'embedding'; a stage multiplies"):
        Fpga().costs(table, mp.options("w8a8"))
    with pytest.raises(ValueError, match="option 'int8/fp16': stages multiply integers and fixed"):
        Fpga().costs(cnv(), mp.options("w8a16"))
    with pytest.raises(ValueError, match="flow is 'vitis'; there are finn, hls4ml"):
        Fpga(flow="vitis")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate is 0; wanted samples a second, above zero"):
        Fpga(rate=0)


def test_ten_thousand_layers_are_folded_at_once() -> None:
    layers = tuple(mp.Layer(f"l{i}", 512, 512, "linear", shapes=((32, 16),)) for i in range(10_000))
    costs = Fpga().costs(mp.Network(layers), mp.options(*(f"w{b}a8" for b in range(1, 9))))
    assert costs["lut"].total([7] * 10_000) > costs["lut"].total([0] * 10_000)
