"""Bit operations: multiply-accumulates times the bits of their operands.

Papers count differently under one name; each way is a named variant with its own unit, and they
are never mixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mpsearch.formats import Option
from mpsearch.network import Layer, Network
from mpsearch.tables import Floats, Numbers, Table

Variant = Literal["hawq-v3", "nncf", "uniq", "ompq", "clado", "qonnx"]
_UNITS = {
    "hawq-v3": "BitOps",
    "nncf": "BitOps (NNCF)",
    "uniq": "BitOps (UNIQ)",
    "ompq": "BitOps (OMPQ)",
    "clado": "BitOps (CLADO)",
    "qonnx": "BitOps (QONNX)",
}
OUTER = ("first", "last")  # the roles OMPQ keeps at 8 bits


@dataclass(frozen=True)
class BitOps:
    """Bit operations of one sample, with weights of ``b`` bits and activations of ``a``.

    ``hawq-v3``: MACs x b x a (HAWQ-V3, arXiv 2011.10680; fp32 is 32 x 32).

    ``nncf``: MACs x the larger of both (NNCF's bit complexity).

    ``uniq``: each product of a dot product of length n costs ``b a + b + a + log2(n)``, accumulator
    included (Baskin et al., "UNIQ", arXiv 1804.10969). The paper's own table is 4 to 5 % lower
    (ResNet-18 at 4/8 bits: 93.2 G published, 98.4 G by the formula); its conventions are not known.

    ``ompq``: operations x b x a, where an operation is a MAC or one of five more for each output of
    a convolution (batch norm and bias), or of a MAC, an addition and a bias in a linear layer;
    first and last layer at 8 x 8 (OMPQ, arXiv 2109.07865, by its published code).

    ``clado``: a multiplication costs ``5 a b - 5 a - 3 b + 3`` and an addition ``3 a + 3 b + 29``,
    of which a dot product of length n has n - 1 (CLADO, arXiv 2307.05657, by its code).

    ``qonnx``: MACs x b x a, times the share of weights that are not zero where ``density`` knows it
    (QONNX's inference cost).

    Attributes:
        variant: One of the above.
        density: For ``qonnx``: share of nonzero weights by layer, 1 where a layer is not named.
    """

    variant: Variant = "hawq-v3"
    density: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an unknown variant, and a density that is none."""
        if self.variant not in _UNITS:
            raise ValueError(f"no variant is named {self.variant!r}; there are {', '.join(_UNITS)}")
        for name, share in self.density.items():
            if not 0 <= share <= 1:
                raise ValueError(f"density of {name!r} is {share}; wanted a share from 0 to 1")
        if self.density and self.variant != "qonnx":
            raise ValueError(f"variant {self.variant!r} does not look at density; use 'qonnx'")

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``bitops``, as integers where the variant gives such; the reference is 32 x 32 bits."""
        bits = np.array([(o.weight.bits, o.activation.bits) for o in options], np.int64)
        unknown = set(self.density) - {layer.name for layer in network.layers}
        if unknown:
            raise LookupError(f"density names {min(unknown)!r}, which is no layer of this network")
        table = Table(
            network.layers,
            tuple(options),
            self._counted(network.layers, bits[:, 0], bits[:, 1]),
            _UNITS[self.variant],
            "bitops",
            allowed=network.mask(options),
            reference=self._reference(network.layers),
        )
        return {"bitops": table}

    def _reference(self, layers: Sequence[Layer]) -> float:
        wide = np.array([32], np.int64)
        each = self._counted(layers, wide, wide)[:, 0].tolist()
        total: float = sum(each)
        return total

    def _counted(self, layers: Sequence[Layer], b: Numbers, a: Numbers) -> Numbers:
        """(L, K) bit operations, from (K,) bits of weights and of activations."""
        macs: Numbers = np.array([layer.macs for layer in layers], np.int64)[:, None]
        counts: Numbers
        if self.variant == "nncf":
            counts = macs * np.maximum(b, a)
        elif self.variant == "uniq":
            counts = macs * (b * a + b + a + np.log2(_lengths(layers)))
        elif self.variant == "ompq":
            outer = np.array([layer.role in OUTER for layer in layers])[:, None]
            counts = _operations(layers)[:, None] * np.where(outer, 64, b * a)
        elif self.variant == "clado":
            sums = macs - _dots(layers)[:, None]
            counts = macs * (5 * a * b - 5 * a - 3 * b + 3) + sums * (3 * a + 3 * b + 29)
        else:
            share = np.array([self.density.get(layer.name, 1.0) for layer in layers])[:, None]
            dense = macs if not self.density else np.rint(macs * share).astype(np.int64)
            counts = dense * (b * a)
        return counts


def _length(layer: Layer) -> int:
    """How many products add up to one output."""
    if not layer.shapes:
        raise ValueError(
            f"layer {layer.name!r} has no weight shape, so the length of its sums is not known;"
            " trace the model, or use the variant hawq-v3"
        )
    length = 1
    for size in layer.shapes[0][1:]:
        length *= size
    return max(length, 1)


def _lengths(layers: Sequence[Layer]) -> Floats:
    """(L, 1)."""
    return np.array([_length(layer) for layer in layers], np.float64)[:, None]


def _dots(layers: Sequence[Layer]) -> Numbers:
    """(L,) how many dot products a layer makes."""
    return np.array([layer.macs // _length(layer) for layer in layers], np.int64)


def _operations(layers: Sequence[Layer]) -> Numbers:
    """(L,) operations as OMPQ counts them."""
    macs = np.array([layer.macs for layer in layers], np.int64)
    linear = np.array([layer.kind == "linear" for layer in layers])
    return macs + np.where(linear, macs + _dots(layers), 5 * _dots(layers))
