"""Values that are powers: signed powers of two, integers to a power, powers of a searched base."""

import torch
from torch import Tensor

EXPONENTS = tuple(step / 20 for step in range(4, 21))  # NUPES: of what is stored, 0.2 to 1
_PARTS = 37  # AdaLog: of the octave; a base is 2 ** (q / 37), which a table of 37 entries undoes
ROOT = _PARTS / 2  # of RepQ-ViT's base, the square root of two
_OCTAVES = 3, 126  # most of a base, and of all codes: the least power is a normal float32


def of_two(bits: int) -> Tensor:
    """(2**bits,) zero, ..., 1/4, 1/2, 1, and with the first bit set the same below zero.

    >>> of_two(3).tolist()
    [0.0, 0.25, 0.5, 1.0, nan, -0.25, -0.5, -1.0]
    """
    count = (1 << (bits - 1)) - 1
    above = torch.exp2(torch.arange(1 - count, 1).double()).float()
    return signed(torch.cat([torch.zeros(1), above]))


def exponents(bits: int, power: float) -> Tensor:
    """(2**bits,) ``(k / top) ** (1 / power)``: uniform steps of ``x ** power`` (NUPES)."""
    top = (1 << (bits - 1)) - 1
    steps = torch.arange(top + 1).double() / top
    return signed((steps ** (1 / power)).float())


def exponent_bounds(bits: int, power: float) -> Tensor:
    """(2**bits - 2,) where a value goes to the next code: the middle of ``x ** power``."""
    top = (1 << (bits - 1)) - 1
    above = (((torch.arange(top).double() + 0.5) / top) ** (1 / power)).float()
    return torch.cat([-above.flip(0), above])


def bases(bits: int) -> range:
    """Every ``q`` of the bases ``2 ** (q / 37)`` that codes of so many bits may have."""
    most, all_codes = _OCTAVES
    return range(1, min(most * _PARTS, all_codes * _PARTS // ((1 << bits) - 2)) + 1)


def of_base(bits: int, q: float) -> Tensor:
    """(2**bits,) powers ``2 ** (-code * q / 37)``, and zero as the last code (AdaLog).

    With ``ROOT`` for q each is a power of two where the code is even, and the root of two times
    one where it is odd: a shift, and one of two scales (RepQ-ViT).

    >>> of_base(2, 37).tolist()
    [1.0, 0.5, 0.25, 0.0]
    """
    code = torch.arange((1 << bits) - 1).double()
    return torch.cat([torch.exp2(-code * q / _PARTS).float(), torch.zeros(1)])


def base_bounds(bits: int, q: float) -> Tensor:
    """(2**bits - 1,) where a value goes to the next code: the middle of its logarithm."""
    code = torch.arange((1 << bits) - 1, 0, -1).double() - 0.5
    return torch.exp2(-code * q / _PARTS).float()


def signed(magnitudes: Tensor) -> Tensor:
    """(2n,) the same with the sign in the first bit; there is no zero below zero."""
    below = -magnitudes
    below[0] = torch.nan
    return torch.cat([magnitudes, below])
