"""decoupleQ: integers given the scales, then scales given the integers, in turn.

From Guo et al. 2024, decoupleQ: Towards 2-bit Post-Training Uniform Quantization via decoupling
Parameters into Integer and Floating Points (arXiv 2404.12759). The integers are GPTQ's; the scales
are those of the least squared error of the layer's output. Zero points, integers here, stay.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mpsearch.quant.gptq import gptq
from mpsearch.quant.lattice import Lattice

_SWEEPS = 3  # over the groups of a row, whose scales depend on each other


@dataclass(frozen=True, eq=False)
class Shared:
    """Which weights share a scale.

    Attributes:
        scale: Of each.
        place: (groups, rows, columns) the number of each weight's scale.
        parts: How many scales one output has; they follow one another.
    """

    scale: Tensor
    place: Tensor
    parts: int


def decoupleq(
    weight: Tensor,
    lattice: Lattice,
    hessian: Tensor,
    shared: Shared,
    *,
    damp: float = 0.01,
    ordered: bool = True,
    turns: int = 3,
) -> tuple[Tensor, Tensor]:
    """(groups, rows, p) integers, and scales in the type they are stored in.

    Args:
        weight: In float64.
        lattice: What each weight may become, with the scales to begin with.
        hessian: (groups, p, p).
        shared: These scales.
        damp: As in :func:`mpsearch.quant.gptq.gptq`.
        ordered: As there.
        turns: How often both are chosen.
    """
    codes = gptq(weight, lattice, hessian, damp=damp, ordered=ordered)
    scale = shared.scale
    for _ in range(turns):
        scale = least_squares(weight, codes - lattice.zero, hessian, replace(shared, scale=scale))
        lattice = replace(lattice, scale=scale.double()[shared.place])
        codes = gptq(weight, lattice, hessian, damp=damp, ordered=ordered)
    return codes, scale


def least_squares(weight: Tensor, integers: Tensor, hessian: Tensor, shared: Shared) -> Tensor:
    """The scales that integers err least with; one that would not be positive stays as it was."""
    limits, scale = torch.finfo(shared.scale.dtype), shared.scale.double()
    first = shared.place.amin(-1) // shared.parts * shared.parts
    for _ in range(_SWEEPS if shared.parts > 1 else 1):
        for part in range(shared.parts):
            mine = torch.where(shared.place % shared.parts == part, integers, 0)
            error = (weight - integers * scale[shared.place]) @ hessian
            rise, bend = ((x * mine).sum(-1) for x in (error, mine @ hessian))
            place = (first + part).flatten()
            above, below = (
                torch.zeros_like(scale).index_add(0, place, x.flatten()) for x in (rise, bend)
            )
            found = scale + torch.where(below > 0, above / below, 0)
            scale = torch.where(found > 0, found.clamp(limits.tiny, limits.max), scale)
    return scale.to(shared.scale.dtype)
