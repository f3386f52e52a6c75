from collections import OrderedDict
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.quant.attention import explicit
from mpsearch.quant.replay import Replay, kept_bytes


class Residual(nn.Module):
    """Adds and activates in place, on tensors that modules returned."""

    def __init__(self, width: int, *, late: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        if self.late:
            x *= 0.5
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return F.relu_(y)


class ResNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Residual(4), Residual(4, late=True))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        x = self.blocks(self.stem(x))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class Twice(nn.Module):
    """Calls one module three times, a container inside."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.between, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.between(self.shared(x))) + self.shared[0](x)
        out: Tensor = self.last(x)
        return out


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return OrderedDict(pair=(self.a(x), [self.b(x)]), none=None)


class Nested(nn.Module):
    """Hands tuples and dicts about, and changes what is in them."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.c, self.d = Split(), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.split(x)
        one, rest = out.pop("pair")
        one.add_(self.c(rest.pop()))
        return {"logits": self.d(one)}


class Logits(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)["logits"]
        return found


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    return explicit(nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 4)))


MODELS = {
    "resnet": (ResNetLike, (4, 3, 8, 8)),
    "transformer": (_transformer, (3, 5, 8)),
    "twice": (Twice, (4, 6)),
    "nested": (lambda: Logits(Nested()), (4, 6)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_from_any_module_on_equals_a_whole_forward(kind: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    model, x = make().eval(), torch.randn(shape)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    replay = Replay(model, x, names)
    assert replay.whole == ""
    with torch.no_grad():
        assert torch.equal(replay.reference, model(x.clone()))
        for changed in [*([n] for n in names), names[-2:], *([n] for n in reversed(names))]:
            _scale(model, changed, -2)
            wanted, got = model(x.clone()), replay.run(changed)
            _scale(model, changed, -1 / 2)
            assert torch.equal(got, wanted)
            assert not torch.equal(got, replay.reference)
    assert replay.skipped > 0
    assert "forward" not in model.__dict__


def _scale(model: nn.Module, names: list[str], by: float) -> None:
    for name in names:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data.mul_(by)


def test_counts_the_calls_it_saves() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))).eval()
    replay = Replay(model, torch.ones(1, 2), ["0", "1", "2", "3"])
    for name in "0123":
        replay.run([name])
    assert (replay.ran, replay.skipped) == (4 + 3 + 2 + 1, 0 + 1 + 2 + 3)


def test_what_an_outer_module_returned_stands_for_all_inside() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = nn.Sequential(inner, nn.Linear(2, 2)).eval()
    replay = Replay(model, torch.ones(1, 2), ["1"])
    kept = [call.module for call in replay._calls if call.output is not None]
    assert kept == [inner]


def test_says_that_a_model_is_not_deterministic() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(
        ValueError, match="two runs of the model in eval mode on one batch gave different"
    ):
        Replay(nn.Sequential(nn.Linear(2, 2), Noisy()), torch.ones(1, 2), ["0"])


def test_reuses_nothing_where_modules_work_by_side_effects() -> None:
    class Writer(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor, held: list[Tensor]) -> None:
            held.append(self.linear(x))

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.writer, self.second = Writer(nn.Linear(2, 2)), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            held: list[Tensor] = []
            self.writer(x, held)
            out: Tensor = self.second(held[0])
            return out

    model, x = Holder().eval(), torch.ones(1, 2)
    replay = Replay(model, x, ["writer.linear", "second"])
    assert "replaying from 'second' on fails" in replay.whole
    with torch.no_grad():
        assert torch.equal(replay.run(["second"]), model(x))


@pytest.mark.parametrize("share", [0, 0.3, 0.7])
@pytest.mark.parametrize("kind", MODELS)
def test_what_does_not_fit_the_memory_is_computed_again(kind: str, share: float) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    model, x = make().eval(), torch.randn(shape)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    memory = int(share * kept_bytes(model, x, names))
    replay = Replay(model, x, names, memory=memory)
    assert replay.whole == ""
    assert sum(_bytes(call.output) for call in replay._calls) <= memory
    for name in names:
        _scale(model, [name], -2)
        with torch.no_grad():
            assert torch.equal(replay.run([name]), model(x.clone()))
        _scale(model, [name], -1 / 2)
    assert (replay.skipped > 0) == any(call.output is not None for call in replay._calls)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, dict) else value
    return sum(_bytes(part) for part in parts) if isinstance(value, dict | list | tuple) else 0


def test_keeps_what_saves_the_most_work_for_its_bytes() -> None:
    sizes = [2, 2, 64, 2, 2]  # what the second returns is large, and little work
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes))).eval()
    x, names = torch.ones(3, 2), list("0123")
    assert kept_bytes(model, x, names) == 3 * 4 * (2 + 64 + 2)
    replay = Replay(model, x, names, memory=3 * 4 * 4)
    kept = [i for i, call in enumerate(replay._calls[1:]) if call.output is not None]
    assert kept == [0, 2]
    replay.run(["3"])
    assert (replay.ran, replay.skipped) == (2, 2)


def test_hands_back_all_that_a_model_returns() -> None:
    class Both(nn.Sequential):
        def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002  (torch's name)
            return self[1](self[0](input)), input

    model, x = Both(nn.Linear(6, 4), nn.Linear(4, 2)).eval(), torch.randn(4, 6)
    replay = Replay(model, x, ["1"])
    output, given = replay.returned(["1"])
    assert torch.equal(output, replay.reference)
    assert torch.equal(given, x)
