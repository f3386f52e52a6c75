"""Weights of integers alone, of 1 to 8 bits, as kernels that unpack them read them: from 0 up."""

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.codes import Codes

_BASES = (*(f"int{bits}" for bits in range(1, 9)), "ternary", "ternarym", "binary")


def of_integers(form: Format) -> bool:
    """Whether a weight's format is of integers alone."""
    return form.base in _BASES and form.plain == form


def is_sign(codes: Codes) -> bool:
    """Whether code 0 is -1 and code 1 is 1."""
    return codes.codes.dtype == torch.uint8 and codes.zero is None


def unsigned(codes: Codes) -> Tensor:
    """(out, in) uint8: signed codes are moved up by half their range."""
    if codes.codes.dtype == torch.uint8:
        return codes.codes
    return (codes.codes.to(torch.int16) + (1 << (codes.format.bits - 1))).to(torch.uint8)
