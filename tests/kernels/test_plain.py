"""Float kernels beside the modules they stand for."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.kernels.onednn import OneDnn
from mpsearch.kernels.plain import Plain, floated, running, runs_as
from tests.kernels.networks import NAMES, Net, at, layer, seen

PLAIN = Plain()


@pytest.mark.parametrize("option", ["fp32/fp32", "fp16/fp16", "int4/fp32", "w2a16", "int4g4/fp16"])
def test_32_bits_give_what_the_module_gives(option: str) -> None:
    _, model, x = at(option)
    for name, (read, written) in seen(model, x).items():
        kernel = PLAIN.kernel(layer(name), mp.Option.parse(option), model.get_submodule(name))
        assert kernel is not None
        assert kernel.runs_as == "fp32/fp32"
        with torch.no_grad():
            torch.testing.assert_close(kernel(read), written, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", ["bf16/bf16", "int4/bf16"])
def test_bfloat16_is_close_and_keeps_the_input_s_type(option: str) -> None:
    _, model, x = at(option)
    for name, (read, written) in seen(model, x).items():
        kernel = PLAIN.kernel(layer(name), mp.Option.parse(option), model.get_submodule(name))
        assert kernel is not None
        assert kernel.runs_as == "bf16/bf16"
        with torch.no_grad():
            found = kernel(read)
        assert found.dtype is torch.float32
        peak = float(written.abs().max())
        torch.testing.assert_close(found, written, rtol=0, atol=2**-6 * peak)


@pytest.mark.parametrize("option", ["fp32/bf16", "bf16/fp32", "fp16/bf16"])
def test_the_wider_of_two_floats_is_computed_in(option: str) -> None:
    assert (
        runs_as(
            PLAIN.kernel(layer(), mp.Option.parse(option), nn.Linear(2, 2)) or nn.Module(),
            mp.Option.parse(option),
        )
        == "fp32/fp32"
    )


def test_images_are_written_with_their_channels_last() -> None:
    kernel: Any = PLAIN.kernel(layer(), mp.Option.parse("fp32/fp32"), nn.Conv2d(3, 8, 3))
    with torch.no_grad():
        found = kernel(torch.randn(2, 3, 8, 8))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_lookup_takes_indices() -> None:
    table = nn.Embedding(5, 3)
    kernel: Any = PLAIN.kernel(layer(), mp.Option.parse("fp32/fp32"), table)
    index = torch.tensor([[4, 0, 4]])
    torch.testing.assert_close(kernel(index), table(index), rtol=0, atol=0)


def test_the_module_is_left_as_it_was() -> None:
    model, x = Net().eval(), torch.randn(2, 3, 9, 9)
    before = copy.deepcopy(model.state_dict())
    for name in NAMES:
        PLAIN.kernel(layer(), mp.Option.parse("bf16/bf16"), model.get_submodule(name))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
        assert value.is_contiguous()
    assert model(x).dtype is torch.float32


def test_a_quantized_module_in_floats_is_of_its_own_class_again() -> None:
    _, model, _ = at("w4a8")
    made: Any = floated(model.get_submodule("stem"))
    assert type(made) is nn.Conv2d
    assert sorted(made.state_dict()) == ["bias", "weight"]
    stored: Any = model.get_submodule("stem")
    torch.testing.assert_close(made.weight.data, stored.weight, rtol=0, atol=0)


def test_without_a_kernel_a_layer_runs_in_floats() -> None:
    _, model, _ = at("int4a/int8")
    asked = mp.Option.parse("int4a/int8")
    for backend in (OneDnn(), PLAIN):
        found = running(backend, layer(), asked, model.get_submodule("wide"))
        assert runs_as(found, asked) == "fp32/fp32"
    half = mp.Option.parse("bf16/bf16")
    assert runs_as(running(OneDnn(), layer(), half, nn.Linear(2, 2)), half) == "bf16/bf16"


def test_a_kernel_of_others_that_says_nothing_runs_as_the_option() -> None:
    assert runs_as(nn.Identity(), mp.Option.parse("int4/fp16+gptq")) == "int4/fp16"
