"""Floats of few bits: what every code of ``eXmY`` stands for.

A code is a sign, ``X`` bits of exponent and ``Y`` of fraction, most significant first. Exponent 0
holds the subnormals. Numbers go on to the last code, but for what is kept for NaN and infinity:
the whole last exponent as IEEE 754 has it, or one NaN of each sign as in OCP's ``fp8_e4m3``.
"""

from functools import cache

import torch
from torch import Tensor

from mpsearch.families import FLOAT

_IEEE, _ONE_NAN = {"fp8_e5m2"}, {"fp8_e4m3"}  # OCP's; its other formats are numbers all over


@cache
def values(base: str) -> Tensor:
    """(2**bits,) what each code of a format such as ``fp8_e4m3`` stands for, in float32.

    >>> values("fp4_e2m1")[:8].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    match = FLOAT.fullmatch(base)
    if match is None:
        raise ValueError(f"no float is named {base!r}; names look like fp5_e2m2")
    exponents, fractions = int(match[2]), int(match[3])
    one, last, bias = 1 << fractions, (1 << exponents) - 1, (1 << (exponents - 1)) - 1
    code = torch.arange(1 << (exponents + fractions))
    exponent, fraction = code >> fractions, code & (one - 1)
    significand = torch.where(exponent > 0, one + fraction, fraction).double()
    found = significand * torch.exp2((exponent.clamp(1) - bias - fractions).double())
    if match[4] == "i" or base in _IEEE:
        found[exponent == last] = torch.nan
        found[last << fractions] = torch.inf
    elif base in _ONE_NAN:
        found[-1] = torch.nan
    return torch.cat([found, -found]).float()


def splits(bits: int) -> dict[int, str]:
    """Every split of so many bits, all codes numbers, by its bits of exponent (LLM-FP4).

    >>> splits(4)
    {1: 'fp4_e1m2f', 2: 'fp4_e2m1f', 3: 'fp4_e3m0f'}
    """
    return {e: f"fp{bits}_e{e}m{bits - 1 - e}f" for e in range(1, min(5, bits - 1) + 1)}
