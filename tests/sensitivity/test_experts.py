"""MC-MoE: its published allocations, and frequencies, routing weights and errors by hand."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Option, options
from mpsearch.network import Network, numbered
from mpsearch.places import finer
from mpsearch.problem import Budget, Constraint, Problem
from mpsearch.quant.integers import encode
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.unfusing import unfused
from mpsearch.sensitivity.experts import McMoe, objective
from mpsearch.solvers.milp import Milp
from mpsearch.sweep import Sweep
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import trace

RECIPE = Recipe()
OPTIONS = options("w2a32", "w4a32", "w32a32")
PINS = {"head": "w32a32", "router|gate$": "w32a32"}


class Block(nn.Module):
    """Two of four experts for each token."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.top_k, self.router = 2, nn.Linear(6, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(4)
        )
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        share, index = self.router(flat).softmax(-1).topk(self.top_k)
        share = share / share.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(index == number)
            if len(token):
                out = out.index_add(0, token, share[token, place, None] * expert(flat[token]))
        return self.scale * out.reshape(x.shape)


class Mixture(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.head = Block(0), Block(1, scale), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        norm = nn.functional.layer_norm(x, (6,))
        out: Tensor = self.head(nn.functional.layer_norm(x + self.second(norm), (6,)))
        return out


def _data() -> list[Tensor]:
    seeded = torch.Generator().manual_seed(2)
    return [torch.randn(3, 7, 6, generator=seeded) for _ in range(3)]


def _estimate(
    model: nn.Module,
    estimator: McMoe | None = None,
    chosen: tuple[Option, ...] = OPTIONS,
    network: Network | None = None,
    batches: list[Any] | None = None,
) -> Table:
    batches = _data() if batches is None else batches
    network = trace(model, batches[0], pin=PINS) if network is None else network
    run = (estimator or McMoe()).estimate
    return run(Task(model, batches), network, chosen, recipe=RECIPE, sweep=Sweep())


def _by_hand(model: Mixture, name: str, *, relative: bool) -> tuple[Floats, Floats, Floats]:
    """Frequencies, routing weights and errors of the experts of a block at 2 and 4 bits."""
    block = model.get_submodule(name)
    assert isinstance(block, Block)
    read: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    frequency, weight, eps, norm = np.zeros(4), np.zeros(4), np.zeros((4, 2)), 0.0
    with torch.no_grad():
        for batch in _data():
            model(batch)
        block._forward_pre_hooks.clear()
        for x in read:
            for token in x.reshape(-1, 6):
                share = block.router(token).softmax(-1)
                for expert in share.argsort(descending=True)[:2].tolist():
                    frequency[expert] += 1
                    weight[expert] += float(share[expert])
            norm += float(block(x).norm())
            for expert, (column, form) in itertools.product(range(4), enumerate(OPTIONS[:2])):
                other = copy.deepcopy(block)
                for linear in (other.experts[expert][0], other.experts[expert][2]):  # type: ignore[index]
                    linear.weight.data = encode(linear.weight.data, form.weight).dequantize()
                eps[expert, column] += float((block(x) - other(x)).norm())
    return frequency, weight, eps / norm if relative else eps


@pytest.mark.parametrize("relative", [True, False])
def test_scores_by_hand(relative: bool) -> None:
    model = Mixture(scale=100.0)
    estimator = McMoe(1.5, 0.5, 2.0, relative=relative)
    table = _estimate(model, estimator)
    names = [layer.name for layer in table.layers]
    for name in ("first", "second"):
        frequency, weight, eps = _by_hand(model, name, relative=relative)
        asked = (frequency / frequency.sum()) ** 1.5 * (weight / weight.sum()) ** 0.5
        rows = [names.index(f"{name}.experts.{number}") for number in range(4)]
        np.testing.assert_allclose(table.values[rows, :2], asked[:, None] * eps**2, rtol=1e-4)
        assert (table.values[rows, 2] == 0).all()
    others = [row for row, name in enumerate(names) if ".experts." not in name]
    assert (table.values[others] == 0).all()
    assert table.unit == "rank score (MC-MoE)"


def test_in_a_context_the_next_block_reads_what_rounded_experts_write() -> None:
    model, rounded = Mixture(), Mixture()
    given = {f"first.experts.{number}": OPTIONS[0] for number in range(4)}
    for name, module in rounded.named_modules():
        if name.startswith("first.experts.") and isinstance(module, nn.Linear):
            module.weight.data = encode(module.weight.data, OPTIONS[0].weight).dequantize()
    table, alone = _estimate(model, McMoe(context=given)), _estimate(model)
    second = [row for row, layer in enumerate(table.layers) if layer.name.startswith("second")]
    wanted = _estimate(rounded).values[second]
    np.testing.assert_allclose(table.values[second], wanted, rtol=1e-5)
    assert not np.allclose(alone.values[second], wanted, rtol=1e-3)
    random = McMoe(context="random", draws=2, seed=3)
    assert _estimate(model, random).values.tobytes() == _estimate(model, random).values.tobytes()


def test_the_scale_of_a_block_changes_nothing_where_errors_are_relative() -> None:
    small, large, second = Mixture(), Mixture(scale=100.0), slice(6, 10)
    plain, grown = (_estimate(m, McMoe(relative=False)).values for m in (small, large))
    np.testing.assert_allclose(100 * plain[second], grown[second], rtol=1e-4)
    one, other = _estimate(small).values, _estimate(large).values
    np.testing.assert_allclose(one, other, rtol=1e-4)
    np.testing.assert_allclose(one[second] / one[6, 0], plain[second] / plain[6, 0])


def test_the_standard_error_is_over_batches() -> None:
    model = Mixture()
    table = _estimate(model)
    each = [_estimate(model, batches=[batch]) for batch in _data()]
    assert table.stderr is not None
    assert (table.stderr[1:5, :2] > 0).all()
    assert (table.stderr[1:5, :2] < table.values[1:5, :2]).all()
    assert all(one.stderr is None for one in each)


def test_inputs_are_rounded_where_the_option_says_so() -> None:
    table = _estimate(Mixture(), chosen=options("w32a2", "w32a8", "w32a32"))
    assert (table.values[1:5, 0] > table.values[1:5, 1]).all()
    assert (table.values[1:5, 1] > 0).all()


def test_top_k_can_be_given() -> None:
    model = Mixture()
    one, two = (_estimate(model, McMoe(top_k=k)) for k in (1, 2))
    np.testing.assert_array_equal(two.values, _estimate(model).values)
    assert (one.values != two.values).any()


def test_batches_by_name_and_experts_in_the_model_itself() -> None:
    model = Block(0)
    network = trace(model, _data()[0], pin={"router": "w32a32"})
    table = _estimate(model, network=network, batches=[{"x": x} for x in _data()])
    assert [layer.name for layer in table.layers] == ["router", *(f"experts.{i}" for i in range(4))]
    np.testing.assert_allclose(table.values, _estimate(model, network=network).values)


def test_mixtral_taken_apart() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    batch = {"input_ids": torch.randint(0, 32, (4, 16))}
    with pytest.raises(
        ValueError, match=r"'model.layers.0.mlp.experts.gate_up_proj' holds several"
    ):
        finer(trace(model, batch), "expert")
    apart = unfused(model)
    with torch.no_grad():
        torch.testing.assert_close(apart(**batch).logits, model(**batch).logits)
    network = trace(apart, batch, pin={"self_attn|lm_head": "w32a32"})
    table = _estimate(apart, network=network, batches=[batch])
    assert sum(".experts." in layer.name for layer in table.layers) == 8
    experts = [row for row, layer in enumerate(table.layers) if ".experts." in layer.name]
    assert (table.values[experts, 0] > table.values[experts, 1]).all()
    assert (table.values[experts, 1] > 0).all()


class Stopped(BaseException):
    """A stop from outside."""


def test_the_model_is_left_as_it_was_when_it_fails_midway() -> None:
    for calls in (3, 20, 60):
        model = Mixture().train()
        left = [calls]

        def stop(*_: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped

        network = trace(model, _data()[0], pin=PINS)
        for name in ("first.experts.1.0", "second.experts.2.2"):
            model.get_submodule(name).register_forward_hook(stop)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(Stopped):
            _estimate(model, network=network)
        after = model.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert all(module.training for module in model.modules())
        assert sum(len(m._forward_hooks) for m in model.modules()) == 2
        assert all(not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0; wanted a number above 0"),
        ({"gamma": 0.0}, "gamma is 0.0; wanted a number above 0"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"top_k": 0}, "top_k is 0; wanted at least 1 expert a token"),
    ],
)
def test_settings_that_mean_nothing_are_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        McMoe(**settings)


def test_what_it_cannot_work_with_is_an_error() -> None:
    model, x = Mixture(), _data()[0]
    with pytest.raises(
        ValueError, match=r"layer 'first\.router' is in no expert, so it has no score"
    ):
        _estimate(model, network=trace(model, x))
    with pytest.raises(ValueError, match="top_k is 9, and block 'first' has 4 experts"):
        _estimate(model, McMoe(top_k=9))
    with pytest.raises(ValueError, match="no layer is part of an expert"):
        _estimate(nn.Linear(6, 2), network=trace(nn.Linear(6, 2), x))
    model.second.top_k = None  # type: ignore[assignment]
    network = trace(Mixture(), x, pin=PINS)
    model.second.register_forward_pre_hook(lambda block, _: setattr(block, "top_k", 2))
    model.second.register_forward_hook(lambda block, *_: setattr(block, "top_k", None))
    with pytest.raises(
        ValueError, match=r"block 'second' does not say how many .* McMoe\(top_k=...\)"
    ):
        _estimate(model, network=network)
    twice = Mixture()
    twice.first.register_module("other", nn.Linear(6, 4))
    with pytest.raises(
        ValueError, match="block 'first' has 'router', 'other' beside its experts with"
    ):
        _estimate(twice, network=network)


def test_outputs_that_are_not_finite_are_an_error() -> None:
    model, x = Block(0), _data()[0]
    with torch.no_grad():
        model.scale = 3.4e38 / float(model(x).abs().max())
    network = trace(model, x, pin={"router": "w32a32"})
    message = r"expert 'experts\.\d' at 'int2/fp32': the output of its block is not finite"
    with pytest.raises(ValueError, match=message):
        _estimate(model, network=network, batches=[x])


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(())


def test_refuses_a_model_that_is_not_deterministic() -> None:
    network = trace(nn.Sequential(Mixture()), _data()[0], pin=PINS)
    with pytest.raises(ValueError, match="deterministic"):
        _estimate(nn.Sequential(Mixture(), Noisy()), network=network)


def _published(shared: Path) -> tuple[dict[int, Floats], dict[str, dict[str, list[int]]]]:
    folder = shared / "oracles/mcmoe"

    def read(name: str) -> Any:
        return json.loads((folder / f"mixtral8x7b_expert_{name}.json").read_text())

    frequency, weight, loss = read("act_frequency"), read("act_weight"), read("quant_loss")
    scores = {}
    for block in map(int, loss):
        eps = [[one[str(bits)] for bits in (1, 2, 3)] for one in loss[str(block)].values()]
        asked = np.array(frequency[str(block)]), np.array(weight[str(block)])
        scores[block] = objective(*asked, np.array(eps))
    return scores, read("bits")


@pytest.mark.shared
def test_published_allocations_of_mixtral(shared: Path) -> None:
    scores, published = _published(shared)
    every = np.array(list(itertools.product(range(3), repeat=8)))
    some = (every == 2).any(axis=1) & (every == 1).any(axis=1)
    cases = agree = 0
    for total, blocks in published.items():
        fits = every[some & ((every + 1).sum(axis=1) <= int(total))]
        for block, bits in blocks.items():
            losses = scores[int(block)][np.arange(8), fits].sum(axis=1)
            cases += 1
            agree += (fits[losses.argmin()] + 1).tolist() == bits
    assert (agree, cases) == (144, 144)


@pytest.mark.shared
@pytest.mark.parametrize("total", [12, 16, 20])
def test_a_solver_finds_them(shared: Path, total: int) -> None:
    scores, published = _published(shared)
    bits = options("ternary/fp16", "w2a16", "w3a16")
    layers = numbered(8)
    size = Table(layers, bits, np.tile([1, 2, 3], (8, 1)), "bit", "bits")
    some = tuple(
        Constraint(f"one at {k + 1}", tuple((row, k, 1) for row in range(8)), least=1)
        for k in (1, 2)
    )
    for block, wanted in published[str(total)].items():
        loss = Table(layers, bits, scores[int(block)], "rank score (MC-MoE)")
        problem = Problem(loss, (Budget(size, total),), constraints=some)
        assert [k + 1 for k in Milp().solve(problem).choice] == wanted
