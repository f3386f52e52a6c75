"""Networks as ONNX files: what they compute beside the quantized module, and what ran."""

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpsearch as mp
from mpsearch.kernels.onnx_graph import needed
from mpsearch.kernels.onnx_runtime import session
from tests.conftest import SHARED, require
from tests.kernels.networks import Conv1D

EXPORT: Any = importlib.import_module("mpsearch.export.onnx").onnx
OPTIONS = ["w8a8", "w4a4", "w2a8", "int4/int8s", "int8t/int5"]
INTEGER = {"QLinearConv", "QGemm"}


@pytest.fixture(autouse=True)
def _installed() -> None:
    for name in ("onnx", "onnxruntime"):
        try:
            found: Any = needed(name)
        except ImportError:
            found = None
        require(name, found, "not installed")


class Chain(nn.Module):
    """Every tensor between layers is read by one layer, so that nothing is rounded twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.clip = nn.ReLU6(inplace=True)
        self.point = nn.Conv2d(8, 12, 1)
        self.other = nn.BatchNorm2d(12, affine=False)
        self.pool = nn.MaxPool2d(2)
        self.wide = nn.Linear(48, 16)
        self.drop = nn.Dropout()
        self.head = nn.Linear(16, 5, bias=False)
        for norm in (self.norm, self.other):
            norm.running_mean = torch.randn(norm.num_features)
            norm.running_var = torch.rand(norm.num_features) + 0.5
        nn.init.uniform_(self.norm.weight, -1, 1)  # negative gains too

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.clip(self.depthwise(x))
        x = self.pool(self.other(self.point(x)).relu())
        out: Tensor = self.head(self.drop(self.wide(x.flatten(1))).relu())
        return out


class Residual(nn.Module):
    """Tensors read by layers and by sums, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for _ in range(2):
            x = F.relu(x + self.two(self.one(x).relu()))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        out: Tensor = self.head((short + self.down(x)).mean((2, 3)))
        return out


def made(of: type[nn.Module], side: int = 8) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    return of().eval(), torch.randn(6, 3, side, side)


def layers_of(model: nn.Module) -> list[str]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [name for name, each in model.named_modules() if isinstance(each, kinds)]


def outputs(path: Path, *feeds: Tensor) -> Tensor:
    made = session(path, 1)
    names = [each.name for each in made.get_inputs()]
    given = {name: x.numpy() for name, x in zip(names, feeds, strict=True)}
    return torch.from_numpy(made.run(None, given)[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_a_chain_of_layers_is_the_quantized_module(option: str, tmp_path: Path) -> None:
    model, x = made(Chain)
    options = dict.fromkeys(layers_of(model), option)
    wanted = mp.quantize(model, options, [x])(x).detach()
    written = EXPORT(model, options, [x], tmp_path / "net.onnx")
    assert set(written.layers.values()) == INTEGER
    found = outputs(written.path, x)
    # What is left: a code that falls to the other side of a tie, once in a few hundred.
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))
    assert float((found - wanted).abs().median()) <= 2e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("option", OPTIONS)
def test_what_ran_is_what_the_file_says(option: str, tmp_path: Path) -> None:
    model, x = made(Residual)
    written = EXPORT(model, dict.fromkeys(layers_of(model), option), [x], tmp_path / "net.onnx")
    assert set(written.layers.values()) == INTEGER
    assert written.others["QLinearAdd"] == 3
    assert "Conv" not in written.others
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(str(written.path))
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(evaluator.run(None, {"x": x.numpy()})[0])
    found = outputs(written.path, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.parametrize(("option", "most"), [("w8a8", 0.015), ("w8a4", 0.05)])
def test_sums_are_rounded_to_8_bits_and_no_more(option: str, most: float, tmp_path: Path) -> None:
    model, x = made(Residual)
    options = dict.fromkeys(layers_of(model), option)
    wanted = mp.quantize(model, options, [x])(x).detach()
    found = outputs(EXPORT(model, options, [x], tmp_path / "net.onnx").path, x)
    assert float((found - wanted).abs().mean()) < most * float(wanted.abs().mean())


def test_layers_may_have_different_options(tmp_path: Path) -> None:
    model, x = made(Chain)
    options = {"stem": "w8a8", "depthwise": "w4a4", "wide": "int4g16/fp16"}
    written = EXPORT(model, options, [x], tmp_path / "net.onnx")
    assert written.layers == {
        "stem": "QLinearConv",
        "depthwise": "QLinearConv",
        "point": "Conv",
        "wide": "MatMulNBits",
        "head": "MatMul",
    }
    assert "stem: QLinearConv" in str(written)
    wanted = mp.quantize(model, options, [x])(x).detach()
    found = outputs(written.path, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


def test_an_allocation_is_taken_with_its_recipe(tmp_path: Path) -> None:
    model, x = made(Chain)
    task = mp.Task(model, [x], [x])
    options = mp.options("w8a8", "w4a8")
    net = mp.trace(model, x)
    loss = mp.estimate(task, options, method="weight-error", network=net)
    best = mp.solve(loss, {mp.cost(net, options, model="size"): "uniform:w4a8"})
    written = EXPORT(model, best, [x], tmp_path / "net.onnx")
    assert set(written.layers.values()) == INTEGER


def test_the_number_of_samples_is_free(tmp_path: Path) -> None:
    model, x = made(Residual)
    options = dict.fromkeys(layers_of(model), "w8a8")
    path = EXPORT(model, options, [x, x[:2]], tmp_path / "net.onnx").path
    every = outputs(path, x)
    for count in (1, 5):
        torch.testing.assert_close(outputs(path, x[:count]), every[:count])


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model, x = made(Chain)
    model.train()
    before = copy.deepcopy(model.state_dict())
    EXPORT(model, {"stem": "w8a8"}, [x], tmp_path / "net.onnx")
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert type(model.stem) is nn.Conv2d


class Named(nn.Module):
    """Called with names, and returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(11, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.out(self.table(ids) * mask[..., None])}


def test_batches_may_be_called_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Named().eval()
    batch = {"ids": torch.arange(10).reshape(2, 5), "mask": torch.ones(2, 5)}
    options = {"table": "int8/fp16", "out": "int4/fp16"}
    wanted = mp.quantize(model, options, [batch])(**batch)["logits"].detach()
    written = EXPORT(model, options, [batch], tmp_path / "net.onnx", accuracy=0)
    assert written.layers == {"out": "MatMulNBits"}
    assert written.others["Gather"] == 1
    torch.testing.assert_close(outputs(written.path, *batch.values()), wanted)


class Twice(nn.Module):
    """Reads a flag beside a tensor."""

    def forward(self, x: Tensor, twice: bool) -> Tensor:
        return x * 2 if twice else x


def test_a_batch_of_more_than_tensors_is_refused(tmp_path: Path) -> None:
    batch = {"x": torch.zeros(2, 5), "twice": True}
    with pytest.raises(ValueError, match="a batch holds True, which is no tensor; wrap the model"):
        EXPORT(Twice(), {}, [batch], tmp_path / "net.onnx")


class Pair(nn.Module):
    """Gives one tensor twice, beside another."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        double = x * 2
        return double, [x - 1, double]


def test_every_output_is_there_though_one_comes_twice(tmp_path: Path) -> None:
    x = torch.tensor([[1.0, -2.0]])
    written = EXPORT(Pair(), {}, [x], tmp_path / "net.onnx")
    found = session(written.path, 1).run(None, {"x": x.numpy()})
    assert [each.tolist() for each in found] == [[[2.0, -4.0]], [[0.0, -3.0]], [[2.0, -4.0]]]


def image(count: int = 3) -> Tensor:
    return torch.linspace(-2, 2, count * 4 * 6 * 6).sin().reshape(count, 4, 6, 6) * 2


class Of(nn.Module):
    """One function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.5, 0.7).relu(),
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "arithmetic": lambda x: (x * 2 - 1) / (x.exp() + 3) + x.abs().sqrt() - x.sin() ** 2,
    "alpha": lambda x: torch.add(x, x * x, alpha=3),
    "rsqrt": lambda x: (x * x + 1).rsqrt().log() + x.tanh() + x.cos() - (-x).erf(),
    "softmax": lambda x: x.softmax(1),
    "mean": lambda x: x.mean(1) + x.mean((2, 3))[:, :1, None].mean(-1, keepdim=True),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)).flatten(1),
    "average": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    "inside": lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=False),
    "largest": lambda x: F.max_pool2d(x, 3, stride=1, padding=1, dilation=1),
    "ceil": lambda x: F.max_pool2d(x, 3, stride=2, ceil_mode=True),
    "zeros": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "moves": lambda x: x.transpose(1, 3).permute(0, 2, 1, 3).reshape(len(x), 9, -1)[:, 2:8:3, -7:],
    "select": lambda x: x[:, 1].unsqueeze(1).expand(-1, 3, 6, 6).squeeze(),
    "parts": lambda x: torch.cat([part * n for n, part in enumerate(x.chunk(3, 2))], 1),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "matmul": lambda x: x @ x.mT,
    "layer_norm": lambda x: F.layer_norm(x, (6, 6)),
    "rms_norm": lambda x: F.rms_norm(x, (6,), torch.arange(6.0)),
    "batch_norm": lambda x: F.batch_norm(x, torch.arange(4.0), torch.arange(1, 5.0)),
    "masked": lambda x: x.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1),
    "where": lambda x: torch.where(torch.eye(6).bool(), x, 0.25),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "added_mask": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(6)),
    "type": lambda x: x.to(torch.float64).to(torch.float32) * 2,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_are_torch_s(name: str, tmp_path: Path) -> None:
    x = image()
    model = Of(FUNCTIONS[name])
    found = outputs(EXPORT(model, {}, [x], tmp_path / "net.onnx").path, x)
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


MOVES = [
    "zeros",
    "pad",
    "ceil",
    "moves",
    "select",
    "parts",
    "split",
    "largest",
    "clamp",
    "adaptive",
    "mean",
]


@pytest.mark.parametrize("name", [*MOVES, "hardtanh", "average", "inside", "softmax", "alpha"])
def test_operators_between_integer_layers(name: str, tmp_path: Path) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            x = FUNCTIONS[name](image())
            self.head = nn.Linear(x.shape[-1], 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(FUNCTIONS[name](self.conv(x)))
            return out

    model, x = Between().eval(), image()
    options = {"conv": "w8a8", "head": "w8a8"}
    wanted = mp.quantize(model, options, [x])(x).detach()
    written = EXPORT(model, options, [x], tmp_path / "net.onnx")
    assert written.layers == {"conv": "QLinearConv", "head": "QGemm"}
    found = outputs(written.path, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Of(lambda x: x.cumsum(1)), r"the operator aten\.cumsum"),
        (Of(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), "padding by 'reflect'"),
        (Of(lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True)), "average pooling over less than"),
        (Of(lambda x: F.adaptive_avg_pool2d(x, 4)), r"adaptive pooling from \(6, 6\) to \(4, 4\)"),
        (Of(lambda x: F.avg_pool2d(x, 2, divisor_override=3)), "average pooling with a divisor"),
    ],
)
def test_an_operator_without_a_counterpart_is_named(
    model: nn.Module, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"mp\.export\.onnx does not write .*{message}"):
        EXPORT(model, {}, [image()], tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("wide", "w3a16"),
        ("wide", "int4g8/fp16"),
        ("wide", "int4g16/int8"),
        ("wide", "int4a/int8"),
        ("wide", "nf4/fp16"),
        ("wide", "fp16/int8"),
        ("wide", "int8/mxint8"),
        ("stem", "w4a16"),
        ("stem", "int4o1/int8"),
    ],
)
def test_an_option_without_a_kernel_is_refused(name: str, option: str, tmp_path: Path) -> None:
    model, x = made(Chain)
    with pytest.raises(
        ValueError, match=rf"layer '{name}': ONNX Runtime has no kernel for a .* at"
    ):
        EXPORT(model, {name: option}, [x], tmp_path / "net.onnx")


def test_a_model_that_cannot_be_captured_is_named(tmp_path: Path) -> None:
    model = Of(lambda x: x * 2 if float(x.sum()) > 0 else x)
    with pytest.raises(
        ValueError, match=r"torch\.export cannot capture the Of: .*; export a network"
    ):
        EXPORT(model, {}, [image()], tmp_path / "net.onnx")


def test_batches_of_other_sides_are_refused(tmp_path: Path) -> None:
    model = Of(F.relu)
    with pytest.raises(ValueError, match=r"batches have the shapes .*; a file is written for one"):
        EXPORT(model, {}, [image(), image()[..., :5]], tmp_path / "net.onnx")


class Folded(nn.Module):
    """What runtimes make part of a convolution: constant factors, sums and squashing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.gain = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) * 3
        out: Tensor = x * (self.gate(x) * self.gain).sigmoid()
        return out


def test_a_layer_that_a_runtime_changes_is_still_named(tmp_path: Path) -> None:
    model, x = made(Folded)[0], image()
    written = EXPORT(model, {}, [x], tmp_path / "net.onnx")
    assert written.layers == {"conv": "Conv", "gate": "Conv"}
    torch.testing.assert_close(outputs(written.path, x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_number_of_samples_that_the_model_counts_is_fixed(tmp_path: Path) -> None:
    model, x = Of(lambda x: x.reshape(len(x), -1) * 2), image()
    path = EXPORT(model, {}, [x], tmp_path / "net.onnx").path
    (given,) = session(path, 1).get_inputs()
    assert given.shape == list(x.shape)
    torch.testing.assert_close(outputs(path, x), model(x))


class Tokens(nn.Module):
    """A token put before every sample's, then a linear layer of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(1, 1, 6))
        self.mixed = Conv1D(5, 6)

    def forward(self, **given: Tensor) -> Tensor:
        x = given["x"].flatten(2)
        out: Tensor = self.mixed(torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1))
        return out


@pytest.mark.parametrize("option", ["w8a8", "int4/fp32", "fp32/fp32"])
def test_a_token_for_every_sample_of_any_number(option: str, tmp_path: Path) -> None:
    model, x = made(Tokens)[0], torch.randn(4, 3, 6, 1)
    options = {"mixed": option}
    path = EXPORT(model, options, [{"x": x}], tmp_path / "net.onnx", accuracy=0).path
    fake = mp.quantize(model, options, [{"x": x}])
    for many in (0, 1, 4, 9):
        given = torch.randn(many, 3, 6, 1)
        wanted = fake(x=given).detach()
        torch.testing.assert_close(outputs(path, given), wanted, rtol=0, atol=1e-3)


@pytest.mark.shared
@pytest.mark.slow
def test_every_convolution_of_resnet_20_is_an_integer_one(tmp_path: Path) -> None:
    require("shared", (SHARED / "models/cifar10").is_dir(), "no trained ResNet-20")
    cifar = importlib.import_module("examples.cifar10")
    model, (x, _) = cifar.network(20), cifar.images("calib", 64)
    options = dict.fromkeys(layers_of(model), "w8a8")
    written = EXPORT(model, options, [x], tmp_path / "net.onnx")
    assert sorted(written.layers.values()) == ["QGemm"] + ["QLinearConv"] * 19
    assert written.others["QLinearAdd"] == 9
    seen, _ = cifar.images("test", 250)
    with torch.no_grad():
        wanted = mp.quantize(model, options, [x])(seen).log_softmax(1)
    found = outputs(written.path, seen).log_softmax(1)
    divergence = (wanted.exp() * (wanted - found)).sum(1)
    assert float(divergence.mean()) < 0.005
    assert float((wanted.argmax(1) == found.argmax(1)).float().mean()) > 0.98
