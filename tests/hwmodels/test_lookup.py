"""A user's own measurements: found by layer or shape, interpolated, never extrapolated."""

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.hwmodels import Lookup
from mpsearch.network import Window
from mpsearch.testing import HardwareSuite
from mpsearch.testing.hardware import network


def linear(name: str, inputs: int, outputs: int, rows: int = 1) -> mp.Layer:
    macs = rows * inputs * outputs
    return mp.Layer(name, inputs * outputs, macs, "linear", "linear", ((outputs, inputs),))


def write(path: Path, columns: list[str], rows: list[list[Any]]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def written(path: Path, columns: list[str], rows: list[list[Any]]) -> Lookup:
    return Lookup(write(path, columns, rows))


class TestLookup(HardwareSuite):
    @pytest.fixture(autouse=True)
    def measured(self, tmp_path: Path) -> None:
        rows = [
            [layer.name, str(option), (i + 1) * (k + 1)]
            for i, layer in enumerate(network().layers)
            for k, option in enumerate(self.options)
        ]
        self.hardware = written(tmp_path / "t.csv", ["layer", "option", "latency [ms]"], rows)


def test_rows_are_found_by_layer_and_units_are_scaled(tmp_path: Path) -> None:
    columns = ["layer", "option", "latency [ms]", "energy [uJ]"]
    model = written(tmp_path / "t.csv", columns, [["fc", "w8a8", 2.5, 40], ["fc", "w4a8", 1.5, 30]])
    found = model.costs(mp.Network((mp.Layer("fc"),)), mp.options("w4a8", "w8a8"))
    assert found["latency"].values.tolist() == [[0.0015, 0.0025]]
    assert found["energy"].values.tolist() == [pytest.approx([30e-6, 40e-6])]
    assert [found[n].unit for n in ("latency", "energy")] == ["s", "J"]


def test_json_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(
        '{"columns": ["m", "n", "k", "option", "latency [s]"], "rows": [[1, 8, 4, "w8a8", 3]]}'
    )
    net = mp.Network((linear("fc", 4, 8),))
    assert Lookup(str(path)).costs(net, mp.options("w8a8"))["latency"].total([0]) == 3


def test_a_power_law_is_interpolated_exactly(tmp_path: Path) -> None:
    sizes = (1, 4, 16, 64)
    rows = [[m, n, k, "w8a8", m * n**0.5 * k**2] for m, n, k in itertools.product(sizes, repeat=3)]
    model = written(tmp_path / "t.csv", ["m", "n", "k", "option", "latency [s]"], rows)
    for m, n, k in ((8, 16, 4), (3, 5, 7), (1, 33, 64)):
        net = mp.Network((linear("fc", k, n, m),))
        found = model.costs(net, mp.options("w8a8"))["latency"].total([0])
        assert found == pytest.approx(m * n**0.5 * k**2)


@pytest.mark.shared
def test_hawq_s_t4_latencies_come_out_exactly(shared: Path, tmp_path: Path) -> None:
    table = json.loads((shared / "oracles/hawq/ilp_tables.json").read_text())["resnet18"]
    names = table["layer_names"]
    rows = [
        [name, f"w{bits}a{bits}", value]
        for bits in (4, 8)
        for name, value in zip(names, table[f"latency_int{bits}"], strict=True)
    ]
    model = written(tmp_path / "t4.csv", ["layer", "option", "latency [ms]"], rows)
    net = mp.Network(tuple(mp.Layer(name) for name in names))
    latency = model.costs(net, mp.options("w4a4", "w8a8"))["latency"]
    totals = [latency.total([column] * 19) * 1e3 for column in (0, 1)]
    assert [round(total, 3) for total in totals] == [3.149, 5.344]


@pytest.mark.shared
def test_apq_s_bit_fusion_table_comes_out_exactly(shared: Path, tmp_path: Path) -> None:
    """Its 779 shapes by kernel, stride, padding and groups, every third of them asked for."""
    table = json.loads((shared / "oracles/apq/bitfusion_lut_b1.json").read_text())
    rows, layers = [], {}
    for key, value in table.items():
        if not key.startswith("("):
            continue
        shape, _, bits = key.partition("-")
        cin, cout, height, kernel, stride, padding, groups = map(int, shape.strip("()").split(","))
        option = f"w{bits[1]}a{bits[3]}"
        rows.append(
            [
                cin,
                cout,
                height,
                kernel,
                stride,
                padding,
                groups,
                option,
                value["latency"],
                value["energy"],
            ]
        )
        side = (height + 2 * padding - kernel) // stride + 1
        window = Window(
            (kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), groups, (height,) * 2, (side,) * 2
        )
        weight = (cout, cin // groups, kernel, kernel)
        macs = math.prod(weight) * side * side
        layers[shape] = mp.Layer(
            shape, math.prod(weight), macs, "conv2d", shapes=(weight,), window=window
        )
    names = ["cin", "cout", "height", "kernel", "stride", "padding", "groups", "option"]
    model = written(tmp_path / "apq.csv", [*names, "latency [ms]", "energy [mJ]"], rows)
    chosen = list(layers)[::3]
    options = mp.options("w4a8", "w6a6", "w8a8")
    found = model.costs(mp.Network(tuple(layers[name] for name in chosen)), options)
    for cost in ("latency", "energy"):
        expected = [[table[f"{n}-{b}"][cost] for b in ("W4A8", "W6A6", "W8A8")] for n in chosen]
        np.testing.assert_allclose(found[cost].values, np.array(expected) * 1e-3, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows; give at least one measurement"),
        ("layer,option,latency [ms]\n", "has no rows"),
        ("layer,option\na,w8a8\n", "a cost such as 'latency"),
        ("option,latency [ms]\nw8a8,3\n", "wanted layer or sizes, option"),
        ("layer,latency [ms]\na,3\n", "has 0 columns 'option'; wanted one"),
        ("layer,option,latency\na,w8a8,3\n", "column 'latency' is not understood; a cost is"),
        ("layer,option,latency [ms]\na,w8a8\n", "row 1 has 2 cells, not 3"),
        ("layer,option,latency [ms]\na,w8a8,fast\n", "row 1: latency is 'fast'; wanted a finite"),
        ("layer,option,latency [ms]\na,w8a8,nan\n", "row 1: latency is 'nan'; wanted a finite"),
        ("layer,option,latency [ms]\na,w8a8,0\n", r"row 1: a cost is 0\.0; wanted numbers above"),
        ("layer,option,latency [ms]\na,w8a8,1\na,w8a8,2\n", "row 2: int8/int8 was measured at"),
        ("layer,layer,option,latency [ms]\na,b,w8a8,1\n", "has 2 columns 'layer'; wanted one"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Lookup(str(path)).costs(mp.Network((mp.Layer("a"),)), mp.options("w8a8"))


def test_what_the_file_does_not_cover_is_refused(tmp_path: Path) -> None:
    rows = [[m, 64, 64, "w8a8", m] for m in (1, 8)]
    model = written(tmp_path / "t.csv", ["m", "n", "k", "option", "latency [s]"], rows)
    net = mp.Network((linear("fc", 64, 64, 9),))
    with pytest.raises(
        ValueError,
        match=r"does not cover layer 'fc' .m 9, n 64, k 64. at 'int8/int8'; it was measured at m 1 to 8, n 64 to 64, k 64 to 64",
    ):
        model.costs(net, mp.options("w8a8"))
    with pytest.raises(
        ValueError, match="option 'int4/int8' is not in it; it has options int8/int8"
    ):
        model.costs(net, mp.options("w4a8"))
    with pytest.raises(ValueError, match=r"no file is '.*gone\.csv'; give the CSV or JSON file"):
        Lookup(str(tmp_path / "gone.csv")).costs(net, mp.options("w8a8"))
    (tmp_path / "t.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="wanted an object with columns and rows"):
        Lookup(str(tmp_path / "t.json")).costs(net, mp.options("w8a8"))
