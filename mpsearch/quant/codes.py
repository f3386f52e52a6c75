"""A weight as it is stored: codes, scales, and what else its format keeps.

Every stream of codes is packed with no padding but in its last byte, so that what is stored has
exactly the bytes its format counts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.packing import pack, unpack

_OF_TWO_ENDS = ("int", "ternary", "fixed")  # whose codes are integers around zero
_BLOCKS = {"mxint8"}


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight as it is stored.

    Attributes:
        codes: One integer for each weight, (out, in * kernel) where each has one; of signed
            integers in the least signed type, else unsigned; for 16 bits and more the values.
        scale: Outputs first, then groups: fp16, or bf16 where a scale is outside fp16's normal
            range; codes (uint8) where scales have 8 bits; ``None`` where there is none.
        zero: (scales,) uint8, or ``None`` where symmetric.
        format: With role and defaults resolved.
        shape: Of the weight, outputs first.
        more: What else is stored, by the names of ``Format.streams``.
    """

    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    format: Format
    shape: tuple[int, ...]
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def dequantize(self) -> Tensor:
        """The weight the codes stand for, in float32, in its shape."""
        from mpsearch.quant.encoding import decode

        return decode(self)

    @property
    def steps(self) -> Tensor:
        """The scales in float32."""
        if self.scale is None:
            raise ValueError(f"a weight in {str(self.format)!r} has scales, got none")
        return self.scale.float()

    def stored(self) -> dict[str, Tensor]:
        """What is stored, by the names of ``Format.streams``: streams of bytes, or floats."""
        streams = self.format.streams(self.shape)
        named = {"codes": self.codes, "scale": self.scale, "zero_point": self.zero, **self.more}
        return {
            name: value.reshape(-1) if value.is_floating_point() else pack(value, streams[name][1])
            for name, value in named.items()
            if value is not None and name in streams
        }

    @classmethod
    def read(cls, stored: Mapping[str, Tensor], form: Format, shape: tuple[int, ...]) -> "Codes":
        """The codes that :meth:`stored` packed."""
        this = form.as_weight()
        found = {}
        for name, (count, bits) in this.streams(shape).items():
            stream = stored[name]
            if not stream.is_floating_point():
                stream = unpack(stream, bits, count, signed=name == "codes" and signed(this))
            found[name] = stream
        codes, scale, zero = (found.pop(name, None) for name in ("codes", "scale", "zero_point"))
        if codes is None:
            raise ValueError(f"a weight in {str(this)!r} has codes, got {sorted(stored)}")
        if codes.numel() == math.prod(shape):
            codes = codes.reshape(rows_of(shape), -1)
        return cls(codes, scale, zero, this, shape, found)

    def of(self, form: Format) -> "Codes":
        """The same streams read in another format."""
        return replace(self, format=form)


def signed(form: Format) -> bool:
    """Whether codes are two's complement."""
    kind = form.family.kind
    if kind == "int":
        return bool(form.symmetric) and form.bits > 1
    return kind in _OF_TWO_ENDS or form.base in _BLOCKS


def rows_of(shape: tuple[int, ...]) -> int:
    """Outputs: a number alone is one."""
    return shape[0] if shape else 1


def matrix(weight: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(out, in * kernel) values in float32, and the weight's shape.

    Raises:
        ValueError: No values, others than floats, or some that float32 has no finite number for.
    """
    shape = tuple(weight.shape)
    if weight.numel() == 0:
        raise ValueError(f"it holds no values, its shape is {shape}; leave the layer out (skip)")
    if not weight.is_floating_point():
        raise ValueError(f"it holds {weight.dtype}, wanted floats; leave the layer out (skip)")
    values = weight.detach().float()
    if not torch.isfinite(values).all():
        beyond = weight.dtype == torch.float64 and bool(torch.isfinite(weight).all())
        what = "numbers beyond float32" if beyond else "NaN or infinity"
        raise ValueError(f"it holds {what}; quantize a network whose weights are finite")
    return values.reshape(rows_of(shape), -1).contiguous(), shape


def grouped(values: Tensor, form: Format, fill: float = 0.0) -> Tensor:
    """(scales, values that share one): what lies beyond a short last group is ``fill``."""
    if form.per == "tensor":
        return values.reshape(1, -1)
    if form.per == "channel":
        return values
    group = min(form.group or 1, values.shape[1])
    short = -values.shape[1] % group
    return torch.nn.functional.pad(values, (0, short), value=fill).reshape(-1, group)


def ungrouped(rows: Tensor, form: Format, shape: tuple[int, ...]) -> Tensor:
    """Values in the weight's shape, from :func:`grouped`."""
    if form.per != "group":
        return rows.reshape(shape)
    columns = math.prod(shape[1:])
    return rows.reshape(rows_of(shape), -1)[:, :columns].reshape(shape)


def half_of(scale: Tensor) -> torch.dtype:
    """The 16-bit type that holds every scale as a normal number."""
    half, used = torch.finfo(torch.float16), scale.abs()[scale != 0]
    fits = len(used) == 0 or (half.tiny <= float(used.min()) and float(used.max()) <= half.max)
    return torch.float16 if fits else torch.bfloat16


def sixteen(scale: Tensor, stored: torch.dtype, zero: float = 1.0) -> Tensor:
    """Scales rounded to the type they are stored in, ``zero`` for rows of zeros.

    With a ``zero`` of 0 they may be subnormal: weights are not divided by them.
    """
    limits = torch.finfo(stored)
    kept = scale.clamp(limits.tiny if zero else 0.0, limits.max)
    return torch.where(scale > 0, kept, zero).to(stored).float()
