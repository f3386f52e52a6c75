"""Hessian-vector products and probes against the whole Hessian of a small network."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F

from mpsearch.sensitivity.hutchinson import Curvature, Deflated, Loss
from tests.sensitivity.networks import curved

LABELS = torch.tensor([0, 2, 1, 1, 0])


def _labelled(output: Tensor, _: Any) -> Tensor:
    return F.cross_entropy(output, LABELS[: len(output)])


def _random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _whole(model: nn.Module, x: Tensor, loss: Loss) -> Tensor:
    """The Hessian in all weights of two axes, laid end to end."""
    named = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    sizes = [p.numel() for p in named.values()]

    def value(flat: Tensor) -> Tensor:
        pieces = zip(named.items(), flat.split(sizes), strict=True)
        weights = {name: piece.reshape(p.shape) for (name, p), piece in pieces}
        found: Tensor = loss(functional_call(model, weights, (x,)), x)
        return found

    return torch.as_tensor(hessian(value, torch.cat([p.flatten() for p in named.values()])))


def _curvature(loss: Loss = _labelled) -> tuple[Curvature, Tensor]:
    model, x = curved()
    weights = [p for p in model.parameters() if p.dim() > 1]
    return Curvature.of(model, weights, x, loss), _whole(model, x, loss)


def _blocks(curvature: Curvature, whole: Tensor) -> Tensor:
    return torch.stack([part.sum() for part in curvature.split(whole.diag())])


def test_products_are_those_of_the_whole_hessian() -> None:
    curvature, whole = _curvature()
    v = torch.randn(curvature.size, generator=_random(), dtype=torch.float64)
    torch.testing.assert_close(curvature.product(v), whole @ v, rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_linear_in_the_weights_has_no_hessian() -> None:
    model = nn.Linear(3, 2, bias=False)
    curvature = Curvature.of(model, [model.weight], torch.ones(4, 3), lambda z, _: z.sum())
    assert (curvature.product(torch.ones(6)) == 0).all()


def test_a_weight_the_loss_does_not_see_has_no_hessian() -> None:
    model, aside = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)
    weights = [model.weight, aside.weight]
    curvature = Curvature.of(model, weights, torch.ones(4, 3), lambda z, _: z.square().sum())
    seen, unseen = curvature.split(curvature.product(torch.ones(10)))
    assert (seen != 0).all()
    assert (unseen == 0).all()


class _Listed(Curvature):
    """Signs come from a list instead of chance."""

    listed: Iterator[Tensor]

    def signs(self, generator: torch.Generator) -> Tensor:
        return next(self.listed)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_the_mean_over_all_signs_is_the_trace(rank: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 3, bias=False))
    model, x = model.double(), torch.randn(5, 2, dtype=torch.float64)
    made = Curvature.of(model, list(model.parameters()), x, _labelled)
    whole = _whole(model, x, _labelled)
    listed = _Listed(made.weights, made.slopes)
    every = [torch.tensor(s, dtype=torch.float64) for s in product((-1.0, 1.0), repeat=made.size)]
    object.__setattr__(listed, "listed", iter(every[5 : 5 + rank]))
    deflated = Deflated.of(listed, rank, _random())
    object.__setattr__(listed, "listed", iter(every))
    found = torch.tensor([deflated.probe(_random()) for _ in every], dtype=torch.float64)
    torch.testing.assert_close(found.mean(0), _blocks(made, whole), rtol=1e-9, atol=1e-12)


def test_nothing_is_left_to_chance_once_all_directions_are_out() -> None:
    curvature, whole = _curvature()
    deflated = Deflated.of(curvature, curvature.size, _random())
    found = torch.tensor(deflated.probe(_random(1)), dtype=torch.float64)
    torch.testing.assert_close(found, _blocks(curvature, whole), rtol=1e-6, atol=1e-9)


def test_taking_directions_out_leaves_less_noise() -> None:
    curvature, whole = _curvature()
    spreads = []
    for rank in (0, 4):
        deflated = Deflated.of(curvature, rank, _random())
        found = np.array([deflated.probe(_random(seed)) for seed in range(200)])
        error = found.std(axis=0, ddof=1) / 200**0.5
        assert (abs(found.mean(axis=0) - _blocks(curvature, whole).numpy()) < 4 * error).all()
        spreads.append(found.std(axis=0))
    assert (spreads[1] < 0.7 * spreads[0]).all()


def test_attention_that_is_fused_has_second_derivatives() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4).double()

    def attend(z: Tensor, _: Any) -> Tensor:
        return F.scaled_dot_product_attention(z[:, None], z[:, None], z[:, None]).square().sum()

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    curvature = Curvature.of(model, [model.weight], x, attend)
    assert torch.isfinite(curvature.product(torch.ones(16, dtype=torch.float64))).all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda z, _: z.sum().item(), r"the loss returned -?\d.*; wanted a tensor of one number"),
        (lambda z, _: z, r"a tensor of shape \(5, 3\); wanted"),
        (lambda z, _: z.detach().sum(), r"a tensor of shape \(\) without a gradient; .* use 'kl'"),
        (lambda z, _: z.sum() * torch.nan, "the loss of the float model is nan; wanted a finite"),
    ],
)
def test_a_loss_that_cannot_be_differentiated_is_an_error(loss: Loss, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _curvature(loss)
