"""SmoothQuant: the range of some inputs' channels moved into the weights that read them.

From Xiao et al. 2023, SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models (arXiv 2211.10438). Channel j of what a norm returns is divided by ``s_j =
max|X_j|^alpha / max|W_j|^(1 - alpha)``, and column j of all weights that read it multiplied, W
being these weights one below another. Only where layers alone read what the norm returns.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call, parts
from mpsearch.quant.consumers import consumers
from mpsearch.tracing import output_first, sites

_SAMPLES = 16  # that go through the model together


def smooth(model: nn.Module, batch: Any, alpha: float) -> int:
    """Smooth what can be, in place; how many norms that were."""
    groups = readers(model, parts(batch, 1)[0])
    peaks: dict[nn.Module, Tensor] = {}

    def see(norm: nn.Module, rows: Tensor) -> None:
        peak = rows.abs().amax(0).double()
        peaks[norm] = torch.maximum(peaks.get(norm, peak), peak)

    watch(model, batch, groups, see)
    for norm, weights in groups.items():
        scale_channels(norm, weights, _scale(weights, peaks[norm], alpha))
    return len(groups)


def readers(model: nn.Module, batch: Any) -> dict[nn.Module, list[Tensor]]:
    """Norms over channels, and the weights, (out, in), that alone read what each returns."""
    return {
        norm: [input_last(layer) for layer in layers]
        for norm, layers in reading(model, batch).items()
    }


def input_last(layer: nn.Module) -> Tensor:
    """(out, in) the weight of a linear layer; a view."""
    return output_first(layer.get_parameter("weight"), layer)


def reading(model: nn.Module, batch: Any) -> dict[nn.Module, list[nn.Module]]:
    """Norms over channels, and the linear layers that alone read what each returns.

    None whose weight an embedding shares, or which several norms have in common.
    """
    linear = {
        id(site.weight): site.module
        for site in sites(model)
        if site.weight is not None and site.kind == "linear"
    }
    held = [id(site.weight) for site in sites(model)]
    norms = filter(is_norm, model.modules())
    groups = {
        norm: list({id(one.weight): one.weight for one in found}.values())
        for norm, found in consumers(model, batch, norms, through=True).items()
        if found and all(id(one.weight) in linear for one in found)
    }
    read = [id(weight) for weights in groups.values() for weight in weights]
    return {
        norm: [linear[id(weight)] for weight in weights]
        for norm, weights in groups.items()
        if all(held.count(id(w)) == 1 and read.count(id(w)) == 1 for w in weights)
    }


def is_norm(module: nn.Module) -> bool:
    """Whether it is a layer norm, or one of its kind, that multiplies by its weight at the end."""
    named = any(kind in type(module).__name__ for kind in ("LayerNorm", "RMSNorm"))
    weight = module._parameters.get("weight")  # noqa: SLF001  (an attribute may be computed)
    if not named or weight is None or weight.dim() != 1:
        return False
    return _scales(module, weight)


@torch.no_grad()
def _scales(module: nn.Module, weight: Tensor) -> bool:
    """Whether without its weight nothing is left but a shift: some multiply by one plus it."""
    x, before = torch.linspace(-1, 1, len(weight)).to(weight)[None, None], weight.clone()
    shift = module._parameters.get("bias")  # noqa: SLF001
    try:
        weight.zero_()
        left: Tensor = module(x)
    except Exception:  # noqa: BLE001  (any model's code may fail in any way: it wants other shapes)
        return False
    finally:
        weight.copy_(before)
    return bool((left == (0 if shift is None else shift)).all())


@torch.no_grad()
def watch(
    model: nn.Module,
    batch: Any,
    norms: Iterable[nn.Module],
    see: Callable[[nn.Module, Tensor], None],
) -> None:
    """Hand on what norms return on a batch, (rows, channels), part by part."""

    def hook(module: nn.Module, _: Any, output: Tensor) -> None:
        see(module, output.detach().reshape(-1, output.shape[-1]))

    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_hook(hook).remove)
        for part in parts(batch, _SAMPLES):
            call(model, part)


@torch.no_grad()
def scale_channels(norm: nn.Module, weights: Sequence[Tensor], scale: Tensor) -> None:
    """Divide channels of what a norm returns, and multiply the weights that read them."""
    for parameter in norm.parameters(recurse=False):
        parameter.div_(scale.to(parameter.dtype))
    for weight in weights:
        weight.mul_(scale.to(weight.dtype))


def _scale(weights: Sequence[Tensor], peak: Tensor, alpha: float) -> Tensor:
    column = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).double()
    scale = peak.pow(alpha) / column.pow(1 - alpha)
    return torch.where((peak > 0) & (column > 0), scale, 1.0)
