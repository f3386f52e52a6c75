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
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.surroundings import Around
from mpsearch.sensitivity.weight_error import squared_errors
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats
from mpsearch.task import Task

See = Callable[[str, Tensor | None, Tensor], None]
"""Looks at one call: a module's name, what it read before any rounding, and what it wrote."""


@contextmanager
def watching(model: nn.Module, names: Sequence[str], see: See) -> Iterator[None]:
    """Shows every call of the modules of these names, until it is left."""
    reads: dict[str, Tensor | None] = {}

    def before(name: str, _: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        reads[name] = next(
            (
                x
                for x in (*args, *kwargs.values())
                if isinstance(x, Tensor) and x.is_floating_point()
            ),
            None,
        )

    def after(name: str, _: nn.Module, __: Any, output: Any) -> None:
        see(name, reads.pop(name), output[0] if isinstance(output, tuple | list) else output)

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            for hook in (
                module.register_forward_pre_hook(
                    partial(before, name), prepend=True, with_kwargs=True
                ),
                module.register_forward_hook(partial(after, name)),
            ):
                stack.callback(hook.remove)
        yield


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


def relative_input_errors(at: Around) -> Floats:
    """(layers, options) ``||Q(x) - x||^2 / ||x||^2`` over all that a layer's members read.

    Raises:
        ValueError: A layer that is never called and whose input would be rounded.
    """
    network, batches = at.network, at.task.batches
    formats = {str(o.activation): o.activation for o in at.options if o.activation.quantized}
    values = np.zeros((len(network.layers), len(at.options)))
    if not formats:
        return values
    names = members(network)
    units: list[Unit] = [(*formats, batch) for batch in range(len(batches))]

    def compute(unit: Unit) -> list[float]:
        return _squares(at, batches[int(unit[-1])], names, list(formats.values()))

    found = np.array(at.study.run("relative input error", units, compute)).sum(axis=0)
    each = dict(zip(names, found.reshape(len(names), -1), strict=True))
    for row, layer in enumerate(network.layers):
        norm, *errors = np.sum([each[name] for name in layer.modules], axis=0)
        shares = dict(zip(formats, np.array(errors) / (norm or 1.0), strict=True))
        values[row] = [shares.get(str(option.activation), 0.0) for option in at.options]
    return values


def _squares(
    at: Around, batch: Any, names: Sequence[str], formats: Sequence[Format]
) -> list[float]:
    """For each module ``||x||^2``, then ``||Q(x) - x||^2`` at each format."""
    grids = {name: [at.bench.grid(name, form) for form in formats] for name in names}
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

    with torch.no_grad(), watching(at.model, names, see):
        call(at.model, batch)
    return [float(number) for name in names for number in found[name]]
