"""Rooflines: closed forms, what really runs, and figures fitted on one network used on another."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.hwmodels import Roofline
from mpsearch.hwmodels.roofline import FITTED, fit, roof
from mpsearch.testing import HardwareSuite

INTEGERS = mp.options("int4/int8", "int8/int8", "bf16/bf16")


class TestSpecification(HardwareSuite):
    hardware = Roofline("h100")
    options = INTEGERS


class TestFitted(HardwareSuite):
    hardware = Roofline("a100")
    monotone = False  # at so small sizes starting a quantized product costs more than it saves
    options = INTEGERS


class TestCore(HardwareSuite):
    hardware = Roofline("sapphire-rapids-core")
    options = INTEGERS


def linear(name: str, inputs: int, outputs: int, rows: int = 1) -> mp.Layer:
    count = inputs * outputs
    sizes = (rows * inputs, rows * outputs)
    return mp.Layer(name, count, rows * count, "linear", "linear", ((outputs, inputs),), *sizes)


def test_a_large_product_takes_its_operations_and_a_single_row_its_bytes() -> None:
    wide, narrow = linear("wide", 8192, 8192, 8192), linear("narrow", 8192, 8192)
    latency = Roofline("h100").costs(mp.Network((wide, narrow)), mp.options("w8a8"))["latency"]
    assert latency.values[0, 0] == pytest.approx(5e-6 + 2 * 8192**3 / 1979e12)
    moved = 8192 * 8192 + 8192 + 2 * 8192
    assert latency.values[1, 0] == pytest.approx(5e-6 + moved / 3.35e12)


def test_decoding_takes_one_token_a_sample() -> None:
    net = mp.Network((linear("fc", 4096, 4096, 2048),))
    one = mp.Network((linear("fc", 4096, 4096),))
    options = mp.options("w4a16", "w8a8")
    found = Roofline("h100", phase="decode").costs(net, options)["latency"].values
    np.testing.assert_allclose(found, Roofline("h100").costs(one, options)["latency"].values)


@pytest.mark.parametrize(
    ("device", "option", "runs"),
    [
        ("h100", "w4a4", "int8"),
        ("h100", "w4a16", "fp16"),
        ("h100", "fp8_e4m3/fp8_e4m3", "fp8"),
        ("h100", "nvfp4/nvfp4", "fp8"),
        ("b200", "nvfp4/nvfp4", "nvfp4"),
        ("b200", "fp8_e4m3g128/fp8_e4m3", "fp8_block"),
        ("a100", "w4a16", "w4a16"),
        ("a100", "fp8_e4m3/fp8_e4m3", "bf16"),
        ("t4", "w4a4", "int4"),
        ("t4", "w3a4", "int4"),
        ("sapphire-rapids-core", "fp16/fp16", "bf16"),
    ],
)
def test_an_option_runs_at_what_the_machine_has(device: str, option: str, runs: str) -> None:
    assert Roofline(device).runs_as(mp.Option.read(option)) == runs


def test_the_table_says_what_does_not_run_as_it_says() -> None:
    net = mp.Network((linear("fc", 64, 64),))
    table = Roofline("h100").costs(net, mp.options("w4a4", "w8a8", "w4a16"))["latency"]
    assert {text: where.tolist() for text, where in table.notes.items()} == {
        "is multiplied as int8": [[True, False, False]],
        "is multiplied as fp16": [[False, False, True]],
    }


def test_an_embedding_reads_what_it_gives_not_its_table() -> None:
    layer = mp.Layer("table", 1 << 30, 0, "embedding", "embedding", ((1 << 20, 1 << 10),), 4, 4096)
    found = Roofline("h100").costs(mp.Network((layer,)), mp.options("w8a8"))["latency"]
    assert found.total([0]) < 6e-6


def test_a_fit_finds_the_figures_that_made_the_measurements() -> None:
    rng = np.random.default_rng(0)
    m, n, k = (2.0 ** rng.uniform(0, 13, 400) for _ in range(3))
    true = (4e-6, 3e14, 2e12, 5e-10, 1.8)
    moved = n * k + m * k + 2 * m * n
    seconds = roof(true, k, 2 * m * n * k, moved)
    found = fit(m, n, k, seconds, 8, 8)
    assert [found[name] for name in FITTED] == pytest.approx(list(true), rel=0.02)


def test_too_few_measurements_are_refused() -> None:
    one = np.ones(2)
    with pytest.raises(ValueError, match="got 2 measurements; wanted at least 3, all above zero"):
        fit(one, one, one, one, 8, 8)


def hawq(shared: Path, name: str) -> tuple[mp.Network, Any]:
    """Geometry of HAWQ-V3's layers at batch 8, from their names, weights and MACs."""
    table = json.loads((shared / "oracles/hawq/ilp_tables.json").read_text())[name]
    layers = []
    for layer, params, macs in zip(
        table["layer_names"], table["parameters"], table["macs"], strict=True
    ):
        stage = int(re.search(r"stage(\d)", layer)[1])  # type: ignore[index]
        wide = name == "resnet50" and ("convbn3" in layer or "identity" in layer)
        outputs = 64 * 2 ** (stage - 1) * (4 if wide else 1)
        shape = (outputs, int(params) // outputs)
        layers.append(mp.Layer(layer, int(params), int(macs), "conv2d", "conv", (shape,)))
    return mp.Network(tuple(layers)), table


@pytest.mark.shared
def test_fitted_on_resnet18_it_predicts_resnet50_on_a_t4(shared: Path) -> None:
    """Mean error of a layer below 13 %, of the whole network below 10 %."""
    net, table = hawq(shared, "resnet50")
    latency = Roofline("t4", batch=8).costs(net, mp.options("w4a4", "w8a8"))["latency"].values
    real = np.transpose([table["latency_int4"], table["latency_int8"]]) / 1e3
    layer = np.abs(latency / real - 1).mean(axis=0)
    whole = np.abs(latency.sum(axis=0) / real.sum(axis=0) - 1)
    print(f"T4, ResNet-50, int4 and int8: layers {layer.round(3)}, network {whole.round(3)}")
    assert (layer < 0.13).all()
    assert (whole < 0.10).all()


def misordered(gpu: str, names: dict[str, str], shared: Path, *, fitted: bool) -> float:
    """Share of pairs of formats in the wrong order, over the products measured of a GPU."""
    pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    table = pq.read_table(shared / f"oracles/aiconfigurator/{gpu}_trtllm_gemm.parquet").to_pydict()
    by_format: dict[str, dict[tuple[int, int, int], float]] = {}
    for name, m, n, k, latency in zip(
        *(table[c] for c in ("gemm_dtype", "m", "n", "k", "latency")), strict=True
    ):
        by_format.setdefault(name, {})[m, n, k] = latency / 1e3
    common = sorted(set.intersection(*(set(by_format[name]) for name in names)))[::7]
    net = mp.Network(tuple(linear(f"{m}.{n}.{k}", k, n, m) for m, n, k in common))
    device = gpu.split("_", maxsplit=1)[0]
    if fitted:
        found = Roofline(device).costs(net, mp.options(*names.values()))["latency"].values
    else:
        found = Roofline("h100").costs(net, mp.options(*names.values()))["latency"].values
    real = np.transpose([[by_format[name][shape] for shape in common] for name in names])
    pairs = list(itertools.combinations(range(len(names)), 2))
    wrong = [(found[:, a] < found[:, b]) != (real[:, a] < real[:, b]) for a, b in pairs]
    return float(np.mean(wrong))


@pytest.mark.shared
@pytest.mark.parametrize("gpu", ["h200_sxm", "b200_sxm"])
def test_fitted_it_orders_formats_that_specifications_misorder(gpu: str, shared: Path) -> None:
    names = {"bfloat16": "bf16/bf16", "fp8": "fp8_e4m3/fp8_e4m3"}
    spec = misordered(gpu, names, shared, fitted=False)
    fitted = misordered(gpu, names, shared, fitted=True)
    print(f"{gpu}: misordered by specification {spec:.3f}, fitted {fitted:.3f}")
    assert fitted < 0.15
    assert spec > 4 * fitted


def test_ten_thousand_layers_are_priced_at_once() -> None:
    net = mp.Network(tuple(linear(f"l{i}", 4096, 4096, 128) for i in range(10_000)))
    table = Roofline("h200").costs(net, mp.options(*(f"w{b}a8" for b in range(1, 9))))["latency"]
    assert table.values.shape == (10_000, 8)
    assert math.isfinite(table.total([0] * 10_000))


def test_what_it_cannot_price_is_refused() -> None:
    net = mp.Network((linear("fc", 64, 64),))
    with pytest.raises(ValueError, match="device 'bitfusion' is priced by model 'systolic'"):
        Roofline("bitfusion").costs(net, mp.options("w8a8"))
    with pytest.raises(ValueError, match="no phase is named 'prefill'; there are traced and dec"):
        Roofline(phase="prefill")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch is 0; wanted at least 1"):
        Roofline(batch=0)
