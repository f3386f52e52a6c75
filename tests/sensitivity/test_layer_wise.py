"""LIM and ZD where they are known, their laws, and errors of what estimators share."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpsearch.formats import options
from mpsearch.protocols import Estimator
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.lim import Lim
from mpsearch.sensitivity.zd import Zd
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite
from mpsearch.tracing import module_weight, trace

OPTIONS = options("w2a16", "w16a4", "w2a4", "w16a16")
STEPS = np.array([4.0**-2, 4.0**-4, 4.0**-2 + 4.0**-4, 0])


class TestLim(EstimatorSuite):
    estimator: Estimator = Lim()


class TestLimOfSamples(EstimatorSuite):
    estimator: Estimator = Lim("samples")


class TestZd(EstimatorSuite):
    estimator: Estimator = Zd()
    runs_model = False


def _estimate(model: nn.Module, x: Tensor, estimator: Estimator) -> Table:
    network = trace(model, x)
    return estimator.estimate(Task(model, [x]), network, OPTIONS, recipe=Recipe(), sweep=Sweep())


def _linear(matrix: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(matrix), len(matrix), bias=False))
    model[0].weight.data = matrix
    return model


@pytest.mark.parametrize(
    ("matrix", "lim"),
    [
        (torch.eye(4), -1),  # nothing is changed
        (-torch.eye(4), 1),
        (torch.tensor([[0.0, -1.0], [1.0, 0.0]]), 0),  # a quarter turn
    ],
)
@pytest.mark.parametrize("over", ["positions", "samples"])
def test_lim_has_its_closed_forms(matrix: Tensor, lim: float, over: Any) -> None:
    x = torch.randn(6, len(matrix), generator=torch.Generator().manual_seed(0))
    table = _estimate(_linear(matrix), x, Lim(over))
    np.testing.assert_allclose(table.values[0], (1 + lim) * STEPS, atol=1e-6)
    assert table.stderr is not None
    np.testing.assert_allclose(table.stderr, 0, atol=1e-6)
    assert table.unit == "rank score (LIM)"
    assert not table.notes


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_lim_does_not_see_the_size_of_what_is_written(scale: float, seed: int) -> None:
    seeded = torch.Generator().manual_seed(seed)
    matrix, x = torch.randn(3, 3, generator=seeded), torch.randn(5, 3, generator=seeded)
    one, other = (_estimate(_linear(m), x, Lim()).values for m in (matrix, scale * matrix))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    assert (one >= 0).all()
    assert (one <= 2 * STEPS + 1e-9).all()


class Block(nn.Module):
    """A residual block; its branch is a container of its own."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.share * self.branch(x)
        return out


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList([Block(4, 0.0), Block(4, 3.0)])
        self.head = nn.Linear(4, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def test_layers_have_the_score_of_the_block_they_are_in() -> None:
    torch.manual_seed(0)
    model, ids = Stack().eval(), torch.arange(14).reshape(2, 7) % 7
    table = _estimate(model, ids, Lim())
    scores = dict(zip([layer.name for layer in table.layers], table.values[:, 0] * 16, strict=True))
    x = model.embed(ids)
    cos = torch.cosine_similarity(x, model.blocks[1](x), dim=-1).mean().item()
    assert scores["blocks.0.branch.0"] == pytest.approx(0, abs=1e-7)
    assert scores["blocks.1.branch.0"] == pytest.approx(1 - cos, rel=1e-5)
    assert scores["blocks.1.branch.2"] == pytest.approx(1 - cos, rel=1e-5)
    assert scores["head"] == 1
    (note,) = table.notes
    assert "in no block that keeps its shape" in note
    assert table.notes[note][:, 0].tolist() == [n == "head" for n in scores]


def test_lim_counts_what_is_zero_before_and_after_as_unchanged() -> None:
    table = _estimate(_linear(torch.eye(3)), torch.zeros(2, 3), Lim())
    np.testing.assert_allclose(table.values, 0)


def test_lim_refuses_activations_that_are_not_finite() -> None:
    model = _linear(torch.full((2, 2), 3e38))
    with pytest.raises(
        ValueError, match=r"block '0' reads or writes NaN or infinity; give a model"
    ):
        _estimate(model, torch.full((1, 2), 10.0), Lim())


def test_zd_of_a_normal_distribution_is_its_tail() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(400, 400)
    nn.init.normal_(linear.weight, 3, 2)
    model = nn.Sequential(linear)
    x = torch.randn(1, 400)
    table = _estimate(model, x, Zd())
    wanted = np.array([STEPS[0], 0, STEPS[0], 0])
    np.testing.assert_allclose(table.values[0], (1 - 0.158655) * wanted, rtol=4e-3)
    two = _estimate(model, x, Zd(sides=2)).values[0]
    np.testing.assert_allclose(two, (1 - 0.317311) * wanted, rtol=8e-3)
    assert table.unit == "rank score (ZD)"


def test_zd_of_few_weights_is_counted() -> None:
    """Mean 1, deviation sqrt(12): of 0 0 0 0 0 0 0 ... only the largest is above."""
    matrix = torch.zeros(2, 2)
    matrix[0, 0] = 4
    table = _estimate(_linear(matrix), torch.ones(1, 2), Zd())
    assert table.values[0, 0] == pytest.approx(0.75 / 16)


@given(scale=st.floats(0.01, 100), shift=st.floats(-5, 5), seed=st.integers(0, 99))
def test_zd_does_not_see_scale_or_shift(scale: float, shift: float, seed: int) -> None:
    matrix = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = torch.ones(1, 6, dtype=torch.float64)
    one, other = (_estimate(_linear(m), x, Zd()).values for m in (matrix, scale * matrix + shift))
    np.testing.assert_allclose(one, other)


def test_zd_refuses_weights_that_are_all_equal() -> None:
    with pytest.raises(ValueError, match=r"layer '0': all its weights are 2\.0, so they have no z"):
        _estimate(_linear(torch.full((2, 2), 2.0)), torch.ones(1, 2), Zd())


def test_zd_refuses_weights_that_are_not_finite() -> None:
    model, x = _linear(torch.eye(2)), torch.ones(1, 2)
    network = trace(model, x)
    module_weight(model, "0").data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer '0': its weights hold NaN or infinity; give"):
        Zd().estimate(Task(model, [x]), network, OPTIONS, recipe=Recipe(), sweep=Sweep())


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (Lim, {"over": "tokens"}, r"over is 'tokens'; known are 'positions', 'samples'"),
        (Zd, {"threshold": -1.0}, r"threshold is -1\.0; wanted a number from 0 up"),
        (Zd, {"sides": 3}, r"sides is 3; wanted 1 or 2"),
    ],
)
def test_settings_that_nothing_follows_are_errors(make: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
