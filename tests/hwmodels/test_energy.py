"""Energy: the published table's own entries, the law between them, and what is moved."""

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.formats import Format
from mpsearch.hwmodels import Energy
from mpsearch.network import Fixed
from mpsearch.testing import HardwareSuite

PICO = 1e-12


class TestEnergy(HardwareSuite):
    hardware = Energy()


@pytest.mark.parametrize(
    ("weight", "activation", "accumulator", "picojoule"),
    [
        ("int8", "int8", 8, 0.2 + 0.03),
        ("int8", "int8", 32, 0.2 + 0.1),
        ("fx32.0", "fx32.0", 32, 3.1 + 0.1),
        ("fp16", "fp16", 32, 1.1 + 0.4),
        ("fp32", "fp32", 32, 3.7 + 0.9),
        ("int4", "fp16", 32, 1.1 + 0.4),
    ],
)
def test_horowitz_s_entries_come_out_exactly(
    weight: str, activation: str, accumulator: int, picojoule: float
) -> None:
    model = Energy(accumulator=accumulator)
    found = model.mac(Format.parse(weight), Format.parse(activation))
    assert found == pytest.approx(picojoule * PICO, rel=1e-12)


def test_the_law_between_the_entries_rises_with_either_width() -> None:
    model = Energy()
    each = [
        [model.mac(Format.parse(f"int{w}"), Format.parse(f"int{a}")) for a in range(1, 9)]
        for w in range(1, 9)
    ]
    assert (np.diff(each, axis=0) > 0).all()
    np.testing.assert_allclose(each, np.transpose(each))


def test_a_layer_is_its_arithmetic_and_its_operands_moved() -> None:
    layer = mp.Layer("fc", 100, 1000, inputs=10, outputs=20)
    net = mp.Network((layer,), fixed=(Fixed("bias", 5, 20),))
    table = Energy().costs(net, mp.options("w8a8"))["energy"]
    moved = 100 * 8 * 1950 / 64 + 30 * 8 * 100 / 64
    fixed = 20 * 8 * 1950 / 64
    assert table.total([0]) == pytest.approx((1000 * 0.3 + moved + fixed) * PICO)
    wide = 1000 * 4.6 + 100 * 32 * 1950 / 64 + 30 * 32 * 100 / 64 + fixed
    assert table.reference == pytest.approx(wide * PICO)


def test_integers_beside_floats_run_as_floats_and_the_table_says_so() -> None:
    net = mp.Network((mp.Layer("fc", 100, 1000),))
    table = Energy().costs(net, mp.options("w4a16", "w4a8"))["energy"]
    (note,) = table.notes
    assert note == "integers are turned into floats before they are multiplied"
    assert table.notes[note].tolist() == [[True, False]]


def test_weights_on_the_chip_cost_less_and_an_unknown_memory_is_refused() -> None:
    net = mp.Network((mp.Layer("fc", 100, 1000),))
    near, far = (
        Energy(weights=where).costs(net, mp.options("w8a8"))["energy"]
        for where in ("sram8k", "dram")
    )
    assert near.total([0]) < far.total([0])
    with pytest.raises(
        LookupError, match=r"device 'horowitz-45nm' has no figure 'read\.tape'; it has add"
    ):
        Energy(weights="tape").costs(net, mp.options("w8a8"))
