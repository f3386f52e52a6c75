"""Small networks, and the Hessian of a loss written down as autograd gives it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F

from mpsearch.network import Network
from mpsearch.tracing import module_weight, trace


class Curved(nn.Module):
    """(N, 4) to (N, 3) with a GELU, a skip connection, and one weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.twice = nn.Linear(3, 3, bias=False)
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        x = x + torch.tanh(self.twice(torch.tanh(self.twice(x))))
        out: Tensor = self.last(x)
        return out


def curved() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Curved().double().eval(), torch.randn(5, 4, dtype=torch.float64)


def kinked() -> tuple[nn.Module, Tensor]:
    """Piecewise linear: convolutions, a batch norm with statistics, ReLU, pooling."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    model(torch.randn(32, 2, 6, 6, dtype=torch.float64))
    return model.eval(), torch.randn(6, 2, 6, 6, dtype=torch.float64)


def traces_of(
    model: nn.Module, network: Network, loss: Callable[[Any], Tensor], x: Tensor
) -> list[float]:
    """The trace of each layer's block of the Hessian of ``loss(model(x))``, block by block."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = []
    for layer in network.layers:
        weights = {module_weight(model, member) for member in layer.modules}
        found.append(sum(_trace(model, names[weight], loss, x) for weight in weights))
    return found


def _trace(model: nn.Module, name: str, loss: Callable[[Any], Tensor], x: Tensor) -> float:
    weight = model.get_parameter(name).detach()

    def value(w: Tensor) -> Tensor:
        return loss(functional_call(model, {name: w}, (x,)))

    block = torch.as_tensor(hessian(value, weight)).reshape(weight.numel(), weight.numel())
    return float(block.trace())


def network_of(model: nn.Module, x: Any) -> Network:
    return trace(model, x)
