"""A model that fails in the middle of its work, and whether it is then what it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpsearch.network import Network
from mpsearch.task import Task
from mpsearch.tracing import trace


class Midway(BaseException):
    """What the model raises, as a stop from outside would."""


class Failing(nn.Module):
    """Three linear layers; a call after so many, by this model or a copy of it, raises."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 4))
        self.left = [calls]

    def __deepcopy__(self, memo: Any) -> "Failing":
        other = Failing(0)
        other.inner, other.left = copy.deepcopy(self.inner, memo), self.left
        return other

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner[:2](x)
        if self.left[0] == 0:
            raise Midway
        self.left[0] -= 1
        out: Tensor = self.inner[2:](x)
        return out


def left_as_it_was(estimate: Callable[[Task, Network], Any], *calls: int) -> None:
    """Run an estimate on a model that fails after so many calls, and compare every tensor."""
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    network = trace(Failing(-1), x)
    for count in calls:
        model = Failing(count).train()
        model.inner.get_parameter("0.weight").grad = torch.ones_like(
            model.inner.get_parameter("0.weight")
        )
        before = _tensors(model)
        with pytest.raises(Midway):
            estimate(Task(model, [(x, y), (x + 1, y)]), network)
        after = _tensors(model)
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert model.training
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
        assert all(p.requires_grad for p in model.parameters())
        grads = [p.grad is not None for p in model.parameters()]
        assert grads == [True] + [False] * (len(grads) - 1)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
