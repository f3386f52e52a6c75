"""First tokens kept in floats: against what is written down, and what it is worth."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Option
from mpsearch.kernels.running import quantize as run
from mpsearch.kernels.running import ran
from mpsearch.kernels.torch_cpu import TorchCpu
from mpsearch.quant.activations import fake_quantize
from mpsearch.quant.bench import Bench
from mpsearch.quant.bos import FirstKept
from mpsearch.quant.model import packed, quantize, quantized_like
from mpsearch.quant.recipe import Recipe, Rounding
from tests.quant.networks import mixed, tied

NAMES = ["to_q", "to_k", "to_v", "out"]
BOS = (r"to_[kv]$",)


class Cross(nn.Module):
    """Cross-attention to prompts whose first token is a hundred times as large as the others."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.to_q, self.to_k = nn.Linear(12, 8, bias=False), nn.Linear(12, 8, bias=False)
        self.to_v, self.out = nn.Linear(12, 8), nn.Linear(8, 5)
        with torch.no_grad():
            self.words.weight[0] *= 100

    def forward(self, ids: Tensor) -> Tensor:
        text = self.words(ids)
        scores = self.to_q(text[:, 1:4].flip(-1)) @ self.to_k(text).mT / 30
        out: Tensor = self.out(scores.softmax(-1) @ self.to_v(input=text))
        return out


def cross() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model, ids = Cross().eval(), torch.randint(1, 20, (16, 7))
    ids[:, 0] = 0
    return model, [ids[:10], ids[10:]]


def test_the_first_token_is_in_floats_and_the_others_are_rounded() -> None:
    model, batches = cross()
    recipe = Recipe(corrections=(), bos=BOS)
    new = quantize(model, dict.fromkeys(NAMES, "w4a4"), batches, recipe)
    text = model.get_submodule("words")(batches[0])
    for name in ("to_k", "to_v"):
        layer, kept = model.get_submodule(name), new.get_submodule(name)
        assert isinstance(kept, FirstKept)
        inside: Any = kept.layer
        found = kept(text)
        torch.testing.assert_close(found[:, 0], layer(text[:, 0]), rtol=1e-4, atol=1e-4)
        others = fake_quantize(text[:, 1:], inside.grid)
        assert torch.equal(found[:, 1:], F.linear(others, inside.weight, inside.bias))
        assert inside.grid.scale * 15 < 10  # of the others alone
    assert not isinstance(new.get_submodule("to_q"), FirstKept)


class Viewing(nn.Linear):
    """Views what it reads, as Hugging Face's Conv1D does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        return super().forward(input.view(-1, self.in_features)).view(*input.shape[:-1], -1)


def test_a_layer_may_view_what_it_reads() -> None:
    model, batches = cross()
    model.get_submodule("to_k").__class__ = Viewing
    recipe, options = Recipe(bos=BOS), {"to_k": Option.parse("w4a4")}
    bench, new = Bench(model, batches, ["to_k"], recipe), quantize(model, options, batches, recipe)
    with torch.no_grad():
        assert torch.equal(bench.outputs(options), new(bench.batch))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_network_is_the_one_that_was_measured(rounding: Rounding) -> None:
    model, batches = cross()
    recipe = Recipe(rounding=rounding, corrections=("bias",), bos=BOS)
    options = {name: Option.parse("w3a6") for name in NAMES}
    bench = Bench(model, batches, NAMES, recipe)
    torch.testing.assert_close(bench.reference, model(torch.cat(batches)), rtol=1e-4, atol=1e-4)
    new = quantize(model, options, batches, recipe)
    with torch.no_grad(), bench.at(options) as lent:
        assert torch.equal(new(batches[0]), lent(batches[0]))
    with torch.no_grad():
        torch.testing.assert_close(
            bench.outputs(options), new(torch.cat(batches)), rtol=1e-4, atol=1e-4
        )


def test_corrections_are_of_the_other_tokens() -> None:
    model, batches = cross()
    recipe = Recipe(corrections=("bias",), bos=BOS)
    new = quantize(model, {"to_v": "w2a32"}, batches, recipe)
    text = model.get_submodule("words")(torch.cat(batches))
    found, exact = (m.get_submodule("to_v")(text)[:, 1:].mean((0, 1)) for m in (new, model))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)


def test_a_first_token_that_stands_out_no_longer_costs_the_others() -> None:
    model, batches = cross()
    exact = model(batches[0])
    errors = []
    for recipe in (Recipe(), Recipe(bos=BOS)):
        new = quantize(model, dict.fromkeys(["to_k", "to_v"], "w8a4"), batches, recipe)
        errors.append((new(batches[0]) - exact).detach().square().sum().item())
    assert errors[1] < 0.1 * errors[0]


def test_what_is_stored_is_one_float_for_each_output() -> None:
    model, batches = cross()
    plain, kept = (
        quantize(model, dict.fromkeys(NAMES, "w4a8"), batches, Recipe(bos=bos)).state_dict()
        for bos in ((), BOS)
    )
    sizes = [sum(x.numel() * x.element_size() for x in state.values()) for state in (plain, kept)]
    assert sizes[1] - sizes[0] == 2 * 8 * 4
    assert kept["to_k.first"].shape == (8,)


def test_it_is_saved_loaded_and_trained() -> None:
    model, batches = cross()
    options, recipe = dict.fromkeys(NAMES, "w4a8"), Recipe(bos=BOS)
    new = quantize(model, options, batches, recipe)
    like = quantized_like(model, options, recipe)
    like.load_state_dict(new.state_dict())
    student = quantize(model, options, batches, recipe, trainable=True)
    with torch.no_grad():
        wanted = new(batches[0])
        assert torch.equal(like(batches[0]), wanted)
        assert torch.equal(packed(student)(batches[0]), wanted)


def test_it_runs_on_kernels() -> None:
    model, batches = cross()
    options, recipe = dict.fromkeys(["to_q", "to_k", "out"], "w8a8"), Recipe(bos=BOS)
    real = run(model, options, batches, recipe, backend=TorchCpu())
    assert ran(real)["to_k.layer"] == "int8/int8"
    assert ran(real)["to_v"] == "left as it was"
    with torch.no_grad():
        found, wanted = real(batches[0]), quantize(model, options, batches, recipe)(batches[0])
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)


def test_a_layer_with_two_names_is_one() -> None:
    model, batches = cross()
    model.add_module("again", model.get_submodule("to_k"))
    new = quantize(model, {"to_k": "w4a8"}, batches, Recipe(bos=BOS))
    assert new.get_submodule("again") is new.get_submodule("to_k")
    layer, text = nn.Linear(12, 3), torch.ones(2, 4, 12)
    assert isinstance(quantize(layer, {"": "w4a8"}, [text], Recipe(bos=(".*",))), FirstKept)


def test_the_model_itself_has_no_hooks() -> None:
    model, batches = cross()
    before = copy.deepcopy(model.state_dict())
    quantize(model, dict.fromkeys(NAMES, "w4a8"), batches, Recipe(bos=BOS))
    bad = torch.cat(batches).flip(1)
    with pytest.raises(ValueError, match="another first token"):
        quantize(model, dict.fromkeys(NAMES, "w4a8"), [bad], Recipe(bos=BOS))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def _others(batches: list[Tensor]) -> list[Tensor]:
    return [batch[:, 1:] for batch in batches]


@pytest.mark.parametrize(
    ("bos", "change", "message"),
    [
        (
            ("attn2",),
            None,
            "bos has 'attn2', which is found in the name of no layer; there are 'wo",
        ),
        (("words",), None, "bos names 'words', of kind embedding; wanted linear layers"),
        (BOS, _others, "layer 'to_k' reads another first token in each sample"),
    ],
)
def test_says_what_cannot_be_kept(
    bos: tuple[str, ...], change: Callable[..., Any] | None, message: str
) -> None:
    model, batches = cross()
    given = change(batches) if change else batches
    with pytest.raises(ValueError, match=message):
        quantize(model, {"out": "w4a8"}, given, Recipe(bos=bos))


def test_says_that_an_input_has_no_tokens() -> None:
    model, batches, _ = mixed()
    with pytest.raises(ValueError, match=r"layer 'head': its input has shape \(8, 4\); wanted \(s"):
        quantize(model, {"head": "w4a8"}, batches, Recipe(bos=("head",)))
    cached, prompts = cross()
    new = quantize(cached, {"to_k": "w4a8"}, prompts, Recipe(bos=BOS))
    with pytest.raises(ValueError, match=r"its input has shape \(2, 1, 12\); wanted"):
        new.get_submodule("to_k")(torch.ones(2, 1, 12))


def test_says_that_a_layer_is_not_called() -> None:
    model, batches, _ = tied()
    model.add_module("spare", nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"layer 'spare' is not called .* its first token is not"):
        quantize(model, {"head": "w4a8"}, batches, Recipe(bos=("spare",)))


def test_a_recipe_says_which() -> None:
    recipe = Recipe(bos=BOS)
    assert Recipe.read(recipe.document()) == recipe
    for given, message in (
        ("to_k", "bos are a list, got 'to_k'"),
        (["("], r"bos has '\(', which is no regular expression: missing \)"),
        ([3], "bos has 3, which is no regular expression"),
        (["a", "a"], "named twice"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe.read({"bos": given})
