"""The trace of each weight's Hessian block, sample by sample, from single backward passes.

A divergence from the model's own output has no slope there, so its Hessian in the weights is
J^T A J, with J the output's Jacobian and A the divergence's Hessian in the output: exactly and for
any network, because second derivatives of the output meet that slope of zero (Martens 2014, New
Insights and Perspectives on the Natural Gradient Method). With A = S S^T the trace of one weight's
block is the sum over the columns s of S of ``||J^T s||^2``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call, parts, samples, tensor_of
from mpsearch.sensitivity.uses import Uses, squared_norms

Root = Callable[[Tensor], Tensor]
"""S as a function r -> S r, on all samples' outputs at once."""

Random = torch.Generator | Sequence[torch.Generator]
"""Where signs are from: one for all samples, or one for each."""

TOGETHER = 10
"""Columns whose gradients are multiplied at once."""


def columns(output: Tensor, count: int, groups: int | None, random: Random) -> Iterator[Tensor]:
    """The columns of each sample's S, with ``S S^T`` the Hessian in the output of its divergence.

    The divergence is `mpsearch.batches.divergence`; KL has ``diag(p) - p p^T`` for each token.

    Args:
        output: (count, ...) the model's output.
        count: How many samples it is of.
        groups: Into how many groups to add up the columns, each with a random sign: ``S S^T`` is
            then right in expectation. The likeliest classes go to different groups. Without, every
            column comes alone: as many as a sample's output has elements.
        random: Where signs are from.
    """
    values = output.detach().double()
    size = values.numel() // count
    root, place = (_of_kl if output.dim() in (2, 3) else _of_mse)(values, count)
    group = place if groups is None else place % groups
    drawn = [
        torch.randint(2, (size,), generator=one, dtype=torch.int8) for one in _each(random, count)
    ]
    sign = torch.stack(drawn) * 2 - 1
    for number in range(min(groups or size, size)):
        r = sign.to(values) * (group == number)
        yield root(r.reshape(output.shape))


def _each(random: Random, count: int) -> Sequence[torch.Generator]:
    return [random] * count if isinstance(random, torch.Generator) else random


def _of_kl(output: Tensor, count: int) -> tuple[Root, Tensor]:
    p = output.softmax(-1)
    tokens = p.numel() // (count * p.shape[-1])
    half = (p / tokens).sqrt()
    rank = p.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    each = torch.arange(tokens, device=p.device)[:, None]
    place = rank.reshape(count, tokens, -1) * tokens + each

    def root(r: Tensor) -> Tensor:
        scaled = half * r
        return scaled - p * scaled.sum(-1, keepdim=True)

    return root, place.flatten(1)


def _of_mse(output: Tensor, count: int) -> tuple[Root, Tensor]:
    norms = output.reshape(len(output), -1).square().sum(1).clamp_min(1e-300)
    share = 2 * count / (norms * len(output))  # of a sample's mean over its rows
    scale = share.sqrt().reshape(-1, *[1] * (output.dim() - 1))
    place = torch.arange(output.numel() // count, device=output.device)
    return lambda r: scale * r, place.expand(count, -1)


@dataclass(frozen=True, eq=False)
class GaussNewton:
    """Traces of the Gauss-Newton blocks of some weights.

    Attributes:
        model: In eval mode; the weights want gradients.
        weights: W of its parameters.
        groups: As in :func:`columns`.
        together: Whether samples go through the model together, where :func:`separable`.
    """

    model: nn.Module
    weights: Sequence[Tensor]
    groups: int | None = None
    together: bool = True

    def traces(self, batch: Any, random: Random) -> Tensor:
        """(N, W) each sample's trace of each weight's block, float64."""
        if self.together:
            return self._by_uses(batch, random)
        each = zip(parts(batch, 1), _each(random, samples(batch)), strict=True)
        return torch.cat([self._by_autograd(one, generator) for one, generator in each])

    def _by_uses(self, batch: Any, random: Random) -> Tensor:
        """All samples at once, from what layers read and the gradients at what they wrote."""
        count = samples(batch)
        output, uses = run(self.model, batch, self.weights)
        total = torch.zeros(count, len(self.weights), dtype=torch.float64)
        for block in _blocks(columns(output, count, self.groups, random), TOGETHER):
            total += norms_by_uses(output, uses, block, count)
        return total

    def _by_autograd(self, batch: Any, generator: torch.Generator) -> Tensor:
        """One sample, from the weights' own gradients."""
        output, _ = run(self.model, batch, self.weights)
        total = torch.zeros(1, len(self.weights), dtype=torch.float64)
        for s in columns(output, 1, self.groups, generator):
            total += norms_by_autograd(output, self.weights, s)
        return total


def separable(model: nn.Module, batch: Any, weights: Sequence[Tensor]) -> bool:
    """Whether samples that go through the model together give the norms they give one by one.

    They do not where samples do not lie one after another along the first axis of what each layer
    reads, where they see each other, or where a weight is used in a way that is not known here.
    """
    pair = parts(batch, 2)[0]
    if samples(pair) < 2:
        return False
    generator = torch.Generator().manual_seed(0)
    output, uses = run(model, pair, weights)
    (s,) = columns(output, 2, 1, generator)
    try:
        together = norms_by_uses(output, uses, [s], 2)
    except RuntimeError:
        return False
    alone = [
        norms_by_autograd(run(model, one, weights)[0], weights, share)
        for one, share in zip(parts(pair, 1), s.chunk(2), strict=True)
    ]
    return torch.allclose(
        together, torch.stack(alone), rtol=1e-3, atol=1e-6 * float(together.max())
    )


def norms_by_uses(output: Tensor, uses: Uses, block: Sequence[Tensor], count: int) -> Tensor:
    """(N, W) squared norms of each sample's weight gradients, summed over some columns."""
    edges = [use.edge for found in uses.found for use in found]
    gradients = zip(*[_gradients(output, edges, s) for s in block], strict=True)
    norms = torch.zeros(count, len(uses.found), dtype=torch.float64)
    for number, found in enumerate(uses.found):
        given = [(use, [g for g in next(gradients) if g is not None]) for use in found]
        if reaching := [pair for pair in given if pair[1]]:
            norms[:, number] = squared_norms(reaching, count).double()
    return norms


def norms_by_autograd(output: Tensor, weights: Sequence[Tensor], s: Tensor) -> Tensor:
    """(W,) squared norms of the weights' gradients."""
    gradients = _gradients(output, weights, s)
    squares = [0.0 if g is None else float(g.double().square().sum()) for g in gradients]
    return torch.tensor(squares, dtype=torch.float64)


def _gradients(output: Tensor, inputs: Sequence[Any], s: Tensor) -> tuple[Tensor | None, ...]:
    s = s.to(output.dtype)
    return torch.autograd.grad(output, inputs, s, retain_graph=True, allow_unused=True)


def run(model: nn.Module, batch: Any, weights: Sequence[Tensor]) -> tuple[Tensor, Uses]:
    """The output, with its graph, and what it used the weights for.

    Raises:
        ValueError: An output that has no Hessian: not finite, not by samples, not differentiable.
    """
    with torch.enable_grad(), Uses(weights) as uses:
        output = tensor_of(call(model, batch))
    count = samples(batch)
    if output.dim() < 1 or len(output) % count:
        raise ValueError(
            f"the model's output has shape {tuple(output.shape)} for {count} samples; wanted the"
            " samples along its first axis"
        )
    if not torch.isfinite(output).all():
        raise ValueError(
            "the model's output holds NaN or infinity, so its loss has no Hessian; give a model and"
            " batches whose output is finite"
        )
    if not output.requires_grad:
        raise ValueError(
            "the model's output has no gradient in any layer's weight; wanted a forward without"
            " torch.no_grad or detach, or use 'kl', which needs no gradient"
        )
    return output, uses


def _blocks(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    left = iter(items)
    while block := list(islice(left, size)):
        yield block
