"""Which losses have the Hessian of KL in the logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mpsearch.sensitivity.cross_entropy import bends_as_kl

LOGITS, TOKENS, PIXELS = torch.zeros(6, 4), torch.zeros(3, 5, 4), torch.zeros(3, 2, 2, 4)
LABELS, WORDS = torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(15).reshape(3, 5) % 4
SOFT = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)

Loss = Callable[[Any, Any], Any]


@pytest.mark.parametrize(
    ("loss", "output"),
    [
        (lambda z, _: F.cross_entropy(z, LABELS), LOGITS),
        (lambda z, _: F.cross_entropy(z, LABELS, label_smoothing=0.1), LOGITS),
        (lambda z, _: F.cross_entropy(z, SOFT.to(z)), LOGITS),
        (lambda z, _: F.kl_div(z.log_softmax(-1), SOFT, reduction="batchmean"), LOGITS),
        (lambda z, _: F.nll_loss(z.log_softmax(-1), LABELS), LOGITS),
        (lambda z, _: F.cross_entropy(z.flatten(0, 1), WORDS.flatten()), TOKENS),
        (lambda z, _: F.cross_entropy(z.mT, WORDS), TOKENS),
    ],
)
def test_cross_entropy_with_any_targets_has(loss: Loss, output: Tensor) -> None:
    assert bends_as_kl(loss, output, None)


@pytest.mark.parametrize(
    ("loss", "output"),
    [
        (lambda z, _: F.cross_entropy(z, LABELS, reduction="sum"), LOGITS),
        (lambda z, _: F.cross_entropy(z, LABELS, weight=torch.tensor([1, 2.0, 1, 1])), LOGITS),
        (lambda z, _: F.cross_entropy(z, LABELS, ignore_index=0), LOGITS),
        (lambda z, _: F.cross_entropy(2 * z, LABELS), LOGITS),
        (lambda z, _: F.mse_loss(z, SOFT), LOGITS),
        (lambda z, _: F.cross_entropy(z[:, :-1].flatten(0, 1), WORDS[:, 1:].flatten()), TOKENS),
        (lambda z, _: F.cross_entropy(z.flatten(0, 2), WORDS.flatten()[:12]), PIXELS),
        (lambda z, _: z.sum(), LOGITS),
        (lambda z, _: z.detach().sum(), LOGITS),
        (lambda z, _: z.sum().item(), LOGITS),
        (lambda z, _: F.cross_entropy(z.logits, LABELS), {"logits": LOGITS}),
    ],
)
def test_other_losses_have_not(loss: Loss, output: Any) -> None:
    assert not bends_as_kl(loss, output, None)
