"""A network on real kernels, and what it takes beside its layers."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mpsearch.batches import call
from mpsearch.formats import Option
from mpsearch.kernels import timing
from mpsearch.kernels.plain import Plain, in_place_of, running
from mpsearch.kernels.timing import Taken
from mpsearch.network import Layer, Network
from mpsearch.protocols import Backend
from mpsearch.quant.attention import explicit

_FLOAT = Option.parse("fp32/fp32")


def placed(
    model: nn.Module, network: Network, options: Mapping[str, Option], backend: Backend
) -> nn.Module:
    """A copy of a model with each layer on what it runs on at its option, by layer name.

    ``model`` is what :func:`mpsearch.quant.quantize` made for these options, or the float network
    where they are floats.
    """

    def kernel(layer: Layer, module: nn.Module) -> nn.Module:
        return running(backend, layer, options[layer.name], module)

    return _replaced(explicit(copy.deepcopy(model)).eval(), network, kernel)


def beside(model: nn.Module, network: Network, batch: Any, rounds: int) -> Taken:
    """What the float network takes beside its layers: norms, activations, sums, and the calls.

    Every layer hands back what it wrote before.
    """
    floats = timing.footprint(network.params)
    with timing.pinned():
        whole = placed(model, network, {n.name: _FLOAT for n in network.layers}, Plain())
        hollow = _replaced(whole, network, lambda _, module: _Remembered(module))
        call(hollow, batch)
        return whole_time(hollow, batch, rounds, floats)


def whole_time(model: nn.Module, batch: Any, rounds: int, floats: int = 1) -> Taken:
    """What a network takes for a batch, each time after so many floats were read."""
    scratch = torch.ones(floats)
    with timing.pinned():
        seconds = []
        for _ in range(rounds + 1):
            scratch.sum()
            seconds.append(timing.once(lambda: call(model, batch)))
        return Taken.of(seconds[1:])


def _replaced(
    model: nn.Module, network: Network, by: Callable[[Layer, nn.Module], nn.Module]
) -> nn.Module:
    """The model with each module of a layer replaced, one that is there twice by one."""
    made: dict[nn.Module, nn.Module] = {}
    for layer in network.layers:
        for name in layer.modules:
            module = model.get_submodule(name)
            if not isinstance(module, nn.Embedding):  # its lookups are no multiplication
                made.setdefault(module, in_place_of(module, by(layer, module)))
                model.set_submodule(name, made[module])
    return model


class _Remembered(nn.Module):
    """Computes once, then hands back what it wrote."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.output = module, None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.output is None:
            self.output = self.module(*args, **kwargs)
        return self.output
