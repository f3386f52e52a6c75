"""Small networks, and the Hessian of a loss written down as autograd gives it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
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


def resnet20(shared: Path, count: int) -> tuple[nn.Module, Tensor]:
    """The trained network and that many normalised CIFAR-10 images."""
    file = shared / "models/definitions/resnet_cifar.py"
    spec = importlib.util.spec_from_file_location("resnet_cifar", file)
    assert spec is not None
    assert spec.loader is not None
    definition = importlib.util.module_from_spec(spec)
    threads = torch.get_num_threads()
    spec.loader.exec_module(definition)
    torch.set_num_threads(threads)  # the definition sets it, too
    model: nn.Module = definition.ResNetCifar(20)
    model.load_state_dict(load_file(shared / "models/cifar10/weights/resnet20.safetensors"))
    images: Tensor = definition.prep(np.load(shared / "models/cifar10/calib.npz")["x"][:count])
    return model.eval(), images
