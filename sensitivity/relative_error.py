"""How far rounding moves each layer's weights and inputs, relative to their size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.batches import call
from mpsearch.formats import Format, Option
from mpsearch.network import Network
from mpsearch.quant.activations import fake_quantize
from mpsearch.quant.bench import Bench
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.weight_error import squared_errors
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats
from mpsearch.task import Task

See = Callable[[str, Tensor | None, Tensor], None]
"""Looks at one call: the module's name, the first floating tensor it read, and what it wrote."""


@contextmanager
def watching(model: nn.Module, names: Sequence[str], see: See) -> Iterator[None]:
    """Shows every call of the modules of these names, until it is left."""
    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            hook = module.register_forward_hook(partial(_shown, name, see), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _shown(
    name: str, see: See, _: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
) -> None:
    floating = (
        x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()
    )
    wrote = output[0] if isinstance(output, tuple | list) else output
    see(name, next(floating, None), wrote)


def members(network: Network) -> list[str]:
    """The modules of all layers."""
    return [name for layer in network.layers for name in layer.modules]


def check_called(model: nn.Module, task: Task, network: Network) -> None:
    """``ValueError`` where no module of a layer is called on the batches of a task.

    ``model`` is a copy of the task's, in eval mode.
    """
    called: set[str] = set()

    def see(name: str, *_: Tensor | None) -> None:
        called.add(name)

    with torch.no_grad(), watching(model, members(network), see):
        for batch in task.batches:
            call(model, batch)
    for layer in network.layers:
        if called.isdisjoint(layer.modules):
            raise ValueError(
                f"layer {layer.name!r} is not called on the calibration batches, so nothing can be"
                " said of it; give batches that reach it, or leave it out with skip"
            )


def relative_weight_errors(
    task: Task, network: Network, options: Sequence[Option], recipe: Recipe, sweep: Sweep
) -> Floats:
    """(layers, options) ``||Q(W) - W||^2 / ||W||^2`` over all weights of a layer; 0 of zeros."""
    layers = stored(task.model, network)
    errors = [
        error.sum(axis=0) * [option.weight.quantized for option in options]
        for error in squared_errors(layers, options, recipe, sweep)
    ]
    norms = [sum(float(s.weight.detach().double().square().sum()) for s in w) for w in layers]
    return np.stack([e / (n or 1.0) for e, n in zip(errors, norms, strict=True)])


def relative_input_errors(
    bench: Bench, task: Task, network: Network, options: Sequence[Option], sweep: Sweep
) -> Floats:
    """(layers, options) ``||Q(x) - x||^2 / ||x||^2`` over all that a layer's members read.

    Raises:
        ValueError: A layer that is never called and whose input would be rounded.
    """
    formats = {str(o.activation): o.activation for o in options if o.activation.quantized}
    values = np.zeros((len(network.layers), len(options)))
    if not formats:
        return values
    names = members(network)
    units: list[Unit] = [(*formats, batch) for batch in range(len(task.batches))]

    def compute(unit: Unit) -> list[float]:
        return _squares(bench, task.batches[int(unit[-1])], names, list(formats.values()))

    found = np.array(sweep.run("relative input error", units, compute)).sum(axis=0)
    each = dict(zip(names, found.reshape(len(names), -1), strict=True))
    for row, layer in enumerate(network.layers):
        norm, *errors = np.sum([each[name] for name in layer.modules], axis=0)
        shares = dict(zip(formats, np.array(errors) / (norm or 1.0), strict=True))
        values[row] = [shares.get(str(option.activation), 0.0) for option in options]
    return values


def _squares(
    bench: Bench, batch: Any, names: Sequence[str], formats: Sequence[Format]
) -> list[float]:
    """For each module ``||x||^2``, then ``||Q(x) - x||^2`` at each format."""
    grids = {name: [bench.grid(name, form) for form in formats] for name in names}
    found = {name: np.zeros(1 + len(formats)) for name in names}

    def see(name: str, read: Tensor | None, _: Tensor) -> None:
        if read is None:
            return
        x = read.double()
        errors = [
            0.0 if g is None else float((fake_quantize(read, g).double() - x).square().sum())
            for g in grids[name]
        ]
        found[name] += [float(x.square().sum()), *errors]

    with torch.no_grad(), watching(bench.model, names, see):
        call(bench.model, batch)
    return [float(number) for name in names for number in found[name]]
