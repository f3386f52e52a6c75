"""Whole networks on codes: what they compute beside the quantized module, and what ran."""

import copy
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpsearch as mp
from mpsearch.batches import divergence
from mpsearch.demo import digits
from mpsearch.kernels.code_steps import Sum
from mpsearch.kernels.on_codes import OnCodes
from mpsearch.kernels.onednn import Fused
from mpsearch.kernels.running import on_kernels, ran
from mpsearch.kernels.torch_cpu import TorchCpu
from mpsearch.quant.model import quantize
from tests.kernels.networks import Conv1D, Net
from tests.kernels.test_code_steps import agree, literally, meant

CODES = "torch-cpu:codes"
BESIDE = "beside the layers"


class Block(nn.Module):
    """Two convolutions, their norms, and a branch around them that may have a convolution too."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.one_norm = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.two_norm = nn.BatchNorm2d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride > 1:
            down = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.around = nn.Sequential(down, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.two_norm(self.two(self.one_norm(self.one(x)).relu()))
        return F.relu(y + self.around(x))


class ResNet(nn.Module):
    """Of three blocks, behind a pool and before one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1))
        self.head = nn.Linear(16, 5)
        for each in self.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.running_mean = torch.randn(each.num_features) * 0.3
                each.running_var = torch.rand(each.num_features) + 0.5
                nn.init.uniform_(each.weight, -0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.stem(x)).relu(), 3, 2, 1)
        x = F.adaptive_avg_pool2d(self.blocks(x), 1)
        out: Tensor = self.head(x.view(x.size(0), 16))
        return out


class Mlp(nn.Module):
    """Linear layers over the last of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 18), nn.Hardtanh(-1, 2), nn.Linear(18, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Normed(nn.Module):
    """Linear layers with norms behind, of rows and of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(6, 9), nn.BatchNorm1d(9)
        self.two, self.other = nn.Linear(9, 4), nn.BatchNorm1d(3, affine=False)
        for each in (self.norm, self.other):
            each.running_mean = torch.randn(each.num_features)
            each.running_var = torch.rand(each.num_features) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.one(x.flatten(0, 1))).relu().view(x.shape[0], 3, 9)
        out: Tensor = self.other(self.two(y))
        return out


class Moves(nn.Module):
    """Whatever moves, joins, pads, averages or clamps, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=2)
        self.three = nn.Conv2d(16, 8, 1)
        self.four = nn.Conv2d(8, 6, 3, stride=2, padding=2, dilation=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.one(x))
        y = torch.cat([x, F.max_pool2d(self.two(x).relu(), 3, 1, 1)], 1)
        left, right = self.three(y).chunk(2, 1)
        y = torch.cat([F.pad(right, (1, 0, 0, 1))[..., 1:, :-1], left], 1).relu() + x
        y = F.avg_pool2d(self.four(y + y).clamp(-1, 2), 2, 1, 1)
        out: Tensor = self.head(y.flatten(2).transpose(1, 2)).softmax(-1)
        return out


class Signed(nn.Module):
    """Codes whose zero is not 0, padded, clamped, averaged, viewed and added to others' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3)
        self.two = nn.Conv2d(6, 4, 3)
        self.three = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4 * 7 * 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = self.two(F.pad(x, (1, 0, 0, 1)))
        y = y + self.three(x.relu()).mean((2, 3), keepdim=True)
        out: Tensor = self.head(F.hardtanh(y, -0.2, 0.1).view(y.size(0), 140)).relu()
        return out


class Late(nn.Module):
    """A tensor that is read after another was added to it, through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.three = nn.Conv2d(8, 8, 3, padding=1)
        self.four = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.one(x).relu()
        part = x[:, :, 1:]
        y = (self.two(x) + x).relu()
        z = self.three(y) + x
        return self.four(part), self.four(z)


class Short(nn.Module):
    """Adds to what a layer writes what it reads, and a tensor to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)
        self.three = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        x = self.two(x) + x
        x = self.three(x) + x
        x = self.two(x)
        out: Tensor = self.three(x + x)
        return out


class Attention(nn.Module):
    """A transformer's block, over a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 16)
        self.back = nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = self.norm(x + self.attention(x, x, x)[0])
        out: Tensor = x + self.back(F.gelu(self.wide(x)))
        return out


def layers_of(model: nn.Module) -> list[str]:
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, each in model.named_modules() if isinstance(each, kinds)]


def made(of: type[nn.Module], *shape: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return of().eval(), torch.randn(shape or (4, 3, 11, 9))


def both(model: nn.Module, x: Any, option: str | dict[str, str]) -> tuple[nn.Module, OnCodes]:
    """The quantized module, and the network on codes."""
    options = option if isinstance(option, dict) else dict.fromkeys(layers_of(model), option)
    real = mp.quantize(model, options, [x], backend=CODES)
    assert isinstance(real, OnCodes)
    return quantize(model, options, [x]), real


def steps(model: OnCodes) -> dict[str, nn.Module]:
    return {n: each for n, each in model.steps.named_children() if isinstance(each, Fused | Sum)}


@pytest.mark.parametrize("option", ["w8a8", "w4a8", "int4/int8s", "w4a4"])
@pytest.mark.parametrize("of", [ResNet, Moves, Late, Short, Signed])
@torch.no_grad()
def test_every_step_is_what_it_means_but_for_ties(of: type[nn.Module], option: str) -> None:
    model, x = made(of, 4, 3, 10, 8)
    _, real = both(model, x, option)
    looked: list[str] = []

    def check(name: str) -> Any:
        def hook(step: Any, args: Any, found: Tensor) -> None:
            looked.append(name)
            if isinstance(step, Sum):
                values = sum(
                    (meant(a, g) for a, g in zip(args, step.grids, strict=True)), torch.zeros(())
                )
            else:
                values = step.kernel.reference(args[0])
                values = values if step.other is None else values + meant(args[1], step.other)
            agree(found, literally(values, step.out), step.out)

        return hook

    for name, step in steps(real).items():
        if isinstance(step, Fused):
            step.over = False  # for the hook to see what was added
        step.register_forward_hook(check(name))
    real(x)
    assert len(looked) == len(steps(real))


@pytest.mark.parametrize(
    ("of", "shape", "most"),
    [
        (Signed, (4, 3, 10, 8), 0.02),
        (ResNet, (4, 3, 11, 9), 0.02),
        (ResNet, (3, 3, 16, 16), 0.02),
        (Mlp, (5, 3, 7), 1e-3),
        (Moves, (4, 3, 11, 9), 0.005),
        (Normed, (5, 3, 6), 1e-3),
        (Net, (4, 3, 9, 9), 2e-3),
        (Short, (4, 3, 6, 6), 0.04),
    ],
)
def test_a_network_is_the_quantized_one_but_for_8_bits(
    of: type[nn.Module], shape: tuple[int, ...], most: float
) -> None:
    model, x = made(of, *shape)
    fake, real = both(model, x, "int8/int8s" if of is Signed else "w8a8")
    for count in (len(x), 1, 2, 0):
        given = x[:count]
        with torch.no_grad():
            found, wanted = real(given), fake(given)
        assert found.shape == wanted.shape
        assert found.dtype is torch.float32
        if count:
            assert float((found - wanted).abs().mean()) <= most * float(wanted.abs().mean())
    more = torch.cat([x, x.flip(0), x])
    with torch.no_grad():
        torch.testing.assert_close(real(more)[: len(x)], real(x))


def test_a_norm_of_the_same_rows_is_part_of_a_linear_layer() -> None:
    model, x = made(Normed, 5, 3, 6)
    said = ran(both(model, x, "w8a8")[1])
    assert said["one"] == "int8/int8 to codes"
    assert said[BESIDE] == (
        "1 view of floats, 1 floats to codes, 1 view of codes, 1 batch_norm of floats"
    )


def test_what_ran() -> None:
    model, x = made(ResNet)
    _, real = both(model, x, "w8a8")
    said = ran(real)
    assert said.pop(BESIDE) == (
        "2 floats to codes, 1 max_pool2d of codes, 1 adaptive_avg_pool2d of codes, 1 view of codes"
    )
    assert said == {
        "stem": "int8/int8 to codes",
        "blocks.0.one": "int8/int8 to codes",
        "blocks.0.two": "int8/int8 + codes to codes",
        "blocks.1.one": "int8/int8 to codes",
        "blocks.1.two": "int8/int8 to codes",
        "blocks.1.around.0": "int8/int8 + codes to codes",
        "blocks.2.one": "int8/int8 to codes",
        "blocks.2.two": "int8/int8 + codes to codes",
        "head": "int8/int8",
    }


def test_a_sum_is_written_over_codes_that_nothing_reads_later() -> None:
    for of, wanted in ((ResNet, [True] * 3), (Late, [False] * 2), (Short, [False] * 2)):
        model, x = made(of)
        _, real = both(model, x, "w8a8")
        over = [
            each.over
            for each in steps(real).values()
            if isinstance(each, Fused) and each.other is not None
        ]
        assert over == wanted


def test_layers_may_have_any_option_the_backend_has() -> None:
    model, x = made(ResNet)
    options = dict.fromkeys(layers_of(model), "w8a8") | {
        "blocks.0.two": "w4a4",
        "blocks.1.two": "bf16/bf16",
        "blocks.2.one": "fp32/fp32",
    }
    del options["blocks.1.around.0"]
    fake, real = both(model, x, options)
    said = ran(real)
    assert said["blocks.2.one"] == "fp32/fp32"
    assert said["blocks.1.two"] == "bf16/bf16"
    assert said["blocks.1.around.0"] == "left as it was"
    assert said["blocks.0.two"] == "int8/int8 + codes to codes"
    with torch.no_grad():
        found, wanted = real(x), fake(x)
    assert float((found - wanted).abs().mean()) < 0.03 * float(wanted.abs().mean())


def test_layers_without_a_kernel_are_refused_or_run_in_floats() -> None:
    model, x = made(ResNet)
    options = {"stem": "w8a8", "blocks.0.one": "int4a/int8", "head": "int4g16/fp16"}
    with pytest.raises(ValueError, match=r"between='codes'\) has no kernel for 2 of 3 layers"):
        mp.quantize(model, options, [x], backend=CODES)
    real = mp.quantize(model, options, [x], backend=CODES, fallback="plain")
    assert ran(real)["blocks.0.one"] == "fp32/fp32 in place of int4a/int8"
    assert ran(real)["head"] == "fp32/fp32 in place of int4g16/fp16"
    with torch.no_grad():
        found, wanted = real(x), quantize(model, options, [x])(x)
    assert float((found - wanted).abs().mean()) < 1e-3 * float(wanted.abs().mean())


class Deep(nn.Module):
    """Convolutions that have no integer kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.solid = nn.Conv3d(2, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2, groups=3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.up(self.solid(x).flatten(1, 2)).mean((2, 3)))
        return out


def test_convolutions_of_every_kind_run_in_floats() -> None:
    model, x = made(Deep, 4, 2, 3, 5, 6)
    options = {"solid": "w8a8", "up": "int4/int5", "head": "w8a8"}
    real = mp.quantize(model, options, [x], backend=CODES, fallback="plain")
    assert ran(real)["solid"] == "fp32/fp32 in place of int8/int8"
    assert ran(real)["up"] == "fp32/fp32 in place of int4/int5"
    fake = quantize(model, options, [x])
    with torch.no_grad():
        torch.testing.assert_close(real(x[:3]), fake(x[:3]))


class ByName(nn.Module):
    """Reads whatever it is given by name, with a linear layer of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), Conv1D(6, 4)

    def forward(self, **given: Tensor) -> Tensor:
        out: Tensor = self.one(given["a"]) - self.two(given["b"])
        return out


def test_batches_may_name_their_tensors_in_any_order() -> None:
    torch.manual_seed(0)
    model, options = ByName().eval(), {"one": "w8a8", "two": "w8a8"}
    first = {"a": torch.randn(5, 4), "b": 30 * torch.randn(5, 4)}
    batches = [first, {"b": first["b"], "a": first["a"]}]
    real = mp.quantize(model, options, batches, backend=CODES)
    assert ran(real)["two"] == "int8/int8"
    with torch.no_grad():
        torch.testing.assert_close(real(**first), quantize(model, options, batches)(**first))


def test_batches_that_name_other_tensors_are_refused() -> None:
    model, batches = Several().eval(), [{"a": torch.randn(5, 4), "b": torch.randn(5, 3)}]
    captured = quantize(model, {"one": "w8a8"}, batches)
    with pytest.raises(ValueError, match=r"batches name the tensors \[\['a', 'b'\], \['a'\]\]; a"):
        on_kernels(captured, {"one": "w8a8"}, CODES, [*batches, {"a": torch.randn(5, 4)}])


def test_attention_and_tables() -> None:
    torch.manual_seed(0)
    model, ids = Attention().eval(), torch.randint(11, (3, 5))
    options = {"table": "int8/fp16", "attention.in_proj": "w8a8", "wide": "w8a8", "back": "w4a8"}
    real = mp.quantize(model, options, [{"ids": ids}], backend=CODES)
    fake = quantize(model, options, [{"ids": ids}])
    said = ran(real)
    assert "layer_norm of floats" in said.pop(BESIDE)
    assert said == {
        "table": "lookup",
        "attention.in_proj": "int8/int8",
        "attention.out_proj": "left as it was",
        "wide": "int8/int8",
        "back": "int8/int8",
    }
    with torch.no_grad():
        torch.testing.assert_close(real(ids=ids), fake(ids=ids), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(real(ids), real(ids=ids))


class Several(nn.Module):
    """Two inputs, read by name in any order, and outputs in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 6)
        self.two = nn.Linear(3, 6)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        x, y = self.one(a), self.two(b)
        return {"sum": x + y, "each": (x, [y])}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_inputs_by_name_and_outputs_in_containers(order: tuple[str, str]) -> None:
    torch.manual_seed(0)
    model, given = Several().eval(), {"a": torch.randn(5, 4), "b": torch.randn(5, 3)}
    batch, options = {name: given[name] for name in order}, {"one": "w8a8", "two": "w4a8"}
    real = mp.quantize(model, options, [batch], backend=CODES)
    with torch.no_grad():
        found, wanted = real(**given), quantize(model, options, [batch])(**given)
    assert type(found["each"]) is tuple
    torch.testing.assert_close(found, wanted)


def test_one_layer_alone() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(5, 6)
    real = mp.quantize(model, {"": "w8a8"}, [x], backend=CODES)
    assert ran(real) == {"": "int8/int8", BESIDE: "1 floats to codes"}
    torch.testing.assert_close(real(x), quantize(model, {"": "w8a8"}, [x])(x).detach())


@pytest.mark.parametrize(
    "changed",
    [
        copy.deepcopy,
        nn.Module.eval,
        lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301  (our own)
    ],
)
def test_a_copy_computes_the_same(changed: Callable[[nn.Module], nn.Module]) -> None:
    model, x = made(ResNet)
    _, real = both(model, x, "w8a8")
    with torch.no_grad():
        before = real(x)
        new = changed(real)
        assert torch.equal(new(x), before)
    assert ran(new) == ran(real)


def test_the_model_and_the_input_are_left_as_they_were() -> None:
    model, x = made(ResNet)
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    _, real = both(model, x, "w8a8")
    with torch.no_grad():
        real(x)
    assert torch.equal(x, given)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )


def test_a_trained_network_answers_the_same() -> None:
    task = digits.task()
    options = dict.fromkeys(layers_of(task.model), "w8a8")
    batches, kl = list(task.batches), []
    fake, real = (mp.quantize(task.model, options, batches, backend=b) for b in (None, CODES))
    with torch.no_grad():
        for x, _ in batches:
            kl.append(float(divergence(fake(x), real(x), "kl").mean()))
    assert max(kl) < 1e-5


def test_what_only_floats_are_made_of_is_not_rounded() -> None:
    model, x = made(Late)
    fake, real = both(model, x, {"four": "w8a8"})
    assert ran(real)["four"] == "int8/int8"
    with torch.no_grad():
        torch.testing.assert_close(real(x), fake(x), rtol=1e-4, atol=1e-5)


@pytest.mark.shared
def test_a_residual_network_that_was_trained(shared: Path) -> None:
    cifar10: Any = importlib.import_module("examples.cifar10")
    model, (x, y) = cifar10.network(20), cifar10.images("test", 200)
    options, calibrate = dict.fromkeys(layers_of(model), "w8a8"), [cifar10.images("calib", 256)]
    fake, real = (mp.quantize(model, options, calibrate, backend=b) for b in (None, CODES))
    said = ran(real)
    assert said.pop(BESIDE).count("of floats") == 0
    assert [name for name, kernel in said.items() if "to codes" not in kernel] == ["linear"]
    with torch.no_grad():
        wanted, found = fake(x), real(x)
    assert float(divergence(wanted, found, "kl").mean()) < 2e-3
    assert int((found.argmax(1) == y).sum()) >= int((wanted.argmax(1) == y).sum()) - 2


class Branching(nn.Module):
    """Asks what its input holds."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x if float(x.sum()) > 0 else -x)
        return out


class Strided(Branching):
    """Reads memory."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x).as_strided((2, 2), (4, 1))
        return out


class Own(NamedTuple):
    """A container of a model's own."""

    y: Tensor


class Contained(Branching):
    """Returns a container of its own."""

    def forward(self, x: Tensor) -> Any:
        return Own(y=self.one(x))


class Product(nn.Linear):
    """Multiplies in its own way."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        return input @ self.weight.t()


class Products(Branching):
    """A layer that is no call of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.one = Product(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.one(x)
        return out


@pytest.mark.parametrize(
    ("of", "shape", "message"),
    [
        (
            Branching,
            (3, 4),
            "cannot capture the Branching: .*; run it layer by layer, on 'torch-cpu'",
        ),
        (Strided, (2, 4), "as_strided reads memory, laid out otherwise for codes; run it layer by"),
        (Products, (3, 4), "layer 'one': torch.export shows it as operators that are no call"),
    ],
)
def test_what_cannot_be_put_together_is_refused(
    of: type[nn.Module], shape: tuple[int, ...], message: str
) -> None:
    model, x = made(of, *shape)
    with pytest.raises(ValueError, match=message):
        mp.quantize(model, {"one": "w8a8"}, [x], backend=CODES, fallback="plain")


def test_a_container_of_a_model_s_own_is_refused() -> None:
    model, x = made(Contained, 3, 4)
    with pytest.raises(
        ValueError, match=r"the network returns a Own; return tensors in tuples, lists"
    ):
        mp.quantize(model, {"one": "w8a8"}, [x], backend=CODES)


def test_other_types_and_shapes_are_refused() -> None:
    model, x = made(Mlp, 5, 3, 7)
    options = {"layers.0": "w8a8"}
    with pytest.raises(ValueError, match=r"'layers.0.bias' is in torch.bfloat16; floats between"):
        mp.quantize(model.bfloat16(), options, [x.bfloat16()], backend=CODES)
    model = model.float()
    with pytest.raises(
        ValueError, match=r"batches have the shapes .*; a network is captured for one"
    ):
        mp.quantize(model, options, [x, x[:, :2]], backend=CODES)
    with pytest.raises(ValueError, match="codes between layers need ranges; give batches"):
        on_kernels(quantize(model, options, [x]), options, CODES)
    with pytest.raises(ValueError, match="between is 'floats' or 'codes', got 'ints'"):
        mp.quantize(model, options, [x], backend="torch-cpu:ints")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(5, 2, 7),), r"input 'x' is \(5, 2, 7\) in torch.float32; the network was"),
        (
            (torch.zeros(5, 3, 7).half(),),
            r"is \(5, 3, 7\) in torch.float16; .* \(samples, 3, 7\) in",
        ),
        ((None,), "input 'x' is None; the network was captured for"),
        ((), "captured for the inputs x; got 0 by position, and none by name"),
    ],
)
def test_inputs_it_was_not_captured_for_are_refused(args: Any, message: str) -> None:
    model, x = made(Mlp, 5, 3, 7)
    _, real = both(model, x, {"layers.0": "w8a8"})
    with pytest.raises(ValueError, match=message):
        real(*args)


def test_a_layer_that_is_not_called_is_said_not_to_have_run() -> None:
    model, x = made(Mlp, 5, 3, 7)
    model.add_module("unused", nn.Linear(3, 3))
    quantized = quantize(model, {"layers.0": "w8a8"}, [x])
    real = on_kernels(quantized, {"layers.0": "w8a8", "unused": "fp32/fp32"}, CODES, [x])
    assert ran(real)["unused"] == "not run"


def test_samples_that_the_model_counts_are_fixed() -> None:
    class Counting(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.ones(len(x), 1, 1)

    model, x = made(Counting, 5, 3, 7)
    _, real = both(model, x, "w8a8")
    with pytest.raises(ValueError, match=r"is \(2, 3, 7\) in .* captured for \(5, 3, 7\) in"):
        real(x[:2])


def test_one_sample_is_captured_for_one() -> None:
    model, x = made(Mlp, 1, 3, 7)
    _, real = both(model, x, "w8a8")
    with pytest.raises(ValueError, match=r"the network was captured for \(1, 3, 7\) in"):
        real(torch.cat([x, x]))
    assert ran(mp.quantize(model, {"layers.0": "w8a8"}, [x], backend=TorchCpu()))
