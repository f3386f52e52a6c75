"""Integer kernels beside their references: exact sums, and the module they stand for."""

from typing import Any

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.kernels import onednn
from mpsearch.kernels.onednn import OneDnn
from mpsearch.quant import activations
from mpsearch.quant.integers import Codes
from mpsearch.quant.modules import store
from tests.kernels.networks import NAMES, Net, PaddedConv, at, layer, seen

OPTIONS = ["w8a8", "w4a8", "w3a8", "w2a8", "w8a4", "w2a2", "int8t/int8", "int4/int8s", "int5/int3s"]
GRIDS = [(0, 255, 0), (0, 255, 97), (-127, 127, 0), (0, 15, 8), (-1, 1, 0)]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("low", "high", "zero"), GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_sums_of_codes_are_exact(name: str, low: int, high: int, zero: int, bits: int) -> None:
    torch.manual_seed(bits)
    module: Any = Net().get_submodule(name)
    module.bias = None
    linear = isinstance(module, nn.Linear)
    shape = (2, 9, module.in_features) if linear else (2, module.in_channels, 7, 6)
    x = torch.randint(low - zero, high - zero + 1, shape).float()
    top, rows = (1 << (bits - 1)) - 1, len(module.weight)
    codes = torch.randint(-top, top + 1, (rows, module.weight[0].numel()), dtype=torch.int8)
    form = mp.Format.parse(f"int{bits}").as_weight()
    ones = Codes(codes, torch.ones(rows).half(), None, form, tuple(module.weight.shape))
    option = mp.Option.parse(f"w{bits}a8")
    store(module, option, ones, activations.Grid(1.0, zero, low, high), torch.float32)
    kernel = OneDnn().kernel(layer(), option, module)
    assert kernel is not None
    with torch.no_grad():
        found = kernel(x)
    assert float(found.abs().max()) < 1 << 24  # up to there, every integer is a float32
    torch.testing.assert_close(found.double(), kernel.sums(x.double()), rtol=0, atol=0)


def test_the_largest_sums_do_not_saturate() -> None:
    assert onednn.exact()


@pytest.mark.parametrize("option", OPTIONS)
def test_a_kernel_computes_what_its_reference_and_the_quantized_module_do(option: str) -> None:
    _, model, x = at(option)
    for name, (read, written) in seen(model, x).items():
        module: Any = model.get_submodule(name)
        kernel = OneDnn().kernel(layer(name), mp.Option.parse(option), module)
        assert kernel is not None
        assert kernel.runs_as == "int8/int8"
        codes = kernel.codes(read)
        moved = activations.codes(read, module.grid) + kernel.grid.zero - module.grid.zero
        torch.testing.assert_close(codes.short(), moved, rtol=0, atol=0)
        with torch.no_grad():
            found, wanted = kernel(read), kernel.reference(codes)
        peak = float(wanted.abs().max())
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * peak)
        torch.testing.assert_close(found, written, rtol=0, atol=1e-6 * peak)


def test_a_kernel_writes_the_type_it_reads() -> None:
    _, model, x = at("w8a8")
    kernel = OneDnn().kernel(layer(), mp.Option.parse("w8a8"), model.get_submodule("stem"))
    assert kernel is not None
    assert kernel(x.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("wide", (2, 11), r"reads 12 values along axis -1, got an input of shape \(2, 11\)"),
        ("wide", (), r"reads 12 values along axis -1, got an input of shape \(\)"),
        ("stem", (2, 4, 9, 9), "reads 3 values along axis -3, got"),
        ("grouped", (2, 4, 9, 9), "reads 8 values along axis -3, got"),
        ("stem", (9, 9), "reads 3 values along axis -3, got"),
    ],
)
def test_an_input_of_another_width_is_refused(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    _, model, _ = at("w8a8")
    kernel = OneDnn().kernel(layer(name), mp.Option.parse("w8a8"), model.get_submodule(name))
    assert kernel is not None
    with pytest.raises(ValueError, match=f"layer '{name}' {message}"):
        kernel(torch.randn(shape))


@pytest.mark.parametrize("option", ["w4a16", "fp32/fp32", "int4a/int8", "int4g4/int8", "bf16/int8"])
def test_there_is_no_kernel_for_other_formats(option: str) -> None:
    _, model, _ = at(option)
    found = OneDnn().kernel(layer(), mp.Option.parse(option), model.get_submodule("wide"))
    assert found is None


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(3, 4, 3),
        nn.ConvTranspose2d(3, 4, 3),
        nn.Embedding(4, 3),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        PaddedConv(3, 4, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_there_is_no_kernel_for_other_operators(module: nn.Module) -> None:
    assert OneDnn().kernel(layer(), mp.Option.parse("w8a8"), module) is None


def test_there_is_no_kernel_where_sums_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = at("w8a8")
    monkeypatch.setattr(onednn, "exact", lambda: False)
    assert OneDnn().kernel(layer(), mp.Option.parse("w8a8"), model.get_submodule("wide")) is None


def test_a_module_without_codes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' at 'int8/int8': its module is a Linear that"):
        OneDnn().kernel(layer("fc"), mp.Option.parse("w8a8"), nn.Linear(3, 4))
