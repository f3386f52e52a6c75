"""Relevance in closed forms, kept on its way through networks, and the laws of estimators."""

import json
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import options
from mpsearch.network import Layer, Network
from mpsearch.protocols import Estimator
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.lrp import LRP
from mpsearch.sensitivity.relevance import Relevance, Split
from mpsearch.sensitivity.rules import Name, Rule
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import trace
from tests.quant.networks import tied

OPTIONS = options("w2a8", "w4a16", "fp32/fp32")


class TestLaws(EstimatorSuite):
    estimator: Estimator = LRP()


class TestLawsOfErrors(EstimatorSuite):
    estimator: Estimator = LRP("epsilon", price="error")


class _Residual(nn.Module):
    """(N, 3, 8, 8) to (N, 5), with what convolutional networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.main = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(6, 6, 1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(x))))
        out = self.relu(self.main(x)) * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        out += x
        out = F.adaptive_avg_pool2d(self.relu(out), 1)
        logits: Tensor = self.fc(torch.flatten(out, 1))
        return logits


class _Attentive(nn.Module):
    """(N, 6, 8) to (N, 4): a block of a vision transformer."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.after(x))))
        out: Tensor = self.head(x[:, 0])
        return out


class _Fused(nn.Module):
    """The same with torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(x).mean(1))
        return out


def _made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval().requires_grad_(False)


def _images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _tokens() -> Tensor:
    return torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _propagated(
    model: nn.Module, x: Tensor, rule: Rule, split: Split, names: tuple[str, ...]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The output, what arrived at the named layers, and what arrived at the input."""
    weights = [model.get_submodule(name).get_parameter("weight") for name in names]
    mode = Relevance(rule, split, weights)
    read = x.clone().requires_grad_()
    with mode:
        output = model(read)
    start = F.one_hot(output.argmax(-1), output.shape[-1]).to(x)
    output.backward(start)
    assert read.grad is not None
    return output.detach(), [torch.stack(uses).sum(0) for uses in mode.arrived], read.grad


@pytest.mark.parametrize("split", ["ratio", "signed"])
@pytest.mark.parametrize("rule", [Rule(), Rule("epsilon", 0.0), Rule("gamma", 0.0)])
def test_relevance_is_kept_by_a_convolutional_network(rule: Rule, split: Split) -> None:
    model, x = _made(_Residual), _images()
    names = ("fc", "main", "gate", "stem")
    output, (fc, main, gate, stem), read = _propagated(model, x, rule, split, names)
    torch.testing.assert_close(output, model(x))
    one = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(fc.sum(1), one)
    torch.testing.assert_close(stem.flatten(1).sum(1), one)
    torch.testing.assert_close(read.flatten(1).sum(1), one)
    torch.testing.assert_close(main.flatten(1).sum(1), gate.flatten(1).sum(1))  # half each
    assert (main.flatten(1).sum(1) != 0).all()


@pytest.mark.parametrize("split", ["ratio", "signed"])
@pytest.mark.parametrize("rule", [Rule(), Rule("epsilon", 0.0), Rule("gamma", 0.0)])
def test_relevance_is_kept_by_a_transformer(rule: Rule, split: Split) -> None:
    model, x = _made(_Attentive), _tokens()
    model.get_parameter("token").zero_()  # no relevance ends there
    names = ("head", "fc2", "fc1", "proj", "qkv")
    output, arrived, read = _propagated(model, x, rule, split, names)
    torch.testing.assert_close(output, model(x))
    sums = [one.flatten(1).sum(1) for one in arrived]
    one = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(sums[0], one)
    torch.testing.assert_close(sums[1], sums[2])  # one after the other
    torch.testing.assert_close(sums[3], sums[4])
    torch.testing.assert_close(read.flatten(1).sum(1), one)
    if split == "ratio" and rule.name == "zplus":
        assert all((each >= 0).all() for each in arrived)


def test_relevance_is_kept_where_every_token_is_read() -> None:
    class Whole(_Attentive):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            mask = torch.ones(6, 6, dtype=torch.bool).tril()
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + self.proj(attended.transpose(1, 2).flatten(2))
            out: Tensor = self.head(self.after(x).mean(1))
            return out

    model, x = _made(Whole), _tokens()
    for split in ("ratio", "signed"):
        output, _, read = _propagated(model, x, Rule(), split, ())
        torch.testing.assert_close(output, model(x))
        torch.testing.assert_close(read.flatten(1).sum(1), torch.ones(4, dtype=torch.float64))


def _through(
    func: Callable[..., Tensor], split: Split, relevance: Tensor, *operands: Tensor
) -> list[Tensor]:
    reads = [x.clone().requires_grad_() for x in operands]
    with Relevance(Rule(), split, []):
        out = func(*reads)
    out.backward(relevance)
    return [x.grad for x in reads if x.grad is not None]


A, B = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0]])
R = torch.tensor([[0.2, 0.3, 0.5]])


@pytest.mark.parametrize(
    "add", [torch.add, lambda a, b: a + b, lambda a, b: (a * 1).add_(b), lambda a, b: a - (-b)]
)
def test_a_skip_divides_by_size(add: Callable[..., Tensor]) -> None:
    a, b = _through(add, "ratio", R, A, B)
    torch.testing.assert_close(a, R * A.abs() / (A.abs() + B.abs()))
    torch.testing.assert_close(a + b, R)


def test_a_skip_divides_with_signs_and_is_scaled() -> None:
    a, b = _through(torch.add, "signed", R, A, B)
    plain = R * A / (A + B), R * B / (A + B)
    weights = [abs(float(one.sum())) for one in plain]
    for found, one, weight in zip((a, b), plain, weights, strict=True):
        torch.testing.assert_close(found, one * weight / sum(weights) / one.sum())
    assert float(a.sum() + b.sum()) == pytest.approx(1)


@pytest.mark.parametrize("split", ["ratio", "signed"])
def test_the_factors_of_a_product_get_half_each(split: Split) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 4, generator=generator), torch.randn(2, 4, 5, generator=generator)
    relevance = torch.rand(2, 3, 5, generator=generator)
    for found in _through(torch.matmul, split, relevance, a, b):
        torch.testing.assert_close(found.sum((1, 2)), relevance.sum((1, 2)) / 2)


def test_functions_in_one_shape_hand_relevance_through() -> None:
    for func in (torch.tanh, F.gelu, lambda x: x.softmax(-1), lambda x: x * 2 + 1, lambda x: x / 3):
        (found,) = _through(func, "ratio", R, A)
        torch.testing.assert_close(found, R)


def test_an_average_divides_by_size() -> None:
    (found,) = _through(lambda x: x.mean(1, keepdim=True), "ratio", torch.tensor([[1.0]]), A)
    torch.testing.assert_close(found, A.abs() / 6)


def test_attention_is_torch_s_own() -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 4, 5, 6, generator=generator)
    k, v = (torch.randn(2, 2, 5, 6, generator=generator) for _ in range(2))
    bias = torch.randn(5, 5, generator=generator)
    cases: list[dict[str, Any]] = [{"is_causal": True}, {"scale": 0.3}, {"attn_mask": bias}]
    for case in cases:
        with Relevance(Rule(), "ratio", []):
            read = q.clone().requires_grad_()
            out = F.scaled_dot_product_attention(read, k, v, enable_gqa=True, **case)
        wanted = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **case)
        torch.testing.assert_close(out.detach(), wanted)


def _estimate(lrp: LRP, model: nn.Module, *batches: Any, network: Network | None = None) -> Table:
    return lrp.estimate(
        Task(model, batches),
        network or trace(model, batches[0]),
        OPTIONS,
        recipe=Recipe(),
        sweep=Sweep(),
    )


def test_layers_one_after_another_count_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.GELU(), nn.Linear(9, 4))
    table = _estimate(LRP(), model.eval(), torch.randn(3, 6), torch.randn(5, 6))
    wanted = np.array([[14 + 8, 12, 0]] * 3) / 3  # missing bits of 16, over three layers
    np.testing.assert_allclose(table.values, wanted, rtol=1e-5)
    assert table.unit == "rank score (LRP)"
    assert table.stderr is not None
    np.testing.assert_allclose(table.stderr, 0, atol=1e-5)


@pytest.mark.parametrize("rule", ["zplus", "epsilon", "gamma"])
def test_scores_are_means_over_samples(rule: Name) -> None:
    model, x = _made(_Attentive).float(), _tokens().float()
    task, network, lrp = Task(model, [x[:1], x[1:]]), trace(model, x), LRP(rule, epsilon=1e-3)
    scores = lrp.scores(task, network, sweep=Sweep())
    assert scores.shape == (4, len(network.layers))
    shares = scores / scores.mean(axis=0).sum()
    table = _estimate(lrp, model, x[:1], x[1:])
    np.testing.assert_allclose(table.values[:, 0], shares.mean(axis=0) * 22)
    assert table.stderr is not None
    np.testing.assert_allclose(table.stderr[:, 0], shares.std(axis=0, ddof=1) / 2 * 22)


def test_scores_may_weight_errors_of_weights() -> None:
    model, x = _made(_Residual).float(), _images().float()
    bits, errors = (_estimate(LRP(price=price), model, x) for price in ("bits", "error"))
    row = [layer.name for layer in bits.layers].index("fc")
    weight = model.get_submodule("fc").get_parameter("weight")
    error = (round_trip(weight, OPTIONS[0].weight) - weight).square().sum() / weight.square().sum()
    score = bits.values[row, 0] / 22
    assert errors.values[row, 0] == pytest.approx(score * float(error), rel=1e-2)


@pytest.mark.parametrize("make", [_Attentive, _Fused])
def test_transformers_of_both_kinds(make: Callable[[], nn.Module]) -> None:
    table = _estimate(LRP(), _made(make).float(), _tokens().float())
    assert (table.values[:, 0] > table.values[:, 1]).all()
    assert (table.values[:, 1] > 0).all()


def test_language_models_and_tied_embeddings() -> None:
    model, batches, _ = tied()
    table = _estimate(LRP(), model, *batches)
    assert (table.values[:, 0] > 0).all()


def test_an_embedding_has_no_inputs_to_lose_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).eval()
    network = Network((Layer("0", kind="embedding"), Layer("1", kind="linear")))
    table = _estimate(LRP(), model, torch.arange(6).reshape(2, 3), network=network)
    np.testing.assert_allclose(table.values, [[7, 6, 0], [11, 6, 0]], rtol=1e-5)


def test_an_image_starts_with_its_size() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 2, 3)).eval()
    table = _estimate(LRP(), model, torch.randn(2, 2, 6, 6))
    np.testing.assert_allclose(table.values[:, 0], 11, rtol=1e-5)


def test_goes_on_where_it_was_stopped_and_leaves_the_model() -> None:
    class Stopping(nn.Linear):
        calls: ClassVar[int] = 0

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            Stopping.calls += 1
            if Stopping.calls == 5:  # two runs are compared first
                raise KeyboardInterrupt
            return super().forward(input)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Stopping(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches, sweep = [torch.randn(2, 4) for _ in range(3)], Sweep()
    network = Network((Layer("0"), Layer("2")))
    task = Task(model, batches)
    with pytest.raises(KeyboardInterrupt):
        LRP().estimate(task, network, OPTIONS, recipe=Recipe(), sweep=sweep)
    assert [json.loads(key)[2] for key in sweep.cache] == [0, 1]
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    table = LRP().estimate(task, network, OPTIONS, recipe=Recipe(), sweep=sweep)
    assert len(sweep.cache) == 3
    assert (table.values == _estimate(LRP(), model, *batches, network=network).values).all()


class _Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.used(x)


def test_a_layer_that_never_runs_is_an_error() -> None:
    network = Network((Layer("used"), Layer("idle")))
    with pytest.raises(ValueError, match="layer 'idle' never runs on these batches or does not"):
        _estimate(LRP(), _Idle().eval(), torch.ones(2, 4), network=network)


def test_half_precision_that_overflows_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1e4)
    network = Network((Layer("0"), Layer("1")))
    with pytest.raises(ValueError, match="layer '0': its relevance is NaN or infinite; check"):
        _estimate(LRP(), model.half().eval(), torch.ones(2, 4).half() * 100, network=network)


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.lstm(x)[0][:, -1])


def test_an_operation_without_a_rule_is_an_error() -> None:
    network = Network((Layer("fc"),))
    with pytest.raises(ValueError, match="operation 'lstm' has no rule that hands relevance back"):
        _estimate(LRP(), _Recurrent().eval(), torch.ones(2, 3, 4), network=network)


class _Apart(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        with torch.no_grad():
            return super().forward(input)


def test_an_output_cut_off_is_an_error() -> None:
    model = nn.Sequential(_Apart(4, 3)).eval()
    with pytest.raises(ValueError, match="does not depend on the batch in a way that autograd"):
        _estimate(LRP(), model, torch.ones(2, 4), network=Network((Layer("0"),)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "beta"}, "no rule is named 'beta'; there are 'zplus', 'epsilon', 'gamma'"),
        ({"split": "half"}, "split is 'half'; there are 'ratio', 'signed': take one"),
        ({"price": "free"}, "price is 'free'; there are 'bits', 'error': take one"),
    ],
)
def test_settings_without_a_meaning_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRP(**settings)
