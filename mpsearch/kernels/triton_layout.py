"""Weights of 1 to 8 bits as the Triton kernels read them: planes of 1, 2 and 4 bits, tile by tile.

A code is cut into planes, least significant bits first: 3 bits are a plane of 1 and one of 2, so
that exactly 3 are read. Each plane is kept in words of 16 bits, whose fields are the codes of
``width`` inputs each: field ``f`` of word ``j`` is input ``f * width + j``. So one shift and one
mask of a tile of words give ``width`` inputs in a row, ready for a product. Groups are filled up to
a size that slices of ``width`` inputs divide, rows to a multiple of 128; what fills up is
multiplied by zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mpsearch.kernels.weight_codes import is_sign
from mpsearch.quant.codes import Codes
from mpsearch.quant.packing import pack

ROWS = 128  # of a tile
PLANES = {1: (1,), 2: (2,), 3: (1, 2), 4: (4,), 5: (1, 4), 6: (2, 4), 7: (1, 2, 4), 8: (4, 4)}
_WIDTHS = {1: 16, 2: 16, 4: 32}  # by the least plane: a block has 256 or 128 inputs
_WORD = 16


@dataclass(frozen=True)
class Plane:
    """Some bits of every code; a field stands for ``(field - offset) * factor``.

    Attributes:
        bits: Of a field.
        tile: The first of its tiles in a block.
        offset: What is taken off; not 0 in the plane of the most significant bits alone.
        factor: A power of two.
    """

    bits: int
    tile: int
    offset: float
    factor: float


@dataclass(frozen=True)
class Layout:
    """Where the code of each input is.

    Attributes:
        rows: Outputs.
        columns: Inputs.
        bits: Of a code.
        group: Inputs that share a scale.
        sign: Whether code 0 is -1 and code 1 is 1.
    """

    rows: int
    columns: int
    bits: int
    group: int
    sign: bool = False

    @classmethod
    def of(cls, codes: Codes) -> "Layout":
        """That of a weight of integers."""
        form, (rows, columns) = codes.format, codes.codes.shape
        group = form.group if form.per == "group" and form.group else columns
        return cls(rows, columns, form.bits, min(group, columns), is_sign(codes))

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Least significant bits first."""
        if self.sign:
            return (Plane(1, 0, 0.5, 2.0),)
        widths, found, shift, tile = PLANES[self.bits], [], 0, 0
        for bits in widths:
            top = shift + bits == self.bits
            found.append(Plane(bits, tile, float(1 << (bits - 1)) * top, float(1 << shift)))
            tile += self.slices * bits // _WORD
            shift += bits
        return tuple(found)

    @property
    def slices(self) -> int:
        """Runs of inputs in a block."""
        return _WORD // min(PLANES[self.bits])

    @property
    def width(self) -> int:
        """Inputs of a slice: all in one group."""
        return min(_WIDTHS[min(PLANES[self.bits])], max(16, _power(self.group)))

    @property
    def block(self) -> int:
        """Inputs whose words lie together."""
        return self.slices * self.width

    @property
    def padded(self) -> int:
        """Inputs of a group when filled up: whole blocks, or a part that divides one."""
        if self.group < self.block:
            return max(self.width, _power(self.group))
        return -(-self.group // self.block) * self.block

    @property
    def groups(self) -> int:
        """Of a row."""
        return -(-self.columns // self.group)

    @property
    def blocks(self) -> int:
        """Of a row."""
        return -(-self.groups * self.padded // self.block)

    @property
    def scales(self) -> int:
        """Of a row: those of its groups, and of what fills up its last block."""
        return self.blocks * self.block // self.padded

    @property
    def tiles(self) -> int:
        """Tiles of words in a block: as many bits as it has codes, and no more."""
        return self.slices * self.bits // _WORD

    def words(self, codes: Tensor) -> Tensor:
        """(row blocks, blocks, tiles, 128, width) int16 of (out, in) codes from 0 up."""
        apart = pad(codes, (0, self.groups * self.group - self.columns))
        apart = pad(apart.reshape(-1, self.groups, self.group), (0, self.padded - self.group))
        flat = apart.reshape(self.rows, -1)
        flat = pad(flat, (0, self.blocks * self.block - flat.shape[1], 0, -self.rows % ROWS))
        shift, found = 0, []
        for bits in PLANES[self.bits]:
            fields = _WORD // bits
            plane = (flat >> shift) & ((1 << bits) - 1)
            apart = plane.reshape(-1, ROWS, self.blocks, self.slices // fields, fields, self.width)
            apart = apart.permute(0, 2, 3, 1, 5, 4).contiguous()
            found.append(pack(apart, bits).view(torch.int16).reshape(apart.shape[:-1]))
            shift += bits
        return torch.cat(found, 2).contiguous()

    def by_group(self, values: Tensor) -> Tensor:
        """(row blocks, scales, 128) of what each scale is stored with; what fills up is zero."""
        each = values.reshape(self.rows if len(values) > 1 else 1, -1)
        full = values.new_zeros(-(-self.rows // ROWS) * ROWS, self.scales)
        full[: self.rows, : self.groups] = each.expand(self.rows, self.groups)
        return full.reshape(-1, ROWS, self.scales).transpose(1, 2).contiguous()


def shifts(codes: Codes) -> Tensor | None:
    """(scales,) int8 how far zero points are from half the range; ``None`` where symmetric."""
    if codes.zero is None:
        return None
    return (codes.zero.to(torch.int16) - (1 << (codes.format.bits - 1))).to(torch.int8)


def _power(size: int) -> int:
    """The power of two from a size up."""
    return 1 << max(size - 1, 0).bit_length()
