"""Exact bytes as stored: codes, scales, zero points and padding, and what stays unquantized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mpsearch.formats import Format, Option
from mpsearch.network import Layer, Network, Shape
from mpsearch.tables import Table


@dataclass(frozen=True)
class Size:
    """Bytes of all parameters.

    A layer takes what :meth:`mpsearch.Format.bytes` counts for each of its stored weights; what no
    option touches is ``fixed``, at its own dtype.
    """

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``size`` in bytes; ``ValueError`` for options that name no weight format."""
        formats = [option.weight.as_weight() for option in options]
        values = np.array(
            [[_stored(shapes, f) for f in formats] for shapes in map(_shapes, network.layers)]
        )
        fixed = sum(parameter.bytes for parameter in network.fixed)
        reference = network.params * network.parameter_bytes + fixed
        table = Table(
            network.layers,
            tuple(options),
            values.astype(np.int64),
            "byte",
            "size",
            allowed=network.mask(options),
            fixed=fixed,
            reference=reference,
        )
        return {"size": table}


def _shapes(layer: Layer) -> tuple[Shape, ...]:
    """Those of its weights; one flat row where they are not known."""
    return layer.shapes or ((1, layer.params),)


@cache
def _stored(shapes: tuple[Shape, ...], weight: Format) -> int:
    """Bytes of a layer's weights in a format; networks repeat their shapes."""
    return sum(weight.bytes(shape) for shape in shapes)
