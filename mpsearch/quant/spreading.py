"""Deviations by channel, moved by the scales that weights are stored with: nothing more is stored.

For plain integers with scales for each output, in a weight that no two modules share. In training,
these keep their scales, and other formats would find theirs again from the weight.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mpsearch.quant.codes import Codes, sixteen
from mpsearch.quant.lattice import is_integer
from mpsearch.quant.recipe import Recipe
from mpsearch.tracing import output_first

_DEAD = 1e-6  # of the largest channel's root mean square: below it a channel is constant
_MOST = 4.0


def put(codes: Codes, module: nn.Module) -> None:
    """Let a module's weight be what codes stand for, in new ``data``: the old stays as it was."""
    weight = module.get_parameter("weight")
    values = codes.dequantize().to(weight.dtype)
    weight.data = output_first(values, module).contiguous()  # its own inverse


def by_output(codes: Mapping[str, Codes], layers: Mapping[str, nn.Module]) -> dict[str, Codes]:
    """Those of the layers' codes whose scales can be moved one output at a time."""
    owners = Counter(id(module.get_parameter("weight")) for module in layers.values())
    return {
        name: stored
        for name, stored in codes.items()
        if is_integer(stored.format)
        and len(stored.steps) % len(stored.codes) == 0
        and owners[id(layers[name].get_parameter("weight"))] == 1
    }


def ratio(wanted: Tensor, got: Tensor, mean: Tensor) -> Tensor:
    """(channels,) what an output is to be multiplied by, between 1/4 and 4.

    From deviations, and the means that go with those wanted; 1 where either is constant.
    """
    least = _DEAD * torch.hypot(mean, wanted).max()
    alive = (wanted > least) & (got > least)
    return torch.where(alive, wanted / got, 1.0).clamp(1 / _MOST, _MOST)


def times(codes: Codes, gain: Tensor) -> Codes:
    """The codes of a weight whose scales are times (channels,) and rounded to 16 bits again."""
    if codes.scale is None:
        raise ValueError(f"integers have scales, got none in {str(codes.format)!r}")
    each = gain.repeat_interleave(codes.scale.numel() // len(gain)).reshape(codes.scale.shape)
    scale = sixteen(codes.scale.double() * each, codes.scale.dtype).to(codes.scale.dtype)
    return replace(codes, scale=scale)


def refuse(recipe: Recipe, why: str) -> None:
    """Refuse a recipe that moves scales; ``why`` says what there is in place of one."""
    if "spread" in recipe.corrections:
        raise ValueError(
            f"recipe: correction 'spread' moves the one scale that each output is stored with, and"
            f" {why}; leave it out here"
        )
