"""Layers as matrix products, which is how arrays of multipliers see them.

A layer of g groups multiplies, for each, (m, k) activations with (k, n) weights: m output pixels or
tokens of one sample, k products to a sum, n output channels.
"""

import math
from dataclasses import dataclass

import numpy as np

from mpsearch.network import Layer, Network
from mpsearch.tables import Floats


@dataclass(frozen=True, eq=False)
class Gemm:
    """(L,) sizes of each layer's product, as floats that hold integers.

    Attributes:
        m: Rows of activations in one sample.
        k: Products in a sum.
        n: Output channels of a group.
        groups: Products made.
        kernel: Of a convolution, the positions of its window, so that ``k = kernel * channels``.
        channels: Input channels of a group.
        first: Whether it reads the network's input.
        inputs: Elements read for one sample.
        outputs: Elements written for one sample.
        weights: Weights stored.
    """

    m: Floats
    k: Floats
    n: Floats
    groups: Floats
    kernel: Floats
    channels: Floats
    first: Floats
    inputs: Floats
    outputs: Floats
    weights: Floats

    @property
    def macs(self) -> Floats:
        """(L,) multiply-accumulates of one sample."""
        return self.m * self.k * self.n * self.groups


def gemms(network: Network) -> Gemm:
    """The products of a network's layers; ``ValueError`` for a layer without a weight shape.

    An embedding multiplies nothing: its m is zero. Layers of several weights of one shape (fused
    query, key and value) are one product with their output channels side by side.
    """
    rows = np.array([_sizes(layer) for layer in network.layers], np.float64)
    return Gemm(*rows.T.reshape(10, -1))


def _sizes(layer: Layer) -> tuple[float, ...]:
    if not layer.shapes:
        raise ValueError(
            f"layer {layer.name!r} has no weight shape, so it cannot be priced as a product;"
            " trace the model, or give the layer its shapes"
        )
    inner = layer.shapes[0][1:]
    if any(shape[1:] != inner for shape in layer.shapes):
        inner = (-(-sum(map(math.prod, layer.shapes)) // sum(s[0] for s in layer.shapes)),)
    k = max(math.prod(inner), 1)
    channels = inner[0] if inner else 1
    groups = layer.window.groups if layer.window else _groups(layer)
    n = sum(shape[0] for shape in layer.shapes)
    m = 0 if layer.kind == "embedding" else layer.macs / (k * n)
    return (
        m,
        k,
        n / groups,
        groups,
        k / channels,
        channels,
        float(layer.role == "first"),
        layer.inputs,
        layer.outputs,
        sum(math.prod(shape) for shape in layer.shapes),
    )


def _groups(layer: Layer) -> int:
    """Of a layer that was not traced: a depthwise one has as many as channels."""
    return layer.shapes[0][0] if layer.role == "depthwise" else 1
