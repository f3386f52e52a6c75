"""Distilled data against closed forms and the laws it obeys; on ResNet-20 against real data."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.sensitivity.zeroq import ZeroQ, distance
from mpsearch.verification import Verifier, by_module
from tests.sensitivity.networks import resnet20

QUICK = ZeroQ(samples=8, batch=4, steps=20)


def _norm(norm: nn.Module, mean: list[float], std: list[float]) -> nn.Module:
    """A batch norm that keeps these statistics."""
    with torch.no_grad():
        norm.get_buffer("running_mean").copy_(torch.tensor(mean))
        norm.get_buffer("running_var").copy_(torch.tensor(std).square())
    return norm


def _small() -> Any:
    """(N, 2, 6, 6) to (N, 5), its batch norms having seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(64, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 5),
        )
        for _ in range(20):
            model(torch.randn(32, 2, 6, 6) * 2 + 1)
    return model.eval()


def _moments(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return x.mean(axes), x.std(axes)


def test_each_sample_settles_between_the_norm_and_the_input() -> None:
    model = _norm(nn.BatchNorm2d(2), [1.0, -2.0], [3.0, 0.5])
    found = torch.cat(ZeroQ(samples=6, batch=3, steps=400).batches(model, (2, 5, 5)))
    mean, std = _moments(found, (2, 3))  # where (m - a)^2 + m^2 and (s - b)^2 + (s - 1)^2 are least
    torch.testing.assert_close(mean, torch.tensor([[0.5, -1.0]]).repeat(6, 1), atol=0.01, rtol=0)
    torch.testing.assert_close(std, torch.tensor([[2.0, 0.75]]).repeat(6, 1), atol=0.01, rtol=0)


def test_statistics_of_a_batch_leave_samples_free() -> None:
    model = _norm(nn.BatchNorm2d(2), [1.0, -2.0], [3.0, 0.5])
    (found,) = ZeroQ(samples=6, batch=6, steps=400, over="batch").batches(model, (2, 5, 5))
    mean, std = _moments(found, (0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.5, -1.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(std, torch.tensor([2.0, 0.75]), atol=0.01, rtol=0)
    assert (found.mean((2, 3)).std(0) > 0.1 * std).all()


def test_batch_norms_of_vectors() -> None:
    model = _norm(nn.BatchNorm1d(3), [1.0, -2.0, 0.0], [3.0, 0.5, 1.0])
    for found in ZeroQ(samples=13, batch=6, steps=400).batches(model, (3,)):
        mean, std = _moments(found, (0,))
        torch.testing.assert_close(mean, torch.tensor([0.5, -1.0, 0.0]), atol=0.01, rtol=0)
        torch.testing.assert_close(std, torch.tensor([2.0, 0.75, 1.0]), atol=0.01, rtol=0)


class _Backwards(nn.Module):
    """Batch norms that run in another order than they are registered in; one of them not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = _norm(nn.BatchNorm2d(1), [100.0], [1.0])
        self.second = _norm(nn.BatchNorm2d(1), [4.0], [4.0])
        self.first = _norm(nn.BatchNorm2d(1), [1.0], [1.0])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x) + self.second(input=2 * x)
        return out


def test_each_batch_norm_is_matched_by_what_it_reads() -> None:
    found = torch.cat(ZeroQ(samples=4, batch=4, steps=400).batches(_Backwards(), (1, 6, 6)))
    mean, std = _moments(found, (2, 3))  # least of (m - 1)^2 + (2m - 4)^2 + m^2, and so on
    torch.testing.assert_close(mean, torch.full((4, 1), 9 / 6), atol=0.01, rtol=0)
    torch.testing.assert_close(std, torch.full((4, 1), 10 / 6), atol=0.01, rtol=0)


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_distance_is_what_it_says(over: Any) -> None:
    torch.manual_seed(0)
    x, mean, std = torch.randn(4, 3, 5, 2), torch.randn(3), torch.rand(3)
    groups = [x[i : i + 1] for i in range(4)] if over == "sample" else [x]
    wanted = [
        float((group.mean((0, 2, 3)) - mean).square().sum())
        + float(((group.var((0, 2, 3)) + 1e-6).sqrt() - std).square().sum())
        for group in groups
    ]
    assert float(distance(x, mean, std, over)) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_the_networks_own_statistics_come_near() -> None:
    model, seen = _small(), list[float]()

    def hook(norm: nn.Module, args: tuple[Tensor]) -> None:
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        seen.append(float(distance(args[0], mean, var.sqrt(), "batch")))

    (data,) = ZeroQ(samples=32, over="batch", mean=1, std=2).batches(model, (2, 6, 6))
    for norm in (model[1], model[5]):
        norm.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(torch.randn(32, 2, 6, 6, generator=torch.Generator().manual_seed(1)))
        model(data)
    assert seen[2] < 0.1 * seen[0]
    assert seen[3] < 0.1 * seen[1]


def test_a_network_that_normalises_by_itself_gets_the_same_data_in_its_own_scale() -> None:
    inner = _small()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner((x - 128) / 64)
            return out

    plain = QUICK.batches(inner, (2, 6, 6))
    scaled = ZeroQ(samples=8, batch=4, steps=20, mean=128, std=64).batches(Scaled(), (2, 6, 6))
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(128 + 64 * one, other, rtol=1e-4, atol=0.1)


def test_a_network_gets_data_of_its_own_type() -> None:
    (wide,) = ZeroQ(samples=3, steps=4).batches(_small().double(), (2, 6, 6))
    assert wide.dtype == torch.float64
    (half,) = ZeroQ(samples=3, steps=4).batches(_small().bfloat16(), (2, 6, 6))
    assert half.dtype == torch.bfloat16
    assert not wide.requires_grad


@pytest.mark.parametrize(
    ("samples", "batch", "sizes"), [(8, 4, [4, 4]), (9, 4, [5, 4]), (3, 8, [3]), (7, 4, [7])]
)
def test_no_batch_is_smaller_than_asked_for(samples: int, batch: int, sizes: list[int]) -> None:
    data = ZeroQ(samples=samples, batch=batch, steps=1).batches(_small(), (2, 6, 6))
    assert [tuple(each.shape) for each in data] == [(size, 2, 6, 6) for size in sizes]


def test_same_bytes_whatever_the_state_of_global_randomness() -> None:
    found = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = torch.random.get_rng_state()
            found.append([b.numpy().tobytes() for b in QUICK.batches(_small(), (2, 6, 6))])
            assert torch.equal(torch.random.get_rng_state(), before)
    assert found[0] == found[1]
    other = ZeroQ(samples=8, batch=4, steps=20, seed=1).batches(_small(), (2, 6, 6))
    assert other[0].numpy().tobytes() != found[0][0]


class _Midway(BaseException):
    """As a stop from outside would be."""


@pytest.mark.parametrize("stops", [None, 0, 3])
def test_the_model_is_left_as_it_was(stops: int | None) -> None:
    model, calls = _small(), [0]

    def stop(*_: Any) -> None:
        calls[0] += 1
        if stops is not None and calls[0] > stops:
            raise _Midway

    model[1].train()
    model[4].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    handle = model[7].register_forward_hook(stop)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if stops is None:
        QUICK.batches(model, (2, 6, 6))
    else:
        with pytest.raises(_Midway):
            QUICK.batches(model, (2, 6, 6))
    handle.remove()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [m.training for m in model] == [i == 1 for i in range(8)]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [i != 4 for i in range(10)]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert [p.grad is None for p in model.parameters()] == [i != 0 for i in range(10)]


def test_progress_is_shown_on_standard_error_where_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    QUICK.batches(_small(), (2, 6, 6))
    assert capsys.readouterr() == ("", "")
    QUICK.batches(_small(), (2, 6, 6), progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "zeroq" in err
    assert "/40 " in err


def test_a_model_without_batch_norms_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the model has no batch norm, .* give batches of real"):
        QUICK.batches(nn.Linear(3, 2), (3,))


def test_a_batch_norm_without_statistics_is_an_error() -> None:
    model = _small()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ValueError, match=r"batch norm '1' keeps no statistics .* real data, or"):
        QUICK.batches(model, (2, 6, 6))


def test_an_untrained_model_is_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="keeps is 0, as before any training; give a trained"):
        QUICK.batches(model, (2, 6, 6))


class _Cut(nn.Module):
    """Its batch norm is not reached, or not with gradients."""

    def __init__(self, *, runs: bool) -> None:
        super().__init__()
        self.norm, self.runs = _norm(nn.BatchNorm1d(3), [1.0] * 3, [1.0] * 3), runs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.detach()) if self.runs else x
        return out


@pytest.mark.parametrize("runs", [False, True])
def test_batch_norms_out_of_reach_are_an_error(*, runs: bool) -> None:
    with pytest.raises(ValueError, match="no batch norm of the model gets a gradient from its inp"):
        QUICK.batches(_Cut(runs=runs), (3,))


def test_a_distance_that_is_not_finite_is_an_error() -> None:
    model = _small()
    _norm(model[1], [math.nan] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match=r"at step 0 the distance .* is nan; wanted a finite"):
        QUICK.batches(model, (2, 6, 6))


def test_overflow_in_half_precision_is_an_error() -> None:
    model = _small().half()
    with torch.no_grad():
        model[0].weight.mul_(3e4)
    with pytest.raises(ValueError, match=r"wanted a finite number: .* run the model in float32"):
        QUICK.batches(model, (2, 6, 6))


def test_a_shape_the_model_does_not_take_is_an_error() -> None:
    with pytest.raises(ValueError, match="the model failed on the example"):
        QUICK.batches(_small(), (3, 6, 6))
    for shape in ((), (2, 0, 6)):
        with pytest.raises(ValueError, match=r"wanted that of one sample, such as \(3, 32, 32\)"):
            QUICK.batches(_small(), shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 1}, "samples is 1; wanted 2 or more"),
        ({"batch": 1}, "batch is 1; wanted 2 or more"),
        ({"steps": 0}, "steps is 0; wanted 1 or more"),
        ({"rate": 0}, "rate is 0; wanted a number above 0"),
        ({"std": math.inf}, "std is inf; wanted a number above 0"),
        ({"mean": math.nan}, "mean is nan; wanted a finite number"),
        ({"over": "channel"}, "over is 'channel'; there are 'sample', 'batch': take one"),
    ],
)
def test_settings_without_a_meaning_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroQ(**settings)


@pytest.mark.shared
@pytest.mark.slow
def test_allocations_of_resnet20_found_without_data_beat_uniform(shared: Path) -> None:
    model, images = resnet20(shared, 128 + 250)
    real = mp.Task(model, [images[:128]], [images[128:]])
    data = ZeroQ(samples=32, steps=60).batches(model, (3, 32, 32))
    made = mp.Task(model, data, real.heldout)
    given, net = mp.options("w2a8", "w3a8", "w4a8", "w8a8"), mp.trace(model, data[0])
    size, modules = mp.cost(net, given), {layer.name: layer.modules for layer in net.layers}
    tables = [mp.estimate(task, given, network=net) for task in (real, made)]
    one, other = (rankdata(table.values.ravel()) for table in tables)
    ranks = float(np.corrcoef(one, other)[0, 1])
    print(f"\nSpearman, layers and options: {ranks:.3f}")
    assert ranks > 0.9
    checks = Verifier.of(real), Verifier.of(made)
    for short in ("w3a8", "w4a8"):
        uniform = checks[0]({m: mp.options(short)[0] for ms in modules.values() for m in ms}).mean
        by_real, by_made = (mp.solve(table, {size: f"uniform:{short}"}) for table in tables)
        best, mixed = (checks[0](by_module(a.layers, modules)).mean for a in (by_real, by_made))
        alone = checks[1](by_module(by_made.layers, modules)).mean
        print(
            f"{short}: KL uniform {uniform:.4f}, found and calibrated with real data {best:.4f},"
            f" found without {mixed:.4f}, calibrated without, too {alone:.4f}"
        )
        assert mixed < uniform
