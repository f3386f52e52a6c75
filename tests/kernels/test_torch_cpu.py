"""What torch runs on CPUs, and what it says it does not."""

import pytest
import torch

import mpsearch as mp
from mpsearch.kernels import onednn
from mpsearch.kernels.torch_cpu import TorchCpu
from tests.kernels.networks import NAMES, at, layer, seen

INTEGERS = ["w8a8", "w4a8", "int3/int8", "w2a2", "int8t/int4s"]


@pytest.mark.parametrize("option", INTEGERS)
def test_integers_run_on_integer_operators(option: str) -> None:
    _, model, x = at(option)
    for name, (read, written) in seen(model, x).items():
        kernel = TorchCpu().kernel(layer(name), mp.Option.parse(option), model.get_submodule(name))
        assert isinstance(kernel, onednn.Integers)
        step = float(written.abs().max()) / 127  # of an 8-bit grid over the output
        with torch.no_grad():
            assert float((kernel(read) - written).abs().max()) < 1e-3 * step


@pytest.mark.parametrize(("option", "within"), [("fp32/fp32", 1e-5), ("bf16/bf16", 2**-7)])
def test_floats_of_one_type_run_in_it(option: str, within: float) -> None:
    model, _, x = at(option)
    for name, (read, written) in seen(model, x).items():
        kernel = TorchCpu().kernel(layer(name), mp.Option.parse(option), model.get_submodule(name))
        assert kernel is not None
        assert kernel.runs_as == option
        with torch.no_grad():
            off = (kernel(read) - written).abs().max() / written.abs().max()
        assert float(off) < within


@pytest.mark.parametrize(
    "option",
    ["int4/fp16", "int4/fp32", "w16a16", "bf16/fp32", "fp8_e4m3/bf16", "int4a/int8", "int4g4/int8"],
)
def test_what_would_run_as_something_else_has_no_kernel(option: str) -> None:
    _, model, _ = at(option)
    for name in NAMES:
        module = model.get_submodule(name)
        assert TorchCpu().kernel(layer(name), mp.Option.parse(option), module) is None
