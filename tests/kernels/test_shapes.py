"""Layers built from what a network says of them."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.kernels.shapes import Part, parts, quantized
from mpsearch.network import Window
from mpsearch.quant.modules import Stored
from mpsearch.testing.hardware import network as untraced
from tests.kernels.networks import Net
from tests.quant.networks import mixed, tied


def work(part: Part) -> int:
    """Multiply-accumulates of its module on one sample."""
    network = mp.trace(nn.Sequential(part.module()), part.inputs(1))
    return network.macs


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Net(), torch.randn(2, 3, 9, 9)),
        lambda: (mixed()[0], mixed()[1][0]),
        lambda: (tied()[0], tied()[1][0]),
    ],
)
def test_built_layers_do_the_work_of_the_traced_ones(make: Any) -> None:
    network = mp.trace(*make())
    for layer in network.layers:
        built = parts(layer)
        assert sum(n * work(part) for part, n in built.items()) == layer.macs
        assert sum(n * math.prod(part.shape) for part, n in built.items()) == layer.params


def test_what_an_input_looks_like() -> None:
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 2, (5, 6), (5, 6))
    assert Part("conv", (8, 2, 3, 3), 1, window).inputs(4).shape == (4, 4, 5, 6)
    assert Part("linear", (8, 3), 7).inputs(4).shape == (4, 7, 3)
    assert Part("embedding", (8, 3), 7).inputs(2).max() < 8


def test_equal_weights_of_one_layer_are_one_part_counted() -> None:
    layer = mp.Layer("q", 48, 480, "linear", shapes=((4, 4), (4, 4), (4, 4)))
    assert parts(layer) == {Part("linear", (4, 4), 10): 3}


def test_a_tied_shortcut_reads_the_same_images_by_the_stride_that_its_work_says() -> None:
    class Transition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(4, 6, 1, bias=False)
            self.two = nn.Conv2d(6, 8, 3, 2, 1, bias=False)
            self.shortcut = nn.Conv2d(4, 8, 1, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.two(self.one(x).relu()) + self.shortcut(x)
            return out

    network = mp.trace(Transition(), torch.randn(1, 4, 8, 8))
    layer = network["one"]
    assert layer.members == ("one", "shortcut")
    built = {part.shape: part.window for part in parts(layer)}
    window = built[8, 4, 1, 1]
    assert window is not None
    assert window.stride == (2, 2)
    assert sum(n * work(part) for part, n in parts(layer).items()) == layer.macs


def test_layers_that_were_not_traced_are_built_on_square_images() -> None:
    for layer in untraced().layers:
        for part in parts(layer):
            made = part.module()
            assert made(part.inputs(2)).shape[0] == 2
        if layer.kind == "conv2d":
            assert sum(n * work(part) for part, n in parts(layer).items()) == layer.macs


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (mp.Layer("a", kind="linear"), "layer 'a' has no weight shape to build; trace"),
        (mp.Layer("b", kind="lstm", shapes=((4, 4),)), "layer 'b' is a 'lstm' with weights"),
        (mp.Layer("c", kind="linear", shapes=((4,),)), "layer 'c' is a 'linear' with weights"),
        (
            mp.Layer("d", macs=7, kind="conv2d", shapes=((1, 1, 1, 1),), inputs=9),
            r"layer 'd': no stride of a convolution \(1, 1, 1, 1\) makes 7 pixels",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(layer: mp.Layer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parts(layer)


def test_an_option_that_nothing_here_rounds_to_leaves_the_module_in_floats() -> None:
    part = Part("linear", (4, 3), 2)
    x = part.inputs(1)
    assert isinstance(quantized(part.module(), mp.Option.parse("w4a8"), x), Stored)
    for option in ("log4/log4", "fp32/fp32", "log4/fp16"):
        assert type(quantized(part.module(), mp.Option.parse(option), x)) is nn.Linear
