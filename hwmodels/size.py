"""Exact bytes as stored: codes, scales, zero points and padding, and what stays unquantized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.formats import Format, Option
from mpsearch.network import Layer, Network
from mpsearch.tables import Table


@dataclass(frozen=True)
class Size:
    """Bytes of all parameters.

    A layer takes what :meth:`mpsearch.Format.bytes` counts for each of its stored weights; what no
    option touches is ``fixed``, at its own dtype.
    """

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``size`` in bytes; ``ValueError`` for options that name no weight format."""
        formats = [option.weight for option in options]
        values = np.array([[stored(layer, f) for f in formats] for layer in network.layers])
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


def stored(layer: Layer, weight: Format) -> int:
    """Bytes of a layer's weights in a format; one flat row where shapes are not known."""
    return sum(weight.bytes(shape) for shape in layer.shapes or ((1, layer.params),))
