"""A network on kernels: what runs, beside the quantized network it stands for."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mpsearch as mp
from mpsearch.kernels.onednn import OneDnn
from mpsearch.kernels.placing import beside
from mpsearch.kernels.running import in_turns, quantize, ran
from mpsearch.kernels.torch_cpu import TorchCpu
from tests.kernels.networks import NAMES, Looking, Net

MIXED = dict(zip(NAMES, ("w8a8", "w4a8", "fp32/fp32", "int3/int8", "w2a4"), strict=True))
BACKEND = TorchCpu()


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randn(4, 3, 9, 9)


class Words(nn.Module):
    """A table that the head shares, attention, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.once = nn.Linear(8, 8)
        self.again = self.once
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.attention(x, x, x)[0]
        out: Tensor = self.head(self.again(self.once(x).relu()))
        return out


def test_each_layer_runs_its_kernel_and_the_report_says_which() -> None:
    model, x = network()
    real = quantize(model, MIXED, [x], backend=BACKEND)
    assert ran(real) == {n: "fp32/fp32" if n == "grouped" else "int8/int8" for n in NAMES}
    with torch.no_grad(), Operators() as seen:
        real(x)
    assert seen.names.count("onednn.qconv2d_pointwise") == 2
    assert seen.names.count("onednn.qlinear_pointwise") == 2
    assert seen.names.count("aten.convolution") == 1
    assert "aten.linear" not in seen.names
    assert "aten.addmm" not in seen.names


def test_every_layer_computes_what_the_quantized_module_does_on_the_same_input() -> None:
    model, x = network()
    fake, real = quantize(model, MIXED, [x]), quantize(model, MIXED, [x], backend=BACKEND)
    for name in NAMES:
        one, other = fake.get_submodule(name), real.get_submodule(name)

        def check(module: nn.Module, args: Any, y: Tensor, kernel: nn.Module = other) -> None:
            step = float(y.abs().max()) / 127
            assert float((kernel(*args) - y).abs().max()) < 1e-3 * step

        one.register_forward_hook(check)
    with torch.no_grad():
        fake(x)


def test_the_model_is_left_as_it_was() -> None:
    model, x = network()
    before = copy.deepcopy(model.state_dict())
    quantize(model, MIXED, [x], backend=BACKEND)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    assert type(model.get_submodule("stem")) is nn.Conv2d


def test_without_a_backend_it_is_the_quantized_module() -> None:
    model, x = network()
    plain = quantize(model, MIXED, [x])
    assert type(plain.get_submodule("stem")).__name__ == "QuantizedConv2d"
    assert ran(plain)["stem"] == "floats that stand for int8/int8"
    assert ran(plain)["grouped"] == "left as it was"


def test_shared_weights_attention_and_a_layer_of_two_names() -> None:
    torch.manual_seed(0)
    model, ids = Words().eval(), torch.randint(11, (3, 5))
    options = {"head": "w4a8", "once": "w8a8", "attention.in_proj": "w8a8"}
    real = quantize(model, options, [ids], backend=BACKEND)
    assert ran(real) == {
        "table": "lookup",
        "attention.in_proj": "int8/int8",
        "attention.out_proj": "left as it was",
        "once": "int8/int8",
        "again": "int8/int8",
        "head": "int8/int8",
    }
    assert real.get_submodule("once") is real.get_submodule("again")
    fake = quantize(model, options, [ids])
    with torch.no_grad():
        off = (real(ids) - fake(ids)).abs().max()
    assert float(off) < 1e-5


def test_a_model_that_is_one_layer() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(5, 6)
    real = quantize(model, {"": "w8a8"}, [x], backend=BACKEND)
    assert ran(real) == {"": "int8/int8"}
    torch.testing.assert_close(real(x), quantize(model, {"": "w8a8"}, [x])(x).detach())


def test_layers_without_a_kernel_are_one_error_that_lists_them() -> None:
    model, x = network()
    options = MIXED | {"stem": "int4a/int8", "head": "int4/fp16"}
    wanted = (
        r"TorchCpu\(between='floats'\) has no kernel for 2 of 5 layers: 'stem' at 'int4a/int8', 'head' at"
        r" 'int4/fp16'; give them options it has kernels for, name another"
    )
    with pytest.raises(ValueError, match=wanted):
        quantize(model, options, [x], backend=BACKEND)
    with pytest.raises(ValueError, match=r"OneDnn\(\) has no kernel for 1 of 5 layers: 'grouped'"):
        quantize(model, MIXED, [x], backend=OneDnn())


def test_a_layer_of_two_names_is_listed_once() -> None:
    model, ids = Words().eval(), torch.randint(11, (3, 5))
    with pytest.raises(
        ValueError, match=r"no kernel for 1 of 1 layers: 'once' at 'int4/fp16'; give"
    ):
        quantize(model, {"once": "w4a16"}, [ids], backend=BACKEND)


def test_networks_are_timed_in_turns_each_right_after_itself() -> None:
    log: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            log.append(self.name)
            return x

    taken = in_turns([Named("a"), Named("b")], torch.zeros(1), 3)
    assert log == ["a", "a", "b", "b"] * 3
    assert [each.calls for each in taken] == [3, 3]


def test_a_fallback_is_named_and_computes_what_the_quantized_module_does() -> None:
    model, x = network()
    options = MIXED | {"stem": "int4a/int8", "head": "int4/fp16"}
    real = quantize(model, options, [x], backend=BACKEND, fallback="plain")
    assert ran(real)["stem"] == "fp32/fp32 in place of int4a/int8"
    assert ran(real)["head"] == "fp32/fp32 in place of int4/fp16"
    assert ran(real)["wide"] == "int8/int8"
    fake = quantize(model, options, [x])
    with torch.no_grad():
        torch.testing.assert_close(real.get_submodule("stem")(x), fake.get_submodule("stem")(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fallback": "plain"}, "fallback is 'plain' and there is no backend; name one"),
        ({"fallback": "floats", "backend": BACKEND}, "fallback is 'floats'; wanted 'plain' or"),
    ],
)
def test_a_fallback_that_means_nothing_is_refused(changes: Any, message: str) -> None:
    model, x = network()
    with pytest.raises(ValueError, match=message):
        quantize(model, MIXED, [x], **changes)


def test_an_unknown_layer_is_refused_whatever_its_option() -> None:
    model, x = network()
    with pytest.raises(KeyError, match="the model keeps no weight named 'nowhere'"):
        quantize(model, {"nowhere": "fp32/fp32"}, [x], backend=BACKEND)


def test_an_unknown_backend_is_refused() -> None:
    model, x = network()
    with pytest.raises(LookupError, match="nothing in backends is named 'tpu'; there are"):
        quantize(model, MIXED, [x], backend="tpu")


@pytest.mark.parametrize(
    "changed", [copy.deepcopy, lambda model: model.eval(), lambda model: model.float()]
)
def test_a_copy_computes_the_same(changed: Callable[[nn.Module], nn.Module]) -> None:
    model, x = network()
    real = quantize(model, MIXED, [x], backend=BACKEND)
    with torch.no_grad():
        before = real(x)
        assert torch.equal(changed(real)(x), before)


@pytest.mark.parametrize("shape", [(0, 3, 9, 9), (3, 9, 9)])
def test_no_images_and_one_alone(shape: tuple[int, ...]) -> None:
    model, x = network()
    options = dict.fromkeys(NAMES, "w8a8")
    fake, real = quantize(model, options, [x]), quantize(model, options, [x], backend=BACKEND)
    given = torch.randn(shape)
    with torch.no_grad():
        for name in ("stem", "depthwise", "grouped"):
            wanted = fake.get_submodule(name)(given)
            torch.testing.assert_close(real.get_submodule(name)(given), wanted)
            given = wanted
        flat = torch.randn(2, 0, 12)
        assert real.get_submodule("wide")(flat).shape == fake.get_submodule("wide")(flat).shape


@pytest.mark.parametrize("fallback", [None, "plain"])
def test_a_model_may_look_at_a_layer_that_it_does_not_call(fallback: Any) -> None:
    torch.manual_seed(0)
    model, x = Looking().eval(), torch.randn(2, 3, 6, 6)
    weight = "int4a/int8" if fallback else "w8a8"  # no kernel has it
    options = {"patch": weight, "mixed": "w8a8", "head": weight}
    fake = quantize(model, options, [x])
    real = quantize(model, options, [x], backend=BACKEND, fallback=fallback)
    assert ran(real)["mixed"] == "int8/int8"
    with torch.no_grad():
        torch.testing.assert_close(real(x), fake(x))
    head: Any = real.get_submodule("head")
    assert nn.functional.linear(torch.randn(2, 4), head.weight).isnan().all()  # not its values


def test_what_stands_for_a_layer_that_is_timed_may_be_looked_at() -> None:
    torch.manual_seed(0)
    model, x = Looking().eval(), torch.randn(2, 3, 6, 6)
    assert beside(model, mp.trace(model, x), x, 2).calls == 2


def test_a_table_may_be_looked_at() -> None:
    model, ids = Words().eval(), torch.randint(11, (3, 5))
    fake, real = (quantize(model, {"head": "w4a8"}, [ids], backend=b) for b in (None, BACKEND))
    assert torch.equal(real.get_submodule("table").weight, fake.get_submodule("table").weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["torch-cpu", "torch-cpu:codes"])
def test_what_has_no_state_says_what_to_save(backend: str) -> None:
    model, x = network()
    real = quantize(model, dict.fromkeys(NAMES, "w8a8"), [x], backend=backend)
    with pytest.raises(ValueError, match=r"kernels has no state_dict: .* save the network as a"):
        real.state_dict()


def test_a_backend_s_name_is_enough() -> None:
    model, x = network()
    real = mp.quantize(model, MIXED, [x], backend="torch-cpu")
    assert ran(real)["stem"] == "int8/int8"
