"""How batches are called, joined and compared."""

import math

import pytest
import torch
from torch import nn

from mpsearch.batches import call, checked, divergence, joined, samples, tensor_of, unit


class Named(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


def test_a_batch_is_called_by_its_kind() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    assert torch.equal(call(nn.Identity(), x), x)
    assert torch.equal(call(nn.Identity(), (x, y)), x)
    assert torch.equal(call(Named(), {"b": y, "a": x}), x)


def test_kl_is_that_of_the_definition() -> None:
    p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-6)


def test_tokens_are_averaged_within_a_sample() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    each = divergence(p.reshape(15, 7), q.reshape(15, 7)).reshape(3, 5).mean(1)
    torch.testing.assert_close(divergence(p, q), each)


def test_a_class_that_both_mask_is_no_loss() -> None:
    p = torch.tensor([[1.0, 0.0, -math.inf]])
    assert divergence(p, p).item() == 0
    assert divergence(p, p + torch.tensor([1.0, 0.0, 0.0])).item() > 0


def test_what_is_no_logits_is_compared_by_relative_squared_error() -> None:
    p = torch.ones(2, 3, 4, 4)
    assert divergence(p, 1.5 * p).tolist() == [0.25, 0.25]
    assert unit(p) == "relative MSE"


def test_joined_batches_are_the_first_samples_in_order() -> None:
    parts = [torch.arange(4.0), torch.arange(4.0, 8.0)]
    assert joined(parts, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert joined([(p, -p) for p in parts], 5)[1].tolist() == [0, -1, -2, -3, -4]
    assert joined([{"x": p} for p in parts], 5)["x"].tolist() == [0, 1, 2, 3, 4]
    assert joined([torch.zeros(2, 3), torch.zeros(2, 4)], 9).shape == (2, 3)


def test_samples_and_outputs_that_are_none_are_explained() -> None:
    assert samples({"x": torch.zeros(3, 2)}) == 3
    with pytest.raises(TypeError, match="a batch is a tensor, a tuple"):
        samples("text")
    with pytest.raises(TypeError, match="the model returned int; wanted a tensor"):
        tensor_of(3)
    with pytest.raises(ValueError, match="no batches were given"):
        checked([])
