"""Quantized modules that are trained: their gradients, what they compute, and what is stored."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Format
from mpsearch.kernels import running
from mpsearch.kernels.torch_cpu import TorchCpu
from mpsearch.quant.encoding import encode
from mpsearch.quant.keeping import kept
from mpsearch.quant.model import packed, quantize
from mpsearch.quant.modules import Stored
from mpsearch.quant.recipe import Recipe
from tests.quant.networks import mixed, tied

FORMATS = [
    "int2",
    "int3g5a",
    "int4t",
    "nf4",
    "mxfp4",
    "ternary",
    "binary2",
    "pot3",
    "int4o5",
    "pb20",
]


def _stored(model: nn.Module, name: str) -> Stored:
    module = model.get_submodule(name)
    assert isinstance(module, Stored)
    return module


def _master(model: nn.Module, name: str) -> nn.Parameter:
    found = _stored(model, name).master
    assert found is not None
    return found


@pytest.mark.parametrize("make", [mixed, tied])
@pytest.mark.parametrize("rounding", ["nearest", "gptq", "decoupleq"])
def test_it_begins_as_the_network_that_was_measured(make: Any, rounding: Any) -> None:
    model, batches, names = make()
    recipe, options = Recipe(rounding=rounding), dict.fromkeys(names, "int3a/int4")
    wanted = quantize(model, options, batches, recipe)
    student = quantize(model, options, batches, recipe, trainable=True)
    with torch.no_grad():
        assert torch.equal(student(batches[0]), wanted(batches[0]))
    kept = packed(student).state_dict()
    assert set(kept) == set(wanted.state_dict())
    assert all(torch.equal(kept[key], value) for key, value in wanted.state_dict().items())


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_can_be_trained(form: str) -> None:
    model, batches, names = mixed()
    options = dict.fromkeys(names, f"{form}/fp32")
    student = quantize(model, options, batches, trainable=True)
    with torch.no_grad():
        assert torch.equal(student(batches[0]), quantize(model, options, batches)(batches[0]))
    student(batches[0]).square().sum().backward()
    for name in names:
        slope = _master(student, name).grad
        assert slope is not None
        assert float(slope.abs().sum()) > 0
        _master(student, name).data += 0.05 * slope.sign()
    with torch.no_grad():
        found, wanted = packed(student)(batches[0]), student(batches[0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    stem = _stored(student, "stem")
    if Format.parse(form).kind != "int":
        assert stem.master is not None
        same = kept(stem.stored())  # what has more bits stays
        wanted_weight = encode(stem.master, Format.parse(form), salience=same).dequantize()
        assert torch.equal(stem.weight, wanted_weight)


def _literal(x: Tensor, student: nn.Sequential) -> dict[str, Tensor]:
    """Gradients of two layers by the chain rule, rounding taken for the identity in between."""
    one, two = _stored(student, "0"), _stored(student, "2")
    grids = one.grid, two.grid
    with torch.no_grad():
        w1, w2 = one.weight, two.weight

        def clipped(values: Tensor, grid: Any) -> tuple[Tensor, Tensor]:
            codes = torch.round(values / grid.scale) + grid.zero
            inside = (codes >= grid.low) & (codes <= grid.high)
            return (codes.clamp(grid.low, grid.high) - grid.zero) * grid.scale, inside

        x1, inside1 = clipped(x, grids[0])
        before = x1 @ w1.T + one.bias
        x2, inside2 = clipped(before.relu(), grids[1])
        out = x2 @ w2.T + two.bias
        to_out = 2 * out
        to_x2 = to_out @ w2
        to_before = to_x2 * inside2 * (before > 0)
        return {
            "w2": to_out.T @ x2,
            "b2": to_out.sum(0),
            "w1": to_before.T @ x1,
            "b1": to_before.sum(0),
            "x": (to_before @ w1) * inside1,
        }


@pytest.mark.parametrize("form", ["int2", "nf4"])
def test_gradients_pass_straight_through(form: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    options = {"0": f"{form}/int3", "2": f"{form}/int4"}
    student = quantize(model, options, [torch.randn(64, 6)], trainable=True)
    assert isinstance(student, nn.Sequential)
    x = (4 * torch.randn(32, 6)).requires_grad_()  # of which some are clipped
    student(x).square().sum().backward()
    wanted = _literal(x.detach(), student)
    found = {"w1": _master(student, "0").grad, "w2": _master(student, "2").grad, "x": x.grad}
    found |= {
        "b1": student.get_parameter("0.bias").grad,
        "b2": student.get_parameter("2.bias").grad,
    }
    for key, slope in found.items():
        assert slope is not None
        torch.testing.assert_close(slope, wanted[key], rtol=1e-5, atol=1e-4, msg=key)
    assert 0 < float((wanted["x"] == 0).double().mean()) < 1
    limit = _stored(student, "0").weight.abs().amax()
    assert bool((_master(student, "0").detach().abs() > limit).any()) or form == "nf4"
    slope = _master(student, "0").grad
    assert slope is not None  # what is clipped has a gradient, too
    assert bool((slope != 0)[wanted["w1"] != 0].all())


def test_a_few_steps_lower_the_loss() -> None:
    model, (x,), names = tied()
    with torch.no_grad():
        target = model(x).log_softmax(-1)
    student = quantize(model, dict.fromkeys(names, "w2a4"), [x], trainable=True)
    moving = torch.optim.SGD(student.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        moving.zero_grad()
        loss = F.kl_div(student(x).log_softmax(-1), target, reduction="sum", log_target=True)
        loss = loss / x.numel()
        loss.backward()
        moving.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        assert torch.equal(packed(student)(x), student(x))


def test_shared_weights_are_trained_once() -> None:
    model, batches, names = tied()
    student = quantize(model, dict.fromkeys(names, "w4a8"), batches, trainable=True)
    assert _master(student, "head") is _master(student, "embed")
    assert sum("master" in name for name, _ in student.named_parameters()) == len(names) - 1
    student(batches[0]).sum().backward()
    again = packed(student)
    assert _stored(again, "head").codes is _stored(again, "embed").codes
    assert _stored(again, "head").master is None


def test_training_is_resumed_from_what_was_saved() -> None:
    model, batches, names = mixed()
    options = dict.fromkeys(names, "w3a4")
    student, other = (quantize(model, options, batches, trainable=True) for _ in range(2))
    student(batches[0]).square().sum().backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    stream = io.BytesIO()
    torch.save(student.state_dict(), stream)
    stream.seek(0)
    assert not torch.equal(student(batches[0]), other(batches[0]))
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(student(batches[0]), other(batches[0]))
    one, two = packed(student).state_dict(), packed(other).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_model_itself_is_left_bit_for_bit() -> None:
    model, batches, names = mixed()
    before = copy.deepcopy(model.state_dict())
    student = quantize(model, dict.fromkeys(names, "w2a4"), batches, trainable=True)
    student(batches[0]).square().sum().backward()
    torch.optim.SGD(student.parameters(), lr=1.0).step()
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(p.grad is None for p in model.parameters())


def test_what_wants_gradients_is_what_did() -> None:
    model, batches, names = mixed()
    options = dict.fromkeys(names, "w4a8")
    every = quantize(model, options, batches, trainable=True)
    assert all(p.requires_grad for p in every.parameters())
    model.get_parameter("head.weight").requires_grad_(False)
    some = quantize(model, options, batches, trainable=True)
    assert not _master(some, "head").requires_grad
    assert _master(some, "stem").requires_grad


def test_it_can_be_cast_and_copied() -> None:
    model, batches, names = mixed()
    student = quantize(model, dict.fromkeys(names, "w4a8"), batches, trainable=True)
    double = copy.deepcopy(student).double()
    assert _master(double, "stem").dtype == torch.float64
    double(batches[0].double()).sum().backward()
    assert _master(double, "stem").grad is not None
    assert _master(student, "stem").grad is None


def test_what_was_trained_runs_on_kernels() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(32, 6)
    options = {"0": "w8a8", "2": "w4a8"}
    student = running.quantize(model, options, [x], trainable=True)
    student(x).square().sum().backward()
    torch.optim.SGD(student.parameters(), lr=0.01).step()
    done = packed(student)
    real = running.on_kernels(done, options, TorchCpu())
    assert set(running.ran(real).values()) == {"int8/int8"}
    assert running.ran(done)["0"] == "floats that stand for int8/int8"
    with torch.no_grad():
        torch.testing.assert_close(real(x), done(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="kernels pass no gradients, and backend is 'torch-cpu'"):
        running.quantize(model, options, [x], trainable=True, backend="torch-cpu")


def test_says_that_nothing_was_trained_or_that_it_went_wrong() -> None:
    model, batches, names = mixed()
    options = dict.fromkeys(names, "w4a8")
    with pytest.raises(ValueError, match="has no layer that was trained; give what quantize"):
        packed(quantize(model, options, batches))
    student = quantize(model, options, batches, trainable=True)
    _master(student, "head").data.fill_(torch.nan)
    with pytest.raises(ValueError, match="layer 'head': it holds NaN or infinity"):
        packed(student)
