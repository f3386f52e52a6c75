"""The mean of some inputs' channels moved into the biases of the layers that read them.

From Tai and Wu 2024, MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer
(arXiv 2401.14895; its SQ-b is this, and then smoothing). Channel j of what a norm returns has its
mean over the calibration samples taken off, and ``W mean`` goes to the biases that follow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import parts
from mpsearch.quant.smoothing import input_last, reading, watch


def shift(model: nn.Module, batch: Any) -> int:
    """Shift what can be, in place; how many norms that were."""
    found = reading(model, parts(batch, 1)[0])
    groups = {norm: layers for norm, layers in found.items() if shiftable(norm, layers)}
    sums: dict[nn.Module, Tensor] = {}
    counts = dict.fromkeys(groups, 0)

    def see(norm: nn.Module, rows: Tensor) -> None:
        sums[norm] = sums.get(norm, 0) + rows.double().sum(0)
        counts[norm] += len(rows)

    watch(model, batch, groups, see)
    for norm, layers in groups.items():
        shift_channels(norm, layers, sums[norm] / counts[norm])
    return len(groups)


def shiftable(norm: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether a norm and all that read it have biases."""
    return all(m._parameters.get("bias") is not None for m in (norm, *layers))  # noqa: SLF001


@torch.no_grad()
def shift_channels(norm: nn.Module, layers: Sequence[nn.Module], by: Tensor) -> None:
    """Take off so much from what a norm returns, and let what reads it add it."""
    for layer in layers:
        _add(layer, input_last(layer).double() @ by)
    _add(norm, -by)


def _add(module: nn.Module, change: Tensor) -> None:
    bias = module.get_parameter("bias")
    bias.copy_(bias.double() + change)
