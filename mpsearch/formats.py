"""Number formats, and the options a layer may choose between.

A format is a plain record read from its name; what a tensor stored in it takes follows from the
record.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from mpsearch.families import FAMILIES, PERCENT, Family, Kind, family, kept_of, parts

__all__ = ["FAMILIES", "Family", "Format", "Granularity", "Kind", "Option", "options"]

Granularity = Literal["tensor", "channel", "group"]

_NAME = re.compile(
    r"(?P<base>.+?)(?:g(?P<group>[1-9]\d{0,6})|(?P<tensor>t))?(?P<sign>[as])?"
    rf"(?:o(?P<outliers>{PERCENT})|r(?P<rank>[1-9]\d{{0,4}}))?",
    re.ASCII | re.DOTALL,
)
_SHORT = re.compile(r"w(\d{1,2})a(\d{1,2})", re.ASCII)

_LARGE = 4096, 1 << 24


@dataclass(frozen=True)
class Format:
    """A number format: ``int4g128`` is 4-bit integers, one 16-bit scale per 128 inputs.

    Attributes:
        base: The name without suffixes, such as ``int4`` or ``fp8_e4m3``.
        bits: Bits of one stored code.
        group: Inputs that share a scale, where the format says so.
        per: What shares a scale; ``None`` leaves it to the role (weights per output channel,
            activations per tensor).
        symmetric: Whether zero is stored as code 0; ``None`` leaves it to the role (weights
            symmetric, activations asymmetric).
        outliers: Percent of the weights that are kept in 16 bits.
        rank: Of a 16-bit branch beside the codes.
    """

    base: str
    bits: int
    group: int | None = None
    per: Granularity | None = None
    symmetric: bool | None = None
    outliers: Fraction = Fraction(0)
    rank: int = 0

    @classmethod
    def parse(cls, name: str) -> "Format":
        """Read a format's name; ``ValueError`` where there is no such format.

        >>> Format.parse("int4g128").group
        128
        """
        whole = family(name)
        if whole is not None:
            return cls._of(name, whole)
        match = _NAME.fullmatch(name)
        known = family(match["base"]) if match else None
        if match is None or known is None or match["outliers"] == "0":
            raise ValueError(
                f"no format is named {name!r}; names are {', '.join(FAMILIES)}, fp5_e2m2, pb10,"
                " sc20, fx8.4, and suffixes g128, t (per tensor), a (asymmetric), s (symmetric),"
                " o1 (1 % outliers), r32 (rank)"
            )
        base = match["base"]
        scaled = match["group"] or match["tensor"] or match["sign"]
        grouped = known.kind == "partial" and not (match["tensor"] or match["sign"])
        mixed = match["outliers"] or match["rank"]
        if (scaled and not known.suffixed and not grouped) or (mixed and not known.mixable):
            raise ValueError(f"{base!r} takes no suffix, got {name!r}; write {base!r}")
        group = None if match["tensor"] else int(match["group"] or known.group or 0) or None
        per: Granularity | None = "group" if group else "tensor" if match["tensor"] else None
        sign = {"a": False, "s": True}.get(match["sign"] or "")
        outliers = Fraction(match["outliers"] or 0)
        return cls(base, known.bits, group, per, sign, outliers, int(match["rank"] or 0))

    @classmethod
    def _of(cls, base: str, whole: Family) -> "Format":
        if whole.kind == "fixed":
            return cls(base, whole.bits, per="tensor", symmetric=True)
        return cls(base, whole.bits, whole.group, "group" if whole.group else None)

    @property
    def family(self) -> Family:
        """What the name without suffixes stands for."""
        found = family(self.base)
        if found is None:
            raise ValueError(f"no format is named {self.base!r}; use Format.parse")
        return found

    @property
    def kind(self) -> Kind:
        """The family of number formats it belongs to; ``mixed`` where a part is kept in 16 bits."""
        return "mixed" if self.outliers or self.rank else self.family.kind

    @property
    def quantized(self) -> bool:
        """Whether it is anything less than 16-bit or 32-bit floating point."""
        return self.kind != "full"

    @property
    def plain(self) -> "Format":
        """The format without its outliers and its branch."""
        return replace(self, outliers=Fraction(0), rank=0)

    @property
    def share(self) -> Fraction:
        """Percent of the weights, or of the input channels, that have more bits than the others."""
        return Fraction(self.base[2:]) if self.kind in ("partial", "salient") else self.outliers

    def as_weight(self) -> "Format":
        """The format as weights take it: symmetric, one scale per output channel, unless said."""
        return self._resolved("channel", symmetric=True)

    def as_activation(self) -> "Format":
        """The format as activations take it: asymmetric, one scale per tensor, unless said."""
        return self._resolved("tensor", symmetric=False)

    def _resolved(self, per: Granularity, *, symmetric: bool) -> "Format":
        settled = self.per is not None and self.symmetric is not None
        shifts = self.family.kind == "int"
        if not self.quantized or (settled and (self.symmetric or shifts)):
            return self
        sign = symmetric if self.symmetric is None else self.symmetric
        return replace(self, per=self.per or per, symmetric=sign or not shifts)

    def scales(self, shape: Sequence[int]) -> int:
        """How many scales a weight of this shape (outputs first) is stored with."""
        this = self.as_weight()
        if not this.quantized or this.kind == "fixed":
            return 0
        rows = shape[0] if shape else 1
        if this.per != "group":
            return 1 if this.per == "tensor" else rows
        return rows * -(-math.prod(shape[1:]) // (this.group or 1))

    def streams(self, shape: Sequence[int]) -> dict[str, tuple[int, int]]:
        """How many numbers, of how many bits, a weight is stored as, stream by stream.

        >>> Format.parse("int4g64r8").streams((10, 96))
        {'codes': (960, 4), 'scale': (20, 16), 'left': (80, 16), 'right': (768, 16)}
        """
        this, count = self.as_weight(), math.prod(shape)
        rows, scales = shape[0] if shape else 1, this.scales(shape)
        columns = math.prod(shape[1:])
        if this.kind in ("partial", "salient"):
            return parts(this.kind, this.share, shape, scales)
        wide = this.family.scale_bits
        found = {
            "codes": (count, this.bits),
            "scale": (scales * max(wide // 16, 1), min(wide, 16)),
            "zero_point": (0 if this.symmetric or not this.quantized else scales, this.bits),
            "tensor": (1, this.family.tensor_bits),
        }
        if this.outliers:
            kept = kept_of(count, this.outliers)
            found["counts"] = rows, columns.bit_length()
            found["columns"] = kept, max(1, (columns - 1).bit_length())
            found["kept"] = kept, 16
        if this.rank:
            rank = min(this.rank, rows, columns)
            found |= {"left": (rows * rank, 16), "right": (rank * columns, 16)}
        return {name: stream for name, stream in found.items() if stream[0] * stream[1]}

    def bytes(self, shape: Sequence[int]) -> int:
        """Bytes a weight of this shape (outputs first) takes as stored.

        Codes are one bit stream, scales and zero points two more; each ends on a whole byte.

        >>> Format.parse("int4").bytes((10, 3)), Format.parse("int4a").bytes((10, 3))
        (35, 40)
        """
        return sum(-(-count * bits // 8) for count, bits in self.streams(shape).values())

    def bits_per_weight(self, shape: Sequence[int]) -> Fraction:
        """Mean stored bits of one weight, its share of scales and zero points included."""
        if not math.prod(shape):
            raise ValueError(f"a weight of shape {tuple(shape)} holds no values; leave it out")
        return Fraction(self.bytes(shape) * 8, math.prod(shape))

    @property
    def stored_bits(self) -> float:
        """Bits that one weight takes, its share of block scales, outliers and the like counted.

        Of 4096 rows that are long: what is stored once a row or a tensor counts for nothing.

        >>> round(Format.parse("nvfp4").stored_bits, 3), Format.parse("int4g128").stored_bits
        (4.5, 4.125)
        """
        return float(self.bits_per_weight(_LARGE))

    def __str__(self) -> str:
        """The name :meth:`parse` reads."""
        if self.kind == "fixed":
            return self.base
        own = self.group and self.group != self.family.group
        suffix = f"g{self.group}" if own else "t" if self.per == "tensor" else ""
        suffix += {None: "", True: "s", False: "a"}[self.symmetric]
        suffix += f"o{float(self.outliers):g}" if self.outliers else ""
        return self.base + suffix + (f"r{self.rank}" if self.rank else "")


@dataclass(frozen=True)
class Option:
    """What one layer may be given: a format for each role, and the method where it is named.

    An option of another program (a GGUF type, say) is a bare ``label``; it has no formats, and
    asking for one is an error.
    """

    formats: Mapping[str, Format] = field(default_factory=dict, hash=False)
    method: str | None = None
    label: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Option":
        """Read ``weight/activation``, ``w4a8``, ``k:int4/v:int2`` or ``int2/fp16+gptq``.

        >>> str(Option.parse("w4a16")), str(Option.parse("int2g64/fp16+gptq"))
        ('int4/fp16', 'int2g64/fp16+gptq')
        """
        body, _, method = text.partition("+")
        short = _SHORT.fullmatch(body)
        wide = {"16": "fp16", "32": "fp32"}
        bits = [wide.get(b, f"int{b}") for b in short.groups()] if short else []
        parts = bits or body.split("/")
        named = [part.partition(":") for part in parts]
        if len(parts) == 2 and not any(colon for _, colon, _ in named):
            roles = dict(zip(("weight", "activation"), parts, strict=True))
        elif all(role and name for role, _, name in named):
            roles = {role: name for role, _, name in named}
        else:
            roles = {}
        if len(roles) != len(parts) or ("+" in text and not method):
            raise ValueError(
                f"no option is written {text!r}; write weight/activation, such as int4g128/int8"
                " or w4a8, or name the roles, such as k:int4/v:int2"
            )
        return cls({r: Format.parse(n) for r, n in roles.items()}, method or None)

    @classmethod
    def read(cls, label: str) -> "Option":
        """The option a file names: one of ours where it reads as one, else a bare label."""
        try:
            return cls.parse(label)
        except ValueError:
            return cls(label=label)

    @property
    def weight(self) -> Format:
        """The format of the weights."""
        return self._role("weight")

    @property
    def activation(self) -> Format:
        """The format of the layer's input."""
        return self._role("activation")

    def _role(self, role: str) -> Format:
        if role not in self.formats:
            raise ValueError(
                f"option {str(self)!r} names no {role} format; write it weight/activation, such as"
                " int4/int8"
            )
        return self.formats[role]

    def __str__(self) -> str:
        """The text :meth:`read` reads."""
        if self.label is not None:
            return self.label
        parts = [f"{role}:{form}" for role, form in self.formats.items()]
        if self.formats.keys() == {"weight", "activation"}:
            parts = [str(self.weight), str(self.activation)]
        return "/".join(parts) + (f"+{self.method}" if self.method else "")

    def __hash__(self) -> int:
        """Of equal options the same, in whatever order they name their roles."""
        return hash((frozenset(self.formats.items()), self.method, self.label))


def options(*names: str | Option) -> tuple[Option, ...]:
    """Read options, each written ``weight/activation``; ``ValueError`` when one is named twice.

    >>> [str(o) for o in options("int4g128/int8", "w8a8")]
    ['int4g128/int8', 'int8/int8']
    """
    read = tuple(n if isinstance(n, Option) else Option.parse(n) for n in names)
    if not read:
        raise ValueError("no option given; name at least one, such as int4/int8")
    twice = {str(o) for o in read if read.count(o) > 1}
    if twice:
        raise ValueError(f"option {min(twice)!r} is named twice; name each option once")
    return read
