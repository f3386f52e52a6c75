"""The rules of layers against loops written from their definitions."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mpsearch.sensitivity.rules import Name, Rule

SEEDED = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, generator=SEEDED, dtype=torch.float64)
W = torch.randn(4, 5, generator=SEEDED, dtype=torch.float64)
R = torch.rand(3, 4, generator=SEEDED, dtype=torch.float64)


def _slow(rule: Rule, x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Of one sample, output by output."""
    found = torch.zeros_like(x)
    floor = rule.epsilon * float((weight @ x).abs().mean())
    for k in range(len(weight)):
        parts = [float(x[j] * weight[k, j]) for j in range(len(x))]
        sign = 1.0 if sum(parts) >= 0 else -1.0
        if rule.name == "zplus":
            q, moved = [max(p, 0.0) for p in parts], 0.0
        elif rule.name == "epsilon":
            q, moved = parts, sign * floor
        else:
            q, moved = [p + rule.gamma * (p if p * sign > 0 else 0) for p in parts], sign * floor
        for j in range(len(x)):
            found[j] += q[j] / (sum(q) + moved) * float(relevance[k])
    return found


@pytest.mark.parametrize("name", ["zplus", "epsilon", "gamma"])
@pytest.mark.parametrize("positive", [True, False])
def test_replicates_its_definition(name: Name, positive: bool) -> None:
    rule, x = Rule(name, epsilon=0.1, gamma=0.5), X.abs() if positive else X
    for sample in range(len(x)):  # the floor is of all sums that are given at once
        row = slice(sample, sample + 1)
        found = rule.divided(R[row], x[row], W, F.linear)
        torch.testing.assert_close(found[0], _slow(rule, x[sample], W, R[sample]))


CONVOLUTIONS: list[tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = [
    (partial(F.conv2d, stride=2, padding=1, groups=2), (2, 4, 6, 6), (6, 2, 3, 3)),
    (partial(F.conv1d, dilation=2), (2, 3, 9), (4, 3, 3)),
    (partial(F.conv_transpose2d, stride=2), (2, 3, 4, 4), (3, 5, 2, 2)),
]


@pytest.mark.parametrize(("product", "read", "stored"), CONVOLUTIONS)
@pytest.mark.parametrize("rule", [Rule(), Rule("epsilon", 0.0), Rule("gamma", 0.0)])
def test_relevance_is_kept(
    product: Callable[..., Tensor], read: tuple[int, ...], stored: tuple[int, ...], rule: Rule
) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (read, stored))
    relevance = torch.rand(product(x, weight).shape, generator=generator, dtype=torch.float64)
    shares = rule.divided(relevance, x, weight, product)
    torch.testing.assert_close(shares.flatten(1).sum(1), relevance.flatten(1).sum(1))


def test_gamma_lies_between_the_two_others() -> None:
    x = X.abs()
    grown = Rule("gamma", 0.0, 1e9).divided(R, x, W.abs(), F.linear)
    torch.testing.assert_close(grown, Rule().divided(R, x, W.abs(), F.linear))
    none = Rule("gamma", 0.1, 0.0).divided(R, x, W, F.linear)
    torch.testing.assert_close(none, Rule("epsilon", 0.1).divided(R, x, W, F.linear))


def test_what_arrives_where_nothing_was_read_goes_to_the_sample_s_other_outputs() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    weight = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.0, 3.0]])
    relevance = torch.tensor([[1.0, 8.0, 3.0], [1.0, 0.0, 3.0]])
    found = Rule().divided(relevance, x, weight, F.linear)
    torch.testing.assert_close(found[0], 3 * found[1])
    torch.testing.assert_close(found[1], torch.tensor([1 / 3, 2 / 3 + 3]))


def test_epsilon_takes_relevance_away() -> None:
    x = X.abs()
    shares = [float(Rule("epsilon", e).divided(R, x, W.abs(), F.linear).sum()) for e in (0, 0.1, 1)]
    assert shares[0] == pytest.approx(float(R.sum()))
    assert shares[0] > shares[1] > shares[2] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "beta"}, "no rule is named 'beta'; there are 'zplus', 'epsilon', 'gamma'"),
        ({"epsilon": -1.0}, "epsilon is -1.0; wanted a finite number from 0"),
        ({"gamma": float("nan")}, "gamma is nan; wanted a finite number from 0"),
    ],
)
def test_settings_without_a_meaning_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**settings)
