"""Float weights that a quantized module is trained by: they are rounded at every call.

Gradients pass straight through (Bengio et al. 2013, arXiv 1308.3432): a weight has the gradient of
what it is rounded to, one that is clipped too, so that it can come back; an input has it between
the ends of its grid, and none beyond.
"""

import torch
from torch import Tensor

from mpsearch.quant.codes import Codes, matrix
from mpsearch.quant.encoding import encode
from mpsearch.quant.keeping import kept
from mpsearch.quant.lattice import is_integer, lattice_of, with_codes
from mpsearch.quant.recipe import Ranges


@torch.no_grad()
def again(weight: Tensor, codes: Codes, ranges: Ranges) -> Codes:
    """A weight, outputs first, rounded as it was: plain integers at the scales they have.

    In other formats scales follow the weight; what keeps more bits than the rest does so still.

    Raises:
        ValueError: A weight that is not finite.
    """
    if not is_integer(codes.format):
        return encode(weight, codes.format, ranges, kept(codes))
    values, _ = matrix(weight)
    return with_codes(codes, lattice_of(codes).codes(values))


def floats(weight: Tensor, codes: Codes, ranges: Ranges) -> Tensor:
    """What training begins with: the weight, and where that is not its code, what the code is."""
    values = codes.dequantize().to(weight.dtype)
    same = again(weight, codes, ranges).dequantize().to(weight.dtype) == values
    return torch.where(same, weight.detach(), values)


def straight(values: Tensor, weight: Tensor) -> Tensor:
    """The values, with the gradient going to the weight."""
    return values + (weight - weight.detach())
