"""Every hardware model beside published figures: ``python -m tests.bench.hwmodels``.

The same figures are asserted in tests/hwmodels; this prints them: model, what, published, ours and
the difference.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mpsearch as mp
from mpsearch.hwmodels import Ace, BitOps, Energy, Fpga, Roofline, Size, Systolic
from mpsearch.hwmodels.fpga import Stage, mvau_cycles, mvau_luts
from tests.conftest import SHARED
from tests.hwmodels import test_bitops, test_fpga, test_mcu, test_published, test_roofline
from tests.hwmodels.test_systolic import ALEXNET, linear

Row = tuple[str, str, float, float]


def bitops() -> Iterator[Row]:
    table = json.loads((SHARED / "oracles/hawq/ilp_tables.json").read_text())["resnet18"]
    inner = dict(zip(table["layer_names"], table["macs"], strict=True))
    macs = {"first": 118_013_952, "last": 512_000} | inner
    net = test_published.network(macs)
    costs = BitOps().costs(net, mp.options("fp32/fp32", "w8a8", "w4a4"))["bitops"]
    rows = {"fp32": ([0] * 21, 1858), "W8A8": ([1] * 21, 116), "W4A4": ([1, 1] + [2] * 19, 34)}
    for name, (choice, published) in rows.items():
        yield "bitops", f"HAWQ-V3 ResNet-18 {name} (G)", published, costs.total(choice) / 1e9
    given = json.loads((SHARED / "oracles/ompq/published_configs.json").read_text())["QAT"]
    case = given["ompq:bit_config_resnet18_modelsize_6.7_a6_75B"]
    layers = test_bitops.resnet18()
    options = mp.options(*(f"w{b}a6" for b in range(4, 9)))
    ompq = BitOps("ompq").costs(mp.Network(tuple(one for one, _ in layers)), options)["bitops"]
    choice = [case["bits"][unit] - 4 if unit >= 0 else 0 for _, unit in layers]
    yield (
        "bitops:ompq",
        "ResNet-18, 6-bit activations (G)",
        case["bops_g"]["6"],
        ompq.total(choice) / 1e9,
    )
    cnv = mp.Network(tuple(test_bitops.cnv()))
    found = BitOps("qonnx").costs(cnv, mp.options("w2a2", "w2a8"))["bitops"]
    yield "bitops:qonnx", "CNV-W2A2", 256_507_904, found.total([1] + [0] * 8)


def ace() -> Iterator[Row]:
    table = test_published.resnet50(SHARED)
    net = test_published.network(table["macs"], table["params"])
    for case in table["cases"]:
        option = mp.options(f"w{case['w']}a{case['a']}")
        ours = Ace().costs(net, option)["ace"].total([0] * len(net.layers))
        yield (
            "ace",
            f"AQT ResNet-50 W{case['w']}A{case['a']}, compute",
            case["compute_cost_ace"],
            ours,
        )
        bits = sum(n.params * option[0].weight.bits for n in net.layers)
        yield (
            "ace",
            f"AQT ResNet-50 W{case['w']}A{case['a']}, memory (bit)",
            case["memory_cost_bits"],
            bits,
        )


def size() -> Iterator[Row]:
    table = json.loads((SHARED / "oracles/hawq/ilp_tables.json").read_text())["resnet18"]
    inner = {n: int(p) for n, p in zip(table["layer_names"], table["parameters"], strict=True)}
    net = test_published.network(dict.fromkeys(inner, 1), inner)
    for option, published in (("w8a8", 11.1), ("w4a4", 5.8)):
        codes = Size().costs(net, mp.options(option))["size"].total([0] * 19) - 2 * 19
        yield "size", f"HAWQ-V3 ResNet-18 {option} (MiB)", published, (codes + 521_408) / 2**20


def energy() -> Iterator[Row]:
    model = Energy(accumulator=8)
    for name, published in (("int8", 0.23), ("fp16", 1.5), ("fp32", 4.6)):
        form = mp.Format.parse(name)
        yield (
            "energy",
            f"Horowitz multiply and add {name} (pJ)",
            published,
            model.mac(form, form) * 1e12,
        )


def systolic() -> Iterator[Row]:
    for layer, option, cycles in ALEXNET:
        found = Systolic(batch=16).costs(mp.Network((layer,)), mp.options(option))["cycles"]
        yield "systolic:bitfusion", f"AlexNet {layer.name} (cycles)", cycles, found.total([0])
    net = mp.Network((linear("fc", 256, 256, rows=256),))
    for flow, cycles in (("ws", 22_400), ("os", 20_352)):
        model = Systolic("scale-sim-32", dataflow=flow)  # type: ignore[arg-type]
        ours = model.costs(net, mp.options("w8a8"))["cycles"].total([0])
        yield "systolic:scale-sim-32", f"256 x 256 x 256, {flow} (cycles)", cycles, ours


def fpga() -> Iterator[Row]:
    for number, (stage, pe, simd, cycles) in enumerate(test_fpga.CNV):
        yield "fpga", f"FINN CNV layer {number} (cycles)", cycles, mvau_cycles(stage, pe, simd)
    small = Stage(4, 4, 1)
    yield "fpga", "FINN 4 x 4 INT2 (LUT)", 317, int(mvau_luts(small, 1, 1, 2, 2, embedded=True))
    luts = int(mvau_luts(small, 1, 1, 2, 2, by="dsp", embedded=True))
    yield "fpga", "FINN 4 x 4 INT2 beside a DSP (LUT)", 313, luts
    zynq = Fpga().machine["dsp"]
    yield "fpga", "Zynq-7020 (DSP)", 220, zynq


def mcu() -> Iterator[Row]:
    for board, times in test_mcu.BOARDS.items():
        for name, published in zip(test_mcu.NETWORKS, times, strict=True):
            told = "predicted" if name == "visual wake words" else "fitted"
            yield f"mcu:{board}", f"{name}, {told} (ms)", published, test_mcu.predicted(board, name)


def roofline() -> Iterator[Row]:
    for name in ("resnet18", "resnet50"):
        net, table = test_roofline.hawq(SHARED, name)
        found = Roofline("t4", batch=8).costs(net, mp.options("w4a4", "w8a8"))["latency"].values
        for column, kind in enumerate(("int4", "int8")):
            real, ours = np.array(table[f"latency_{kind}"]), found[:, column] * 1e3
            told = "fitted" if name == "resnet18" else "predicted"
            error = float(np.abs(ours / real - 1).mean())
            what = f"HAWQ {name} {kind}, {told}; mean error of a layer {error:.1%} (ms)"
            yield "roofline:t4", what, float(real.sum()), float(ours.sum())


MODELS = (size, bitops, ace, energy, systolic, fpga, mcu, roofline)


def main() -> None:
    """Print every row."""
    if not Path(SHARED).is_dir():
        sys.exit(f"no {SHARED}: the published tables are read there (MPSEARCH_SHARED)")
    print(f"{'model':<24}{'figure':<64}{'published':>18}{'ours':>18}{'difference':>12}")
    for model in MODELS:
        for name, what, published, ours in model():
            print(
                f"{name:<24}{what:<64}{published:>18,.6g}{ours:>18,.6g}{ours / published - 1:>12.3%}"
            )
    print("lookup, on held-out shapes: pytest -s tests/hwmodels/test_lookup_gpus.py")


if __name__ == "__main__":
    main()
