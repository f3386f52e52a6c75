"""Layers made of their shapes alone: modules with random weights, and inputs for them."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.network import Layer, Shape, Window
from mpsearch.quant import activations, encoding
from mpsearch.quant.modules import store
from mpsearch.quant.recipe import Recipe
from mpsearch.tracing import output_first

_STRAIGHT = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MOST_STRIDE = 32
_RECIPE = Recipe(ranges="minmax", activation_ranges="minmax")  # takes no search


@dataclass(frozen=True)
class Part:
    """What one module of a layer computes for one sample; equal parts take equal time.

    Attributes:
        kind: ``linear``, ``embedding`` or ``conv``.
        shape: Of its weight, outputs first.
        rows: Vectors that a linear layer reads, indices that an embedding reads.
        window: How a convolution moves.
    """

    kind: str
    shape: Shape
    rows: int = 1
    window: Window | None = None

    def inputs(self, batch: int) -> Tensor:
        """What its module reads for so many samples."""
        if self.kind == "embedding":
            return torch.arange(batch * self.rows).reshape(batch, -1) % self.shape[0]
        if self.window is None:
            return torch.randn(batch, self.rows, self.shape[1])
        channels = self.shape[1] * self.window.groups
        return torch.randn(batch, channels, *self.window.image)

    def module(self) -> nn.Module:
        """A module of random weights, without a bias."""
        if self.kind == "embedding":
            return nn.Embedding(self.shape[0], self.shape[1]).eval()
        if self.window is None:
            return nn.Linear(self.shape[1], self.shape[0], bias=False).eval()
        window, channels = self.window, self.shape[1] * self.window.groups
        kind: Any = (_TRANSPOSED if window.transposed else _STRAIGHT)[len(window.kernel) - 1]
        made: nn.Module = kind(
            channels,
            self.shape[0],
            window.kernel,
            stride=window.stride,
            padding=window.padding,
            dilation=window.dilation,
            groups=window.groups,
            bias=False,
        )
        return made.eval()


def quantized(module: nn.Module, option: Option, x: Tensor) -> nn.Module:
    """A module of :class:`Part` at an option, its range that of an input.

    Itself where it stays in floats, and where :mod:`mpsearch.quant` cannot round to a format yet: a
    kernel for such a one packs the weight itself.
    """
    try:
        form = encoding.supported(option.weight)
        inputs = activations.supported(option.activation)
    except ValueError:
        return module
    if form.base == "fp32" and inputs.kind == "full":
        return module
    weight: Any = module.weight
    codes = encoding.encode(output_first(weight, module), form, "minmax")
    grid = None
    if x.is_floating_point():
        seen = activations.Seen()
        seen.add(x, 1)
        grid = seen.grid(inputs, _RECIPE)
    store(module, option, codes, grid, weight.dtype)
    return module


def parts(layer: Layer, *, decode: bool = False) -> Counter[Part]:
    """What a layer is made of, and how often each runs for one sample.

    Where they ``decode``, linear layers and embeddings read one token. Convolutions tied to a
    traced one read the images it reads; those of a layer that was not traced read square ones.

    Raises:
        ValueError: No shapes, a kind that cannot be built from them, a convolution that no stride
            explains, or one that would decode.
    """
    if not layer.shapes:
        raise ValueError(f"layer {layer.name!r} has no weight shape to build; trace the model")
    axes = {len(shape) for shape in layer.shapes}
    if layer.kind == "linear" and axes == {2}:
        rows = 1 if decode else max(1, round(layer.macs / sum(map(math.prod, layer.shapes))))
        return Counter(Part("linear", shape, rows) for shape in layer.shapes)
    if layer.kind == "embedding" and axes == {2}:
        rows = 1 if decode else max(1, layer.outputs // layer.shapes[0][1])
        return Counter(Part("embedding", shape, rows) for shape in layer.shapes)
    if layer.kind.startswith("conv") and axes in ({3}, {4}, {5}):
        if decode:
            raise ValueError(
                f"layer {layer.name!r} is a convolution, which does not read one token at a time;"
                " time it with phase 'traced', or skip it"
            )
        return _convolutions(layer)
    raise ValueError(
        f"layer {layer.name!r} is a {layer.kind!r} with weights {layer.shapes}, which cannot be"
        " built from that; skip it, or give its costs with the lookup model"
    )


def _convolutions(layer: Layer) -> Counter[Part]:
    first, *tied = layer.shapes
    if layer.window is None:
        like, found, left = _square(layer), Counter[Part](), layer.macs
        tied = [first, *tied]
    else:
        like = layer.window
        pixels = math.prod(like.image if like.transposed else like.output)
        calls = 1 if tied else max(1, layer.macs // (pixels * math.prod(first)))
        found = Counter({Part("conv", first, 1, like): calls})
        left = layer.macs - pixels * math.prod(first)
    for shape in tied:
        pixels = left // sum(map(math.prod, tied))
        found[Part("conv", shape, 1, _moving(layer, shape, like, pixels))] += 1
    return found


def _square(layer: Layer) -> Window:
    """What is said of a convolution that was not traced."""
    shape = layer.shapes[0]
    groups, axes = shape[0] if layer.role == "depthwise" else 1, len(shape) - 2
    side = round((layer.inputs / (shape[1] * groups)) ** (1 / axes))
    return Window(shape[2:], (), (), (), groups, (side,) * axes, ())


def _moving(layer: Layer, shape: Shape, like: Window, pixels: int) -> Window:
    """A convolution of the same images that writes so many pixels: its stride is found."""
    channels = layer.shapes[0][1] * like.groups
    ones, padding = (1,) * len(like.image), tuple(size // 2 for size in shape[2:])
    sides = list(zip(like.image, shape[2:], padding, strict=True))
    for stride in range(1, _MOST_STRIDE + 1):
        made = tuple((image + 2 * pad - size) // stride + 1 for image, size, pad in sides)
        if math.prod(made) == pixels and channels % shape[1] == 0:
            steps = tuple(stride * one for one in ones)
            return Window(shape[2:], steps, padding, ones, channels // shape[1], like.image, made)
    raise ValueError(
        f"layer {layer.name!r}: no stride of a convolution {shape} makes {pixels} pixels of images"
        f" {like.image}; trace the model with its layers apart, or skip it"
    )
