"""Bytes in files: real ones are written and measured."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import mpsearch as mp
from mpsearch.hwmodels import Size
from mpsearch.hwmodels.containers import BLOCKS, CONTAINERS, gguf_block
from mpsearch.testing import HardwareSuite
from mpsearch.testing.hardware import network


class TestSafetensors(HardwareSuite):
    hardware = Size("safetensors")
    monotone = False  # of tiny weights, what is quantized has more lines in the header


class TestOnnx(HardwareSuite):
    hardware = Size("onnx")


class TestGguf(HardwareSuite):
    hardware = Size("gguf")
    monotone = False  # narrow rows are stored as 16 bits whatever was asked


def layer(name: str, *shape: int) -> mp.Layer:
    return mp.Layer(name, int(np.prod(shape)), shapes=(shape,))


def test_a_safetensors_file_is_never_larger_than_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 70)).eval()
    x = torch.randn(4, 300)
    net = mp.trace(model, x)
    for text in ("w3a16", "int5g50a/fp16", "w8a16"):
        option = mp.Option.read(text)
        quantized = mp.quantize(model, dict.fromkeys(("0", "2"), option), [x])
        weights = {k: v for k, v in quantized.state_dict().items() if "input" not in k}
        weights = {k: v.contiguous() for k, v in weights.items()}
        save_file(weights, tmp_path / "model.safetensors")
        header = 10 + 2 * len(
            '"0.bias":{"dtype":"F32","shape":[200],"data_offsets":[99999,99999]},'
        )
        real = (tmp_path / "model.safetensors").stat().st_size
        said = Size("safetensors").costs(net, (option,))["size"].total([0, 0])
        assert said - 250 <= real <= said + header, text


@pytest.mark.parametrize(
    "text",
    [
        "int4g32/fp16",
        "int4g32a/fp16",
        "int5g32/fp16",
        "w8a16",
        "w2a16",
        "w3a16",
        "w6a16",
        "nf4/fp16",
        "mxfp4/fp16",
        "fp16/fp16",
    ],
)
def test_a_gguf_file_takes_what_is_said_beside_its_metadata(text: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install gguf")
    option = mp.Option.read(text)
    layers = (layer("blk.0.ffn_up", 7, 512), layer("blk.0.ffn_down", 3, 256), layer("odd", 5, 96))

    def written(kept: tuple[mp.Layer, ...]) -> int:
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for each in kept:
            rows, columns = each.shapes[0]
            block = gguf_block(each.shapes[0], option.weight.as_weight())
            data = np.zeros((rows, columns // block.weights * block.bytes), np.uint8)
            kind = gguf.GGMLQuantizationType[block.name]
            writer.add_tensor(each.name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.stat().st_size

    table = Size("gguf").costs(mp.Network(layers), (option,))["size"]
    for count in (1, 2, 3):
        real = written(layers[:count]) - written(())
        said = sum(int(v) for v in table.values[:count, 0])
        assert abs(real - said) < 32, "but for the padding of the header"


def test_ggml_s_own_block_sizes_are_ours() -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install gguf")
    for block in BLOCKS.values():
        kind = gguf.GGMLQuantizationType[block.name]
        assert gguf.GGML_QUANT_SIZES[kind] == (block.weights, block.bytes), block.name


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["q6_K", "q3_K", "q2_K", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"])
def test_every_matrix_of_a_real_4b_model_takes_what_is_said(kind: str, shared: Path) -> None:
    path = shared / "oracles/gguf_tool_suite/tensors/Qwen3-4B-Instruct-2507.json"
    given = json.loads(path.read_text())
    block = next(b for name, b in BLOCKS.items() if name.lower() == kind.lower())
    sizes = [
        (ast.literal_eval(tensor["shape"]), size)
        for tensor, size in zip(given["tensors"], given["bytes_by_qtype"][kind], strict=True)
    ]
    matrices = [(shape, size) for shape, size in sizes if len(shape) == 2]
    assert len(matrices) >= 250
    for (columns, rows), size in matrices:
        assert rows * columns // block.weights * block.bytes == size


@pytest.mark.parametrize(
    ("text", "code"),
    [("w2a8", "int2"), ("w3a8", "int4"), ("w4a8", "int4"), ("w6a8", "int8"), ("w8a8", "int8")],
)
def test_onnx_initializers_take_what_is_said(text: str, code: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="comes with onnx")
    codes = np.zeros((30, 63), getattr(ml_dtypes, code, np.int8))
    parts = [
        onnx.numpy_helper.from_array(codes, "codes"),
        onnx.numpy_helper.from_array(np.ones(30, np.float32), "scale"),
    ]
    graph = onnx.helper.make_graph([], "weights", [], [], initializer=parts)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    said = Size("onnx").costs(mp.Network((layer("fc", 30, 63),)), mp.options(text))["size"]
    assert said.total([0]) == sum(len(part.raw_data) for part in stored)


def test_the_table_says_what_a_container_stores_instead() -> None:
    net = mp.Network((layer("wide", 4, 512), layer("narrow", 4, 40)))
    notes = Size("gguf").costs(net, mp.options("w6a16"))["size"].notes
    assert {t: w.ravel().tolist() for t, w in notes.items()} == {
        "stored as Q6_K": [True, False],
        "stored as F16": [False, True],
    }
    notes = Size("onnx").costs(net, mp.options("w3a16", "w8a16"))["size"].notes
    assert {t: w.tolist() for t, w in notes.items()} == {
        "stored in codes of 4 bits": [[True, False], [True, False]]
    }


def test_what_a_container_does_not_have_is_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match="ONNX has no initializer of 'nf4s'; give integers or fp8"):
        Size("onnx").costs(net, mp.options("nf4/fp16"))
    with pytest.raises(ValueError, match="GGUF has no type for 'fp8_e4m3s'; give integers of 2"):
        Size("gguf").costs(net, mp.options("fp8_e4m3/fp16"))
    with pytest.raises(ValueError, match="no container is named 'zip'; there are packed, safet"):
        Size("zip")  # type: ignore[arg-type]
    assert set(CONTAINERS) == {"packed", "safetensors", "onnx", "gguf"}
