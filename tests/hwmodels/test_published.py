"""Costs as published, to the last digit where they were published so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.hwmodels import Ace, BitOps, Size

pytestmark = pytest.mark.shared


def network(macs: dict[str, int], params: dict[str, int] | None = None) -> mp.Network:
    sizes = params or dict.fromkeys(macs, 1)
    return mp.Network(tuple(mp.Layer(n, params=sizes[n], macs=m) for n, m in macs.items()))


def total(costs: Any, name: str) -> float:
    table = costs[name]
    return float(table.total([0] * len(table.layers)))


def resnet50(shared: Path) -> Any:
    return json.loads((shared / "oracles/ace/resnet50_ace.json").read_text())


@pytest.mark.parametrize("case", range(6))
def test_aqt_s_resnet50_figures_come_out_exactly(case: int, shared: Path) -> None:
    table = resnet50(shared)
    published = table["cases"][case]
    option = (mp.Option.parse(f"w{published['w']}a{published['a']}"),)
    net = network(table["macs"], table["params"])
    assert total(Ace().costs(net, option), "ace") == published["compute_cost_ace"]
    assert total(Ace().costs(net, option), "ace") == total(BitOps().costs(net, option), "bitops")
    bits = sum(n.params * option[0].weight.bits for n in net.layers)
    assert bits == published["memory_cost_bits"]


@pytest.mark.parametrize(("option", "giga"), [("w16a16", 65.43), ("w8a8", 32.71), ("w4a4", 16.36)])
def test_aqt_s_linear_ace(option: str, giga: float, shared: Path) -> None:
    net = network(resnet50(shared)["macs"])
    found = total(Ace("linear").costs(net, mp.options(option)), "ace")
    assert found / 1e9 == pytest.approx(giga, abs=0.005)


def test_reactnet_s_operations_on_a_64_bit_cpu() -> None:
    """4.82e9 binary MACs and 0.12e8 of floats are published as 0.87e8 operations."""
    net = network({"binary": 4_820_000_000, "first": 12_000_000})
    found = Ace("cpu64").costs(net, mp.options("w1a1", "bf16/bf16"))["ace"].total([0, 1])
    assert found / 1e8 == pytest.approx(0.873, abs=5e-4)
    assert Ace("cpu64").costs(net, mp.options("w8a8"))["ace"].total([0, 0]) == net.macs


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no variant is named 'cubic'; there are quadratic, linear"
    ):
        Ace("cubic")  # type: ignore[arg-type]


def test_hawq_v3_s_rows_of_resnet18(shared: Path) -> None:
    table = json.loads((shared / "oracles/hawq/ilp_tables.json").read_text())["resnet18"]
    inner = dict(zip(table["layer_names"], table["macs"], strict=True))
    outer = {"first": 118_013_952, "last": 512_000}
    options = mp.options("fp32/fp32", "w8a8", "w4a4")
    bitops = BitOps().costs(network(outer | inner), options)["bitops"]
    rows = [bitops.total(c) / 1e9 for c in ([0] * 21, [1] * 21, [1, 1] + [2] * 19)]
    assert [round(row) for row in rows[:2]] == [1858, 116]
    assert abs(rows[2] - 34) < 1
    assert bitops.reference == bitops.total([0] * 21)


def test_nncf_s_sixteen_compression_ratios(shared: Path) -> None:
    cases = json.loads((shared / "oracles/nncf_hawq/mixed_configs.json").read_text())
    unit = cases["compression_ratio_unit_cases"]
    net = network({"conv1": unit["conv_flops"], "fc": unit["linear_flops"]})
    for (inputs, conv, between, linear), expected in unit["cases"]:
        ratio = unit.get(expected, expected)
        options = mp.options(*dict.fromkeys(["w8a8", f"w{conv}a{inputs}", f"w{linear}a{between}"]))
        table = BitOps("nncf").costs(net, options)["bitops"]
        places = [str(o) for o in options]
        picked = [
            places.index(str(mp.options(o)[0]))
            for o in (f"w{conv}a{inputs}", f"w{linear}a{between}")
        ]
        assert 8 * net.macs / table.total(picked) == pytest.approx(ratio)


def test_sizes_of_resnet18_in_hawq_s_mebibytes(shared: Path) -> None:
    table = json.loads((shared / "oracles/hawq/ilp_tables.json").read_text())["resnet18"]
    inner = dict(zip(table["layer_names"], table["parameters"], strict=True))
    net = network(dict.fromkeys(inner, 1), {n: int(p) for n, p in inner.items()})
    rest = 9_408 + 512_000  # first and last at 8 bits
    for option, published in (("w8a8", 11.1), ("w4a4", 5.8)):
        codes = total(Size().costs(net, mp.options(option)), "size")
        scales = 2 * len(net.layers)  # one a row: these layers are flat
        assert (codes - scales + rest) / 2**20 == pytest.approx(published, abs=0.05)


def test_ten_thousand_layers_by_eight_options_are_integers_without_overflow() -> None:
    layers = tuple(
        mp.Layer(f"l{i}", 1 << 28, 1 << 48, shapes=((1 << 14, 1 << 14),)) for i in range(10_000)
    )
    options = mp.options(*(f"w{b}a8" for b in range(1, 9)))
    net = mp.Network(layers)
    for model in (Size(), BitOps(), Ace()):
        (table,) = model.costs(net, options).values()
        assert table.values.dtype == np.int64
        exact = sum(int(v) for v in table.values[:, 7])
        assert table.total([7] * 10_000) - int(table.fixed) == exact
        assert exact > 0
