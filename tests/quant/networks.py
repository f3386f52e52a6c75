"""Small networks with the layers and the shapes of glue that quantization has to get right."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedConv(nn.Conv2d):
    """Pads before and activates after, inside the module."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        return F.relu6(super().forward(F.pad(input, (0, 1, 0, 1))))


class Mixed(nn.Module):
    """Grouped, depthwise, dilated and transposed convolutions, a batch norm, an odd subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=3)
        self.odd = PaddedConv(6, 4, 2)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.odd(self.up(F.relu(self.grouped(self.depthwise(x)))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Tied(nn.Module):
    """A byte-level language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.embed(ids)))
        return out


def mixed() -> tuple[nn.Module, list[Tensor], list[str]]:
    """The network, two batches, and the names of its layers."""
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, 6, 6))  # gives the batch norm statistics
    names = ["stem", "depthwise", "grouped", "up", "odd", "head"]
    return model.eval(), [torch.randn(8, 3, 6, 6), torch.randn(8, 3, 6, 6)], names


def tied() -> tuple[nn.Module, list[Tensor], list[str]]:
    """The network, one batch, and the names of its layers, the tied ones both."""
    torch.manual_seed(0)
    names = ["embed", "block.self_attn.in_proj", "block.self_attn.out_proj"]
    names += ["block.linear1", "block.linear2", "head"]
    return Tied().eval(), [torch.randint(0, 11, (6, 7))], names


class Normed(nn.Module):
    """A layer norm whose channels differ in range and in mean, two layers that read it."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6, bias=bias)
        self.first, self.second = nn.Linear(6, 5, bias=bias), nn.Linear(6, 5, bias=bias)
        self.norm.weight.data = torch.tensor([0.1, 1.0, 4.0, 0.5, 0.2, 8.0])
        if bias:
            self.norm.bias.data = torch.tensor([3.0, 0.0, -5.0, 1.0, 0.0, 2.0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        out: Tensor = self.first(h) * self.second(h).tanh()
        return out


def normed(*, bias: bool = True, rows: int = 40) -> tuple[nn.Module, Tensor]:
    """The network, in eval mode, and what it reads."""
    torch.manual_seed(0)
    return Normed(bias=bias).eval().requires_grad_(False), torch.randn(rows // 4, 4, 6)
