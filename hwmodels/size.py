"""Exact bytes as stored: codes, scales, zero points and padding, and what stays unquantized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mpsearch.formats import Format, Option
from mpsearch.hwmodels.containers import CONTAINERS, Container, gguf_block, onnx_bits, stored
from mpsearch.network import Layer, Network, Shape
from mpsearch.tables import Mask, Table


@dataclass(frozen=True)
class Size:
    """Bytes of all parameters.

    A layer takes what its container stores for each of its weights (:mod:`.containers`); what no
    option touches is ``fixed``, at its own dtype.

    Attributes:
        container: ``packed``, ``safetensors``, ``onnx`` or ``gguf``.
    """

    container: Container = "packed"

    def __post_init__(self) -> None:
        """Refuse an unknown container."""
        if self.container not in CONTAINERS:
            raise ValueError(
                f"no container is named {self.container!r}; there are {', '.join(CONTAINERS)}"
            )

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``size`` in bytes; ``ValueError`` for options that name no weight format."""
        formats = [option.weight.as_weight() for option in options]
        named = self.container in ("safetensors", "gguf")
        values = np.array(
            [
                [_stored(_shapes(n), f, self.container, n.name if named else "") for f in formats]
                for n in network.layers
            ]
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
            notes=self._notes(network, formats),
        )
        return {"size": table}

    def _notes(self, network: Network, formats: Sequence[Format]) -> dict[str, Mask]:
        """Which entries a container stores as something else."""
        notes: dict[str, Mask] = {}
        for row, layer in enumerate(network.layers) if self.container in ("onnx", "gguf") else ():
            for column, weight in enumerate(formats):
                text = self._note(_shapes(layer)[0], weight)
                if text:
                    none = np.zeros((len(network.layers), len(formats)), bool)
                    notes.setdefault(text, none)[row, column] = True
        return notes

    def _note(self, shape: Shape, weight: Format) -> str:
        if self.container == "gguf":
            return f"stored as {gguf_block(shape, weight).name}"
        bits = onnx_bits(weight)
        return f"stored in codes of {bits} bits" if bits != weight.bits else ""


def _shapes(layer: Layer) -> tuple[Shape, ...]:
    """Those of its weights; one flat row where they are not known."""
    return layer.shapes or ((1, layer.params),)


@cache
def _stored(shapes: tuple[Shape, ...], weight: Format, container: Container, name: str) -> int:
    """Bytes of a layer's weights in a format; networks repeat their shapes."""
    return stored(shapes, weight, container, name)
