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

Granularity = Literal["tensor", "channel", "group"]
Kind = Literal["int", "float", "block", "lookup", "ternary", "binary", "power", "fixed", "full"]


@dataclass(frozen=True)
class _Family:
    """What a bare name stands for, before suffixes."""

    kind: Kind
    bits: int
    group: int | None = None
    scale_bits: int = 16
    tensor_bits: int = 0  # stored once for each tensor, beside the block scales


FAMILIES: dict[str, _Family] = {
    **{f"int{b}": _Family("int", b) for b in range(1, 9)},
    "fp8_e4m3": _Family("float", 8),
    "fp8_e5m2": _Family("float", 8),
    "fp6_e3m2": _Family("float", 6),
    "fp6_e2m3": _Family("float", 6),
    "fp4_e2m1": _Family("float", 4),
    "mxfp4": _Family("block", 4, group=32, scale_bits=8),
    "nvfp4": _Family("block", 4, group=16, scale_bits=8, tensor_bits=32),
    "nf4": _Family("lookup", 4, group=64),
    "ternary": _Family("ternary", 2),
    "binary": _Family("binary", 1),
    "pot4": _Family("power", 4),
    "fp16": _Family("full", 16, scale_bits=0),
    "bf16": _Family("full", 16, scale_bits=0),
    "fp32": _Family("full", 32, scale_bits=0),
}
_FIXED = re.compile(r"fx(?P<bits>[1-9]\d?)\.(?P<fraction>0|[1-9]\d?)", re.ASCII)
_NAME = re.compile(
    rf"(?P<base>{'|'.join(FAMILIES)})(?:g(?P<group>[1-9]\d{{0,6}})|(?P<tensor>t))?(?P<sign>[as])?",
    re.ASCII,
)
_SHORT = re.compile(r"w(\d{1,2})a(\d{1,2})", re.ASCII)
_SUFFIXED: tuple[Kind, ...] = ("int", "float", "power", "ternary", "binary", "lookup")


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
    """

    base: str
    bits: int
    group: int | None = None
    per: Granularity | None = None
    symmetric: bool | None = None

    @classmethod
    def parse(cls, name: str) -> "Format":
        """Read a format's name; ``ValueError`` where there is no such format.

        >>> Format.parse("int4g128").group
        128
        """
        fixed = _FIXED.fullmatch(name)
        if fixed and int(fixed["fraction"]) <= int(fixed["bits"]) <= 32:
            return cls(name, int(fixed["bits"]), per="tensor", symmetric=True)
        match = _NAME.fullmatch(name)
        if match is None:
            known = ", ".join([*FAMILIES, "fx8.4"])
            raise ValueError(
                f"no format is named {name!r}; names are {known},"
                " and suffixes g128, t (per tensor), a (asymmetric), s (symmetric)"
            )
        family = FAMILIES[match["base"]]
        suffixed = match["group"] or match["tensor"] or match["sign"]
        if suffixed and family.kind not in _SUFFIXED:
            raise ValueError(
                f"{match['base']!r} takes no suffix, got {name!r}; write {match['base']!r}"
            )
        group = int(match["group"]) if match["group"] else family.group
        if match["tensor"]:
            group = None
        per: Granularity | None = "group" if group else "tensor" if match["tensor"] else None
        sign = {"a": False, "s": True}.get(match["sign"] or "")
        return cls(match["base"], family.bits, group, per, sign)

    @property
    def kind(self) -> Kind:
        """The family of number formats it belongs to."""
        return "fixed" if self.base.startswith("fx") else FAMILIES[self.base].kind

    @property
    def quantized(self) -> bool:
        """Whether it is anything less than 16-bit or 32-bit floating point."""
        return self.kind != "full"

    def as_weight(self) -> "Format":
        """The format as weights take it: symmetric, one scale per output channel, unless said."""
        return self._resolved("channel", symmetric=True)

    def as_activation(self) -> "Format":
        """The format as activations take it: asymmetric, one scale per tensor, unless said."""
        return self._resolved("tensor", symmetric=False)

    def _resolved(self, per: Granularity, *, symmetric: bool) -> "Format":
        settled = self.per is not None and self.symmetric is not None
        if not self.quantized or (settled and (self.symmetric or self.kind == "int")):
            return self
        sign = symmetric if self.symmetric is None else self.symmetric
        return replace(self, per=self.per or per, symmetric=sign or self.kind != "int")

    def scales(self, shape: Sequence[int]) -> int:
        """How many scales a weight of this shape (outputs first) is stored with."""
        this = self.as_weight()
        if not this.quantized or this.kind == "fixed":
            return 0
        rows = shape[0] if shape else 1
        if this.per == "tensor":
            return 1
        if this.per == "channel":
            return rows
        columns = math.prod(shape[1:])
        return rows * -(-columns // (this.group or 1))

    def bytes(self, shape: Sequence[int]) -> int:
        """Bytes a weight of this shape (outputs first) takes as stored.

        Codes are one bit stream, scales and zero points two more; each ends on a whole byte.

        >>> Format.parse("int4").bytes((10, 3)), Format.parse("int4a").bytes((10, 3))
        (35, 40)
        """
        this = self.as_weight()
        family = FAMILIES.get(self.base, _Family("fixed", self.bits, scale_bits=0))
        scales = this.scales(shape)
        streams = [math.prod(shape) * this.bits, scales * family.scale_bits, family.tensor_bits]
        if this.quantized and not this.symmetric:
            streams.append(scales * this.bits)
        return sum(-(-bits // 8) for bits in streams)

    def bits_per_weight(self, shape: Sequence[int]) -> Fraction:
        """Mean stored bits of one weight, its share of scales and zero points included."""
        return Fraction(self.bytes(shape) * 8, math.prod(shape))

    def __str__(self) -> str:
        """The name :meth:`parse` reads."""
        family = FAMILIES.get(self.base)
        if family is None:
            return self.base
        own = self.group and self.group != family.group
        suffix = f"g{self.group}" if own else "t" if self.per == "tensor" else ""
        return self.base + suffix + {None: "", True: "s", False: "a"}[self.symmetric]


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
        parts = [_short(b) for b in short.groups()] if short else body.split("/")
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
        plain = list(self.formats) == ["weight", "activation"]
        parts = [str(f) if plain else f"{role}:{f}" for role, f in self.formats.items()]
        return "/".join(parts) + (f"+{self.method}" if self.method else "")

    def __hash__(self) -> int:
        """Hash of the text."""
        return hash(str(self))


def _short(bits: str) -> str:
    return {"16": "fp16", "32": "fp32"}.get(bits, f"int{bits}")


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
