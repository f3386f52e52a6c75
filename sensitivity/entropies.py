"""Entropies of activations, as functions of tensors."""

import math

import numpy as np
import torch
from torch import Tensor

from mpsearch.network import Layer
from mpsearch.tables import Numbers


def token_entropy(x: Tensor) -> Tensor:
    """(N,) Q-VLM's entropy: ``-sum p log(p + 1e-7)`` over tokens, averaged over channels.

    p is ``|x|`` over its Euclidean norm along the tokens: as in the official code, and no
    probability.

    Args:
        x: (N, tokens, channels).
    """
    p = torch.nn.functional.normalize(x.double().abs(), dim=1)
    return -(p * (p + 1e-7).log()).sum(1).mean(1)


def dependency(before: Tensor, after: Tensor) -> Tensor:
    """(N,) Q-VLM's entropy of what one layer reads, given what the layer before it reads.

    ``-sum joint log(conditional + 1e-5)`` over tokens, averaged over channels, with magnitudes
    normalised to sum to one over the tokens: the product of both is the joint distribution, their
    ratio the conditional one.

    Args:
        before: (N, tokens, channels).
        after: Of the same shape.
    """
    if before.shape != after.shape or before.dim() != 3:
        raise ValueError(
            f"activations have shapes {tuple(before.shape)} and {tuple(after.shape)}; wanted the"
            " same (samples, tokens, channels) of both layers"
        )
    p, q = _shares(before.double().abs()), _shares(after.double().abs())
    joint, conditional = _shares(p * q), _shares(q / (p + 1e-5))
    return -(joint * (conditional + 1e-5).log()).sum(1).mean(1)


def clusters(rows: Tensor, count: int, seed: int, rounds: int = 50) -> Tensor:
    """(rows,) the cluster of each row, by K-means from ``count`` rows picked at random."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(len(rows), generator=generator)[:count]
    centres = rows[picked.to(rows.device)].clone()
    label = torch.cdist(rows, centres).argmin(1)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, label, rows)
        sizes = torch.bincount(label, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
        before, label = label, torch.cdist(rows, centres).argmin(1)
        if torch.equal(before, label):
            break
    return label


def as_tokens(x: Tensor, kind: str) -> Tensor:
    """(N, tokens, channels) what a layer reads or writes; pixels, or rows of a matrix, are tokens.

    Args:
        x: Of a linear layer (..., channels), of a convolution (N, channels, *pixels).
        kind: As in `Layer.kind`.
    """
    if kind.startswith("conv"):
        return x.flatten(2).mT
    return x[None] if x.dim() < 3 else x.reshape(len(x), -1, x.shape[-1])


def shannon(counts: Numbers) -> float:
    """The entropy in nats of a histogram."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def lively(layer: Layer, entropy: float) -> float:
    """The entropy, once it is above zero; ``ValueError`` where it is not."""
    if not math.isfinite(entropy) or entropy <= 0:
        raise ValueError(
            f"layer {layer.name!r} has an entropy of {entropy:g} on the calibration batches: what"
            " it reads or writes never varies, or is not finite; give other batches, give the model"
            " in float32, or leave the layer out with skip"
        )
    return entropy


def _shares(x: Tensor) -> Tensor:
    return x / x.sum(1, keepdim=True).clamp_min(1e-300)
