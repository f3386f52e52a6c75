"""Batch norms folded into the layers before them.

As Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference (arXiv 1712.05877, section 3.2). A batch norm in eval mode multiplies and shifts each
channel; the layer whose output it alone reads can multiply. The norm keeps the shift, as a layer's
bias would, and is where corrections find it.
"""

from typing import Any

import torch
from torch import nn

from mpsearch.quant.consumers import consumers
from mpsearch.quant.corrections import norms_of
from mpsearch.tracing import output_first, sites


def fold(model: nn.Module, batch: Any) -> int:
    """Fold what can be, in place; how many norms that were."""
    held = [id(site.weight) for site in sites(model)]
    layers = {site.module for site in sites(model) if held.count(id(site.weight)) == 1}
    norms = set[Any](norms_of(model))
    once = consumers(model, batch, layers | norms)
    pairs = [
        (layer, readers[0].module)
        for layer, readers in once.items()
        if layer in layers and len(readers) == 1 and readers[0].module in norms & once.keys()
    ]
    for layer, norm in pairs:
        _fold(layer, norm)
    return len(pairs)


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
        norm.weight.fill_(1)
    first = output_first(layer.weight.double(), layer)
    scaled = first * factor.reshape(-1, *[1] * (first.dim() - 1))
    layer.weight.copy_(output_first(scaled, layer))
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.double() * factor)
    norm.running_mean.copy_(norm.running_mean.double() * factor)
    norm.running_var.fill_(1 - norm.eps)
