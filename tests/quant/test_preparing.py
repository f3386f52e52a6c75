"""Folding, smoothing and rotation: the same function, other numbers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Option
from mpsearch.quant.bench import Bench
from mpsearch.quant.folding import fold
from mpsearch.quant.model import quantize, quantized_like
from mpsearch.quant.preparing import prepare
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.rotation import hadamard, rotate
from mpsearch.quant.smoothing import is_norm, smooth
from tests.quant.networks import mixed, tied


class RMSNorm(nn.Module):
    def __init__(self, width: int, plus: float = 0.0) -> None:
        super().__init__()
        self.weight, self.plus = nn.Parameter(torch.rand(width) + 0.5), plus

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (self.weight + self.plus)


class Block(nn.Module):
    def __init__(self, width: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm, self.bias = norm(width), norm is nn.LayerNorm
        self.gate, self.up = nn.Linear(width, 10), nn.Linear(width, 10, bias=False)
        self.down = nn.Linear(10, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class Stream(nn.Module):
    """Ids in, logits out; what lies between two blocks has a channel that stands out."""

    def __init__(self, norm: type[nn.Module] = RMSNorm, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.blocks = nn.Sequential(Block(width, norm), Block(width, norm))
        self.norm, self.head = norm(width), nn.Linear(width, 9, bias=False)
        self.embed.weight.data[:, 3] *= 30

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.blocks(self.embed(ids))))
        return out


def _stream(norm: type[nn.Module] = RMSNorm) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Stream(norm).eval().requires_grad_(False), torch.randint(9, (6, 7))


def test_a_folded_norm_only_shifts() -> None:
    model, batches, _ = mixed()
    wanted, x = model(batches[0]), batches[0]
    assert fold(model, x) == 1
    norm: Any = model.get_submodule("norm")
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(norm.running_var + norm.eps, torch.ones(8))
    assert norm.weight.tolist() == [1] * 8


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_transposed_and_linear_layers_fold_too(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=bias),
        nn.BatchNorm2d(6, affine=affine),
        nn.Flatten(),
        nn.Linear(54, 3, bias=bias),
        nn.BatchNorm1d(3, affine=affine),
    )
    x = torch.randn(8, 4, 2, 2)
    for _ in range(9):
        model(x)
    model.eval()
    wanted = model(x)
    assert fold(model, x) == 2
    torch.testing.assert_close(model(x), wanted)


def test_what_something_else_reads_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y, z = self.a(x), self.b(x)
            out: Tensor = self.norm(y) + y + self.norm(z)
            return out

    torch.manual_seed(0)
    assert fold(Twice().eval(), torch.randn(4, 3)) == 0  # y is read twice, the norm runs twice


@pytest.mark.parametrize("alpha", [0.5, 0.8])
@pytest.mark.parametrize("norm", [RMSNorm, nn.LayerNorm])
def test_smoothing_evens_out_inputs_and_keeps_the_function(
    norm: type[nn.Module], alpha: float
) -> None:
    model, ids = _stream(norm)
    wanted, block = model(ids), model.get_submodule("blocks.0")
    first: Any = block.get_submodule("norm")
    before = first(model.get_submodule("embed")(ids)).abs().amax((0, 1))
    columns = torch.cat([block.get_submodule(n).weight for n in ("gate", "up")]).abs().amax(0)  # type: ignore[misc]
    assert smooth(model, ids, alpha) == 3
    after = first(model.get_submodule("embed")(ids)).abs().amax((0, 1))
    torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)
    even = (before * columns).pow(1 - alpha)
    torch.testing.assert_close(after, even, rtol=1e-4, atol=1e-5)


def test_a_norm_that_adds_one_to_its_weight_is_left_alone() -> None:
    class PlusOne(RMSNorm):
        def __init__(self, width: int) -> None:
            super().__init__(width, plus=1.0)

    model, ids = _stream(PlusOne)
    assert not is_norm(model.get_submodule("norm"))
    before = copy.deepcopy(model.state_dict())
    assert smooth(model, ids, 0.5) == rotate(model, ids) == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_rotation_spreads_what_stands_out_and_keeps_the_function() -> None:
    model, ids = _stream()
    wanted = model(ids)
    assert rotate(model, ids) == 5 + 3  # read by gate, up, gate, up, head
    torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)
    wide = model.get_submodule("embed")(ids).abs().amax((0, 1))
    assert float(wide.max()) < 4 * float(wide.median())


def test_hadamard_matrices_are_orthogonal_and_flat() -> None:
    turn = hadamard(16)
    torch.testing.assert_close(turn @ turn.T, torch.eye(16).double())
    torch.testing.assert_close(turn.abs(), torch.full((16, 16), 0.25).double())
    assert not torch.equal(turn, hadamard(16, seed=1))


def test_layer_norms_and_tied_heads_are_not_rotated() -> None:
    model, ids = _stream(nn.LayerNorm)
    recipe = Recipe(preparations=("rotate",))
    with pytest.raises(ValueError, match="'rotate' applies nowhere in this model: it wants RMS"):
        prepare(model, ids, recipe)
    model, batches, _ = tied()
    with pytest.raises(ValueError, match="'rotate' applies nowhere"):
        prepare(model.requires_grad_(False), batches[0], recipe)
    shared, ids = _stream()
    shared.head.weight = shared.embed.weight  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="after preparation 'rotate' the model's output is off by"):
        prepare(shared, ids, recipe)


class Viewing(nn.Linear):
    """Lays out anew what it reads and writes, as Hugging Face's Conv1D does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        rows = F.linear(input.view(-1, self.in_features), self.weight, self.bias)
        return rows.view(*input.shape[:-1], -1)


class Sliced(Stream):
    """As language models are written: the head reads a slice, and dropout is all over."""

    def forward(self, ids: Tensor) -> Tensor:
        x, off = F.dropout(self.embed(ids), 0.5, training=self.training), nn.Dropout().eval()
        block: Any
        for block in self.blocks:
            h = off(block.norm(x))
            x = x + off(block.down(F.silu(block.gate(h)) * block.up(h)))
        out: Tensor = self.head(off(self.norm(x))[:, slice(0, None), :])
        return out


@pytest.mark.parametrize("norm", [RMSNorm, nn.LayerNorm])
def test_views_slices_and_dropout_are_seen_through(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, ids = Sliced(norm).eval().requires_grad_(False), torch.randint(9, (6, 7))
    gate: Any = model.get_submodule("blocks.0.gate")
    gate.__class__ = Viewing
    wanted = model(ids)
    assert smooth(model, ids, 0.5) == 3
    torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)
    assert rotate(model, ids) == (8 if norm is RMSNorm else 0)
    torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_written_to_in_place_is_read() -> None:
    class Written(Stream):
        def forward(self, ids: Tensor) -> Tensor:
            h = self.norm(self.embed(ids))
            h[:, 1:].mul_(2)
            out: Tensor = self.head(h.relu_())
            return out

    ids = torch.randint(9, (6, 7))
    assert smooth(Written().eval().requires_grad_(False), ids, 0.5) == 0


def test_a_table_that_two_embeddings_share_is_rotated_once() -> None:
    class Two(Stream):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Embedding(9, 12)
            self.other.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.head(self.norm(self.blocks(self.embed(ids) + self.other(ids))))
            return out

    model, ids = Two().eval().requires_grad_(False), torch.randint(9, (6, 7))
    wanted = model(ids)
    assert rotate(model, ids) == 8
    torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)


class ChannelsFirstLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_norm_that_wants_another_shape_is_left_alone() -> None:
    norm = ChannelsFirstLayerNorm(12)
    before = norm.weight.clone()
    assert not is_norm(norm)
    assert torch.equal(norm.weight, before)
    model, ids = _stream(nn.LayerNorm)
    model.add_module("unused", norm)
    assert smooth(model, ids, 0.5) == 3


def test_a_network_in_float64_may_have_norms_in_float32() -> None:
    class SingleRMSNorm(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            scale = (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
            return self.weight * (x.float() * scale).to(x.dtype)

    model, ids = _stream(SingleRMSNorm)
    model = model.double()
    wanted = model(ids)
    prepare(model, ids, Recipe(preparations=("rotate",)))
    torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", ["fold", "smooth", "shift", "align", "clip"])
def test_says_that_a_step_applies_nowhere(step: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 2)).eval().requires_grad_(False)
    with pytest.raises(ValueError, match=f"preparation '{step}' applies nowhere in this model"):
        prepare(model, torch.randn(4, 3), Recipe(preparations=(step,)))


def test_the_network_is_the_one_that_was_measured() -> None:
    model, ids = _stream()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    recipe = Recipe(preparations=("smooth", "rotate"), rounding="gptq")
    before = copy.deepcopy(model.state_dict())
    bench = Bench(model, [ids], names, recipe)
    torch.testing.assert_close(bench.reference, model(ids), rtol=1e-4, atol=1e-4)
    options = {name: Option.parse("w4a8") for name in names}
    with torch.no_grad(), bench.at(options) as changed:
        wanted = changed(ids)
    found = quantize(model, options, [ids], recipe)
    torch.testing.assert_close(found(ids), wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = quantized_like(model, options)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(ids), found(ids))


def test_a_folded_network_reads_back() -> None:
    model, batches, names = mixed()
    recipe = Recipe(preparations=("fold",))
    options = dict.fromkeys(names[1:], "w4a8")  # the stem, folded, stays in float
    found = quantize(model, options, batches, recipe)
    again = quantized_like(model, options)
    again.load_state_dict(found.state_dict())
    assert torch.equal(again(batches[0]), found(batches[0]))
