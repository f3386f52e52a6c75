"""Codes of 1 to 32 bits as one little-endian stream of bytes, with no padding but in the last byte.

Code ``i`` takes bits ``i*bits`` to ``(i+1)*bits - 1`` of the stream, least significant first.
"""

import torch
from torch import Tensor

_CHUNK = 1 << 15  # codes worked on at once, whole bytes of them: what is touched stays in the cache


def pack(codes: Tensor, bits: int) -> Tensor:
    """(ceil(n*bits/8),) uint8 stream of ``n`` integer codes; negative ones in two's complement.

    Raises:
        ValueError: ``bits`` outside 1..32, or a code that does not fit.

    >>> pack(torch.tensor([1, 2, 3]), 4).tolist()
    [33, 3]
    """
    kind, flat = _checked(bits), codes.reshape(-1)
    if len(flat) and not (-(1 << (bits - 1)) <= int(flat.min()) and int(flat.max()) < 1 << bits):
        raise ValueError(
            f"codes from {int(flat.min())} to {int(flat.max())} do not fit in {bits} bits"
        )
    return torch.cat([_packed(part, bits, kind) for part in flat.split(_CHUNK)])


def _packed(flat: Tensor, bits: int, kind: torch.dtype) -> Tensor:
    unsigned = torch.zeros(-(-len(flat) // 8) * 8, dtype=kind, device=flat.device)
    wide = torch.int16 if bits <= 8 else torch.int64
    unsigned[: len(flat)] = (flat.to(wide) & ((1 << bits) - 1)).to(kind)
    ones = ((unsigned[:, None] >> _powers(bits, flat, kind)) & 1).to(torch.uint8)
    stream = (ones.reshape(-1, 8) << _powers(8, flat, torch.uint8)).sum(1, dtype=torch.uint8)
    return stream[: -(-len(flat) * bits // 8)]


def unpack(stream: Tensor, bits: int, count: int, *, signed: bool = False) -> Tensor:
    """(count,) the codes :func:`pack` was given: uint8, or int8 where ``signed``.

    Of more than 8 bits they are int32, or int64 where that is too narrow.

    >>> unpack(pack(torch.tensor([-2, 1, 0]), 2), 2, 3, signed=True).tolist()
    [-2, 1, 0]
    """
    kind = _checked(bits)
    if len(stream) != -(-count * bits // 8):
        raise ValueError(
            f"{count} codes of {bits} bits are {-(-count * bits // 8)} bytes, got {len(stream)}"
        )
    parts = stream.split(_CHUNK // 8 * bits)
    codes = torch.cat([_unpacked(part, bits, kind) for part in parts])[:count]
    if not signed:
        return codes if bits <= 8 or bits == 32 else codes.to(torch.int32)
    wide = codes.to(torch.int16) if bits <= 8 else codes
    ranged = torch.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide)
    return ranged.to(torch.int8 if bits <= 8 else torch.int32)


def _unpacked(stream: Tensor, bits: int, kind: torch.dtype) -> Tensor:
    padded = torch.zeros(-(-len(stream) // bits) * bits, dtype=torch.uint8, device=stream.device)
    padded[: len(stream)] = stream
    ones = (padded[:, None] >> _powers(8, stream, torch.uint8)) & 1
    shifted = ones.reshape(-1, bits).to(kind) << _powers(bits, stream, kind)
    return shifted.sum(1, dtype=kind)


def _checked(bits: int) -> torch.dtype:
    """The type that the arithmetic on such codes is done in."""
    if not 1 <= bits <= 32:
        raise ValueError(f"codes have 1 to 32 bits, got {bits!r}")
    return torch.uint8 if bits <= 8 else torch.int64


def _powers(bits: int, like: Tensor, kind: torch.dtype) -> Tensor:
    return torch.arange(bits, dtype=kind, device=like.device)
