"""Words of the Triton kernels, literally: one code at a time, and one instruction at a time."""

import struct

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint16]
PLANES = {1: [1], 2: [2], 3: [1, 2], 4: [4], 5: [1, 4], 6: [2, 4], 7: [1, 2, 4], 8: [4, 4]}


def code(words: Words, bits: int, row: int, place: int) -> int:
    """The code of a row at a place of its filled up inputs.

    ``words`` is (row blocks, blocks, tiles, 128, width).
    """
    width = words.shape[-1]
    least = min(PLANES[bits])
    block, inside = divmod(place, 16 // least * width)
    piece, word = divmod(inside, width)
    found = tile = shift = 0
    for of_plane in PLANES[bits]:
        fields = 16 // of_plane
        at, field = divmod(piece, fields)
        whole = int(words[row // 128, block, tile + at, row % 128, word])
        found |= (whole >> (field * of_plane) & ((1 << of_plane) - 1)) << shift
        shift += of_plane
        tile += of_plane // least
    return found


def place(column: int, group: int, padded: int) -> int:
    """Where an input is when every group is filled up."""
    return column // group * padded + column % group


def half(bits: int, *, brain: bool) -> float:
    """The 16-bit float of so many bits."""
    if brain:
        return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    return float(struct.unpack("<e", struct.pack("<H", bits))[0])


def run(program: str, word: int, *, brain: bool) -> tuple[float, float]:
    """What the two halves of a 32-bit word become, by the instructions of ``program``."""
    held = {"$1": word}
    for line in program.strip("{} ").split(";"):
        name, _, rest = line.strip().partition(" ")
        to, *given = [part.strip() for part in rest.split(",")]
        values = [held[g] if g in held else int(g, 0) for g in given if not name.startswith(".")]
        if name == "shr.b32":
            held[to] = values[0] >> values[1]
        elif name == "shl.b32":
            held[to] = values[0] << values[1] & 0xFFFFFFFF
        elif name == "mov.b32":
            held[to] = values[0]
        elif name == "lop3.b32":
            held[to] = table(*values)
        elif name.startswith("fma.rn"):
            low = fused([v & 0xFFFF for v in values], brain=brain)
            return low, fused([v >> 16 for v in values], brain=brain)
    raise ValueError(f"no multiply-add in {program!r}")


def table(a: int, b: int, c: int, rule: int) -> int:
    """Bit for bit: the bit of ``rule`` that the three bits number."""
    found = 0
    for n in range(32):
        number = (a >> n & 1) << 2 | (b >> n & 1) << 1 | c >> n & 1
        found |= (rule >> number & 1) << n
    return found


def fused(values: list[int], *, brain: bool) -> float:
    """A product and a sum in 64-bit floats, which hold those of two 16-bit ones exactly."""
    x, y, z = (half(v, brain=brain) for v in values)
    return x * y + z
