"""Layers in ONNX Runtime beside the modules they stand for: sums of codes exact, outputs close."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.kernels import onnx_runtime
from mpsearch.kernels.measuring import measured
from mpsearch.kernels.onnx_graph import needed
from mpsearch.kernels.onnx_layers import Weight
from mpsearch.kernels.onnx_runtime import OnnxRuntime, alone, kernels_of, session
from mpsearch.kernels.plain import running, runs_as
from mpsearch.kernels.running import on_kernels
from mpsearch.quant import activations, quantize
from mpsearch.quant.codes import Codes
from mpsearch.quant.modules import store
from mpsearch.testing.hardware import network
from tests.conftest import require
from tests.kernels.networks import NAMES, Conv1D, Net, PaddedConv, at, layer, seen

OPTIONS = ["w8a8", "w4a8", "w3a8", "w2a8", "w8a4", "w2a2", "int8t/int8", "int4/int8s", "int5/int3s"]
GRIDS = [(0, 255, 0), (0, 255, 97), (-127, 127, 0), (0, 15, 8), (-1, 1, 0)]
WEIGHTS_ALONE = [
    "int4",
    "int8",
    "int2",
    "int4a",
    "int2a",
    "int4g16",
    "int4g32a",
    "int2g64",
    "int8g48",
]


@pytest.fixture(autouse=True)
def _installed() -> None:
    for name in ("onnx", "onnxruntime"):
        try:
            found: Any = needed(name)
        except ImportError:
            found = None
        require(name, found, "not installed")


def whole(name: str, bits: int, grid: tuple[int, int, int]) -> tuple[Any, torch.Tensor]:
    """A module of integers, its scales one, and an input of integers."""
    low, high, zero = grid
    torch.manual_seed(bits)
    module: Any = Net().get_submodule(name)
    module.bias = None
    linear = isinstance(module, nn.Linear)
    shape = (5, module.in_features) if linear else (2, module.in_channels, 7, 6)
    x = torch.randint(low - zero, high - zero + 1, shape).float()
    top, rows = (1 << (bits - 1)) - 1, len(module.weight)
    codes = torch.randint(-top, top + 1, (rows, module.weight[0].numel()), dtype=torch.int8)
    form = mp.Format.parse(f"int{bits}").as_weight()
    ones = Codes(codes, torch.ones(rows).half(), None, form, tuple(module.weight.shape))
    made = activations.Grid(1.0, zero, low, high)
    store(module, mp.Option.parse(f"w{bits}a8"), ones, made, torch.float32)
    return module, x


def run(content: bytes, x: torch.Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = session(content, 1).run(None, {"x": x.numpy()})[0]
    return found


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_sums_of_codes_are_exact(name: str, grid: tuple[int, int, int], bits: int) -> None:
    module, x = whole(name, bits, grid)
    with torch.no_grad():
        sums = module.double()(x.double()).numpy()
    assert np.all(sums == np.rint(sums))
    assert 0 < np.abs(sums).max() < 1 << 24  # up to there, every integer is a float32
    if isinstance(module, nn.Linear):
        np.testing.assert_array_equal(run(alone(module, 2), x), sums)
        return
    for shift in range(0, 20, 3):  # eight bits of every sum at a time
        step = 2.0**shift
        found = run(alone(module, 4, activations.Grid(step, 128, 0, 255)), x)
        wanted = (np.clip(np.rint(sums / step) + 128, 0, 255) - 128) * step
        np.testing.assert_array_equal(found, wanted)


def test_the_largest_sums_do_not_saturate() -> None:
    assert onnx_runtime.exact()


@pytest.mark.parametrize("option", OPTIONS)
def test_a_kernel_computes_what_the_quantized_module_does(option: str) -> None:
    _, model, x = at(option)
    for name, (read, written) in seen(model, x).items():
        kernel = OnnxRuntime().kernel(
            layer(name), mp.Option.parse(option), model.get_submodule(name)
        )
        assert kernel is not None
        assert kernel.runs_as == "int8/int8"
        with torch.no_grad():
            found = kernel(read)
        # The bias is rounded to what a sum counts, and a convolution's output to codes.
        peak = float(written.abs().max())
        atol = 1e-3 * peak if kernel.grid is None else 0.75 * kernel.grid.scale
        torch.testing.assert_close(found, written, rtol=0, atol=atol)
        assert (kernel.grid is None) == isinstance(model.get_submodule(name), nn.Linear)


def linear(form: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 40))
    x = torch.randn(3, 5, 96)
    return model, quantize(model, {"0": f"{form}/fp16"}, [x])[0], x  # type: ignore[index]


@pytest.mark.parametrize("form", WEIGHTS_ALONE)
def test_weights_alone_times_floats(form: str) -> None:
    _, module, x = linear(form)
    kernel = OnnxRuntime(accuracy=0).kernel(layer(), mp.Option.parse(f"{form}/fp16"), module)
    assert kernel is not None
    assert kernel.runs_as == f"{form}/fp32"
    torch.testing.assert_close(kernel(x), module(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", WEIGHTS_ALONE)
def test_weights_alone_times_inputs_rounded_by_block(form: str) -> None:
    _, module, x = linear(form)
    kernel = OnnxRuntime().kernel(layer(), mp.Option.parse(f"{form}/fp16"), module)
    assert kernel is not None
    assert kernel.runs_as == f"{form}/int8 per block"
    this: Any = module
    step = x.abs().amax(-1, keepdim=True) / 127  # of a block at most
    bound = step / 2 * this.weight.detach().abs().sum(1) + 1e-4
    error = (kernel(x) - module(x)).abs().detach()
    assert bool((error <= bound).all())
    assert float(error.max()) > 1e-4  # it is really rounded


def test_a_kernel_writes_the_type_and_the_shape_it_reads() -> None:
    _, module, x = linear("int4")
    kernel = OnnxRuntime().kernel(layer(), mp.Option.parse("int4/fp16"), module)
    assert kernel is not None
    found = kernel(x.bfloat16())
    assert (found.dtype, found.shape) == (torch.bfloat16, (3, 5, 40))


def test_floats_are_floats() -> None:
    model, x = Net().eval(), torch.randn(2, 3, 9, 9)
    for name, (read, written) in seen(model, x).items():
        option = mp.Option.parse("fp32/fp32")
        kernel = OnnxRuntime().kernel(layer(), option, model.get_submodule(name))
        assert kernel is not None
        assert runs_as(kernel, option) == "fp32/fp32"
        torch.testing.assert_close(kernel(read), written, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "option", ["w3a16", "int4a/int8", "int4g4/int8", "bf16/int8", "int4g4/fp16"]
)
def test_there_is_no_kernel_for_other_formats(option: str) -> None:
    _, model, _ = at(option)
    asked = mp.Option.parse(option)
    assert OnnxRuntime().kernel(layer(), asked, model.get_submodule("wide")) is None
    assert runs_as(running(OnnxRuntime(), layer(), asked, model.get_submodule("wide")), asked) in (
        "fp32/fp32",
        "bf16/bf16",
    )


def test_there_is_no_kernel_for_a_convolution_of_weights_alone() -> None:
    _, model, _ = at("w4a16")
    asked = mp.Option.parse("w4a16")
    assert OnnxRuntime().kernel(layer(), asked, model.get_submodule("stem")) is None


@pytest.mark.parametrize(
    "module",
    [
        nn.ConvTranspose2d(3, 4, 3),
        nn.Embedding(4, 3),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        PaddedConv(3, 4, 3),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("option", ["w8a8", "fp32/fp32"])
def test_there_is_no_kernel_for_other_operators(module: nn.Module, option: str) -> None:
    assert OnnxRuntime().kernel(layer(), mp.Option.parse(option), module) is None


def test_there_is_no_kernel_where_sums_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = at("w8a8")
    monkeypatch.setattr(onnx_runtime, "exact", lambda: False)
    assert (
        OnnxRuntime().kernel(layer(), mp.Option.parse("w8a8"), model.get_submodule("wide")) is None
    )


@pytest.mark.parametrize("option", ["w8a8", "w4a16"])
def test_a_module_without_codes_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' at '.*': its module is a Linear that"):
        OnnxRuntime().kernel(layer("fc"), mp.Option.parse(option), nn.Linear(32, 4))


def test_an_accuracy_onnx_runtime_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"accuracy is 0 \(floats\) or 4 \(8 bits\), got 2"):
        OnnxRuntime(accuracy=2)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ImportError, match=r'need no_such_thing: pip install "mpsearch\[onnx\]"'):
        needed("no_such_thing")


@torch.no_grad()
def test_convolutions_write_the_range_of_the_calibration_batches() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 9, 9)
    options = dict.fromkeys(NAMES, "w8a8")
    fake, real = (mp.quantize(model, options, [x], backend=b) for b in (None, "onnx"))
    real(x * 1e-3)
    assert real(x[:0]).shape == (0, *real(x).shape[1:])
    torch.testing.assert_close(real(x), fake(x), rtol=0, atol=0.02 * float(fake(x).abs().max()))
    assert not any(module._forward_hooks for module in real.modules())


@pytest.mark.parametrize("changed", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])  # noqa: S301
@torch.no_grad()
def test_a_copy_computes_the_same(changed: Any) -> None:
    model, x = Net().eval(), torch.randn(4, 3, 9, 9)
    real = mp.quantize(model, dict.fromkeys(NAMES, "w8a8"), [x], backend="onnx")
    wanted = real(x)
    assert torch.equal(changed(real)(x), wanted)
    assert torch.equal(real(x), wanted)


@torch.no_grad()
def test_a_convolution_of_two_names_is_one() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model, x = nn.Sequential(conv, nn.ReLU(), conv).eval(), torch.randn(2, 4, 6, 6)
    fake, real = (mp.quantize(model, {"0": "w8a8"}, [x], backend=b) for b in (None, "onnx"))
    assert real.get_submodule("0") is real.get_submodule("2")
    torch.testing.assert_close(real(x), fake(x), rtol=0, atol=0.05 * float(fake(x).abs().max()))


@torch.no_grad()
def test_one_image_alone_and_no_tokens() -> None:
    model, x = Net().eval(), torch.randn(4, 3, 9, 9)
    options = {"stem": "w8a8", "wide": "w8a8"}
    real = mp.quantize(model, options, [x], backend="onnx")
    stem, wide = real.get_submodule("stem"), real.get_submodule("wide")
    assert torch.equal(stem(x[0]), stem(x[:1])[0])
    assert wide(torch.randn(2, 0, 12)).shape == (2, 0, 70)
    bare = on_kernels(quantize(model, options, [x]), options, "onnx").get_submodule("stem")
    assert bare(x[:0]).shape == stem(x[:0]).shape
    torch.testing.assert_close(bare(x), stem(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("option", ["w8a8", "w4a16", "fp32/fp32"])
def test_a_linear_layer_of_transformers_is_one(option: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Conv1D(6, 10)), torch.randn(2, 3, 10)
    module: Any = quantize(model, {"0": option}, [x])[0]  # type: ignore[index]
    kernel = OnnxRuntime(accuracy=0).kernel(layer(), mp.Option.parse(option), module)
    assert kernel is not None
    torch.testing.assert_close(kernel(x), module(x).detach(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "shape"), [("wide", (2, 11)), ("stem", (2, 4, 9, 9))])
def test_an_input_of_another_width_is_refused(name: str, shape: tuple[int, ...]) -> None:
    _, model, _ = at("w8a8")
    kernel = OnnxRuntime().kernel(layer(name), mp.Option.parse("w8a8"), model.get_submodule(name))
    assert kernel is not None
    with pytest.raises(ValueError, match=rf"layer '{name}' reads \d+ values along axis -\d, got"):
        kernel(torch.randn(shape))


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="threads is -2; give 1 or more, or 0 for torch's"):
        OnnxRuntime(threads=-2)


def test_a_network_s_layers_have_their_times() -> None:
    options = mp.options("w8a8", "int4g16/fp16", "fp32/fp32")
    found = measured(network().layers, options, OnnxRuntime(), batch=2, rounds=5, sweep=mp.Sweep())
    assert all(entry.seconds > 0 for row in found for entry in row)
    kinds = {each.runs_as for row in found for each in row}
    assert {"int8/int8", "fp32/fp32", "int4g16/int8 per block"} <= kinds


def test_a_bias_too_large_for_32_bits_makes_its_output_s_codes_coarser() -> None:
    codes = np.array([[100, -100]] * 4, np.int8)
    scale = np.array([1e-6, -1e-9, 0.0, 1e-42])
    bias = np.array([-0.5, 1.0, 0.25, 0.0])
    grid = activations.Grid(0.01, 0, 0, 255)
    found, scales, sums = Weight(codes, scale, bias).whole(grid)
    np.testing.assert_array_equal(found[0], codes[0])
    np.testing.assert_array_equal(found[2:], 0)
    units = scales.astype(np.float64) * 0.01
    np.testing.assert_allclose(sums * units, bias, rtol=1e-6)
    assert abs(int(sums[1])) > 1 << 30
    products = (found * scales[:, None]) @ np.array([255, -255.0])
    wanted = (codes * scale[:, None]) @ np.array([255, -255.0])
    np.testing.assert_allclose(products * 0.01, wanted * 0.01, atol=1e-6)


def test_nodes_are_known_by_the_name_of_their_layer() -> None:
    nodes = [
        ("conv_token_3", "QLinearConv"),
        ("conv#2/BatchNormalization/Relu:0_nchwc", "Conv"),
        ("conv.down/Relu", "Relu"),
        ("conv.down/Relu:0_nchwc", "Conv"),
        ("fc/MatMulAddFusion", "Gemm"),
        ("Add", "QLinearAdd"),
    ]
    layers, others = kernels_of(nodes, ["conv", "conv.down", "fc", "lost"])
    assert layers == {
        "conv": "Conv and QLinearConv",
        "conv.down": "Conv",
        "fc": "Gemm",
        "lost": "not seen",
    }
    assert others == {"Relu": 1, "QLinearAdd": 1}
