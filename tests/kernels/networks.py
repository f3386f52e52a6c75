"""A small network with every operator that has an integer kernel, and some that have none."""

from typing import Any

import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.quant import quantize

NAMES: tuple[str, ...] = ("stem", "depthwise", "grouped", "wide", "head")


class Net(nn.Module):
    """Strided, dilated, depthwise and grouped convolutions, linear layers of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, (1, 3), padding=(0, 1), groups=2)
        self.wide = nn.Linear(12, 70)
        self.head = nn.Linear(70, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.depthwise(self.stem(x).relu()))
        out: Tensor = self.head(self.wide(x.flatten(2).mT))
        return out


class PaddedConv(nn.Conv2d):
    """Does more than a convolution."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        return super().forward(input).relu()


class Conv1D(nn.Module):
    """A linear layer as Hugging Face's GPT-2 has it: (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return found.view(*x.shape[:-1], self.nf)


class Looking(nn.Module):
    """Reads a layer's attributes without calling it, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.mixed = Conv1D(4, 6)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.patch(x.to(self.patch.weight.dtype)).flatten(2).mT
        out: Tensor = self.head(self.mixed(found).to(self.head.weight.dtype))
        sides = self.patch.stride[0] * self.patch.out_channels, *self.head.weight.shape
        return out.reshape(*out.shape[:2], self.head.out_features) / sum(map(int, sides))


def at(option: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network, the same quantized to one option, and an input."""
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 9, 9)
    return model, quantize(model, dict.fromkeys(NAMES, option), [x]), x


def seen(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each layer read and wrote."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        return lambda _, args, y: found.__setitem__(name, (args[0], y))

    hooks = [model.get_submodule(n).register_forward_hook(hook(n)) for n in NAMES]
    with torch.no_grad():
        model(x)
    for each in hooks:
        each.remove()
    return found


def layer(name: str = "layer") -> mp.Layer:
    """One of that name."""
    return mp.Layer(name)
