"""Data by the registry's names, labels of the model's own, and every estimator run on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch import registry
from mpsearch.distilling import distilled
from mpsearch.sensitivity.zeroq import ZeroQ

QUICK = ZeroQ(samples=8, batch=4, steps=10)
SPEC = {"calibrated": "calibrated:weight-error"}  # names that need an argument


def _small() -> Any:
    """(N, 2, 6, 6) to (N, 5), its batch norm having seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        )
        for _ in range(20):
            model(torch.randn(32, 2, 6, 6) + 1)
    return model.eval()


@dataclass(frozen=True)
class Zeros:
    """A method of another's."""

    def batches(self, model: Any, shape: Sequence[int], *, progress: bool = False) -> list[Tensor]:
        return [torch.zeros(3, *shape)]


def test_a_name_stands_for_a_method_with_its_seed() -> None:
    model = _small()
    by_name = distilled(model, (2, 6, 6), "zeroq:4", seed=2)
    itself = ZeroQ(4, seed=2).batches(model, (2, 6, 6))
    assert [each.numpy().tobytes() for each in by_name] == [x.numpy().tobytes() for x in itself]


def test_anothers_method_makes_the_data() -> None:
    (data,) = distilled(nn.Linear(2, 2), (2,), Zeros())
    assert torch.equal(data, torch.zeros(3, 2))


def test_labels_are_what_the_model_says_itself() -> None:
    model = _small()
    model[1].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = distilled(model, (2, 6, 6), QUICK, labels=True)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model[1].training
    model.eval()
    for (x, y), plain in zip(pairs, distilled(model, (2, 6, 6), QUICK), strict=True):
        assert torch.equal(x, plain)
        assert torch.equal(y, model(x).argmax(1))


@pytest.mark.parametrize("name", sorted(registry.names("sensitivity").keys() - {"mc-moe"}))
def test_every_estimator_runs_without_data(name: str) -> None:  # mc-moe wants experts
    model = _small()
    task = mp.Task(model, distilled(model, (2, 6, 6), QUICK, labels=True))
    table = mp.estimate(task, mp.options("w2a8", "w4a8", "w8a8"), SPEC.get(name, name))
    assert np.isfinite(table.values).all()
    assert table.values.any()


def test_progress_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    distilled(_small(), (2, 6, 6), QUICK, progress=True)
    assert "zeroq" in capsys.readouterr().err


def test_a_name_that_is_none_is_an_error() -> None:
    with pytest.raises(LookupError, match="nothing in data is named 'zeroqq'; there are: zeroq"):
        distilled(_small(), (2, 6, 6), "zeroqq")
