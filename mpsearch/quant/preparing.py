"""What is done to a network before it is quantized, so that it keeps its function.

Each step finds where it applies by one run, works in place, and is checked: the network must still
return what it did.
"""

from typing import Any

import torch
from torch import nn

from mpsearch.batches import call, parts, tensor_of
from mpsearch.quant.aligning import align
from mpsearch.quant.folding import fold
from mpsearch.quant.recipe import Preparation, Recipe
from mpsearch.quant.rotation import rotate
from mpsearch.quant.shifting import shift
from mpsearch.quant.smoothing import smooth

_WHERE: dict[Preparation, str] = {
    "fold": "batch norms that alone read what a layer writes",
    "smooth": "layer norms whose output is read by linear layers alone",
    "rotate": "RMS norms between blocks whose output is read by linear layers alone",
    "shift": "layer norms with a bias whose output is read by linear layers with biases alone",
    "align": "layer norms whose output is read by linear layers alone",
    "clip": "layer norms whose output is read by linear layers alone",
}


@torch.no_grad()
def prepare(model: nn.Module, batch: Any, recipe: Recipe) -> None:
    """Do to a model, in eval mode, what a recipe says; ``batch`` is what it is calibrated on.

    Raises:
        ValueError: A step that applies nowhere, or after which the model returns something else.
    """
    if not recipe.preparations:
        return
    sample = parts(batch, 1)[0]
    wanted = tensor_of(call(model, sample)).double()
    for step in recipe.preparations:
        if not _done(step, model, batch, sample, recipe):
            raise ValueError(
                f"preparation {step!r} applies nowhere in this model: it wants {_WHERE[step]};"
                " leave it out of the recipe"
            )
        got = tensor_of(call(model, sample))
        error = float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-300))
        exact = max(torch.finfo(kind).eps for kind in (got.dtype, torch.float32))
        if not error <= exact**0.5:  # in float64 too: many norms compute in float32
            raise ValueError(
                f"after preparation {step!r} the model's output is off by {error:.2g} of its size:"
                " something in it reads what was changed; leave the step out of the recipe"
            )


def _done(step: Preparation, model: nn.Module, batch: Any, sample: Any, recipe: Recipe) -> int:
    if step == "fold":
        return fold(model, sample)
    if step == "smooth":
        return smooth(model, batch, recipe.alpha)
    if step == "shift":
        return shift(model, batch)
    if step in ("align", "clip"):
        return align(model, batch, 100.0 if step == "align" else recipe.percentile)
    return rotate(model, sample)
