"""Fixed point as HLS has it, in exact fractions, one value at a time."""

import math
from fractions import Fraction


def code(x: float, bits: int, fraction: int, rounding: str, overflow: str) -> int:
    exact = Fraction(x) * 2**fraction
    down, up = math.floor(exact), math.ceil(exact)
    nearer = down if exact - down < Fraction(1, 2) else up
    tie = exact - down == Fraction(1, 2)
    away = up if exact > 0 else down
    toward = down if exact > 0 else up
    whole: int = {
        "trn": down,
        "trnz": math.trunc(exact),
        "conv": (down if down % 2 == 0 else up) if tie else nearer,
        "rnd": up if tie else nearer,
        "rndm": down if tie else nearer,
        "rndi": away if tie else nearer,
        "rndz": toward if tie else nearer,
    }[rounding]
    half: int = 1 << (bits - 1)
    low, high = -half, half - 1
    if overflow == "wrap":
        return (whole - low) % (2 * half) + low
    if low <= whole <= high and not (overflow == "sats" and whole == low):
        return whole
    if overflow == "satz":
        return 0
    return high if whole > 0 else -high if overflow == "sats" else low
