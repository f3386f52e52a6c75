"""What rounding changes layer by layer, and the slope of the loss there."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from mpsearch.batches import call, divergence, tensor_of, unit
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.activations import fake_quantize
from mpsearch.quant.bench import Bench, changes
from mpsearch.sensitivity.surroundings import Around
from mpsearch.sensitivity.traces import Traces
from mpsearch.sensitivity.weights import stored
from mpsearch.tables import Floats, Mask
from mpsearch.task import Task
from mpsearch.tracing import module_weight, output_first

Role = Literal["weight", "input"]
Place = Tensor | GradientEdge


class Read(NamedTuple):
    """What a module read in one call, before any rounding, and where in the graph it did."""

    value: Tensor
    edge: GradientEdge


Reads = Mapping[str, Sequence[Read]]


class Term(NamedTuple):
    """One tensor that an option changes; ``None`` as slope where the loss does not see it."""

    role: Role
    place: Place
    slope: Tensor | None
    change: Tensor


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a network in its surroundings, and what options change in them.

    Attributes:
        options: All that are asked for.
        mask: (layers, options) which may be taken.
        bench: Of the float model.
        model: Where slopes are taken; its weights want gradients where an option rounds weights.
    """

    task: Task
    network: Network
    options: tuple[Option, ...]
    mask: Mask
    bench: Bench
    model: nn.Module

    @classmethod
    def of(cls, at: Around) -> "Layers":
        """Calibrated, once every option is known to be supported."""
        rounds = [changes(option) and option.weight.quantized for option in at.options]
        names = [name for layer in at.network.layers for name in layer.modules]
        for name in names:
            module_weight(at.model, name).requires_grad_(any(rounds))
        check_read(at.bench, names, at.options)
        return cls(at.task, at.network, at.options, at.network.mask(at.options), at.bench, at.model)

    def named(self, row: int) -> str:
        """The name of a layer."""
        return self.network.layers[row].name

    @property
    def key(self) -> str:
        """What tells results for these layers, and what they may take, from others."""
        names = [[layer.name, *layer.modules] for layer in self.network.layers]
        return hashlib.sha256(json.dumps([names, self.mask.tolist()]).encode()).hexdigest()[:16]

    @property
    def surrounded(self) -> bool:
        """Whether slopes are taken in another network than the float one."""
        return self.model is not self.bench.model

    @property
    def unit(self) -> str:
        """What the loss counts in."""
        if self.task.loss is not None:
            return "loss"
        with torch.no_grad():
            return unit(tensor_of(call(self.bench.model, self.task.batches[0])))

    def at(self, row: int, option: Option) -> dict[str, Option]:
        """What every module gets, those that share its weight included, with one layer at it."""
        return self.bench.complete(dict.fromkeys(self.network.layers[row].modules, option))

    def readers(self, options: Sequence[Option]) -> list[str]:
        """The modules whose input some option rounds."""
        if not any(option.activation.quantized for option in options):
            return []
        return [name for layer in self.network.layers for name in layer.modules]

    def weights(self, options: Sequence[Option]) -> list[Tensor]:
        """The weights that some option rounds, each once."""
        if not any(option.weight.quantized for option in options):
            return []
        names = [name for layer in self.network.layers for name in layer.modules]
        return list({id(weight): weight for weight in map(self.weight_of, names)}.values())

    def terms(
        self, row: int, option: Option, reads: Reads, slopes: Mapping[int, Tensor | None]
    ) -> list[Term]:
        """What an option changes in a layer, each weight once, each input as often as read."""
        found: dict[int, Term] = {}
        for name, one in self.at(row, option).items() if self.allows(row, option) else ():
            weight = self.weight_of(name)
            if one.weight.quantized and id(weight) not in found:
                change = self.weight_change(name, one)
                found[id(weight)] = Term("weight", weight, slopes.get(id(weight)), change)
            for read in reads.get(name, ()):
                error = input_change(self.bench, name, one, read.value)
                if error is not None:
                    slope = slopes.get(id(read.edge))
                    found[id(read.edge)] = Term("input", read.edge, slope, error)
        return list(found.values())

    def allows(self, row: int, option: Option) -> bool:
        """Whether a layer may take an option."""
        return bool(self.mask[row, self.options.index(option)])

    def weights_of(self, row: int) -> list[Tensor]:
        """The weights of a layer."""
        return [self.weight_of(name) for name in self.network.layers[row].modules]

    def weight_change(self, name: str, option: Option) -> Tensor:
        """Q(W) - W of the float weight W, as the module stores it."""
        weight = module_weight(self.bench.model, name).detach()
        rounded = self.bench.codes(name, option.weight, option.method).dequantize()
        return output_first(rounded, self.bench.model.get_submodule(name)) - weight

    def weight_of(self, name: str) -> Tensor:
        """The weight of a module as it is where slopes are taken."""
        return module_weight(self.model, name)


def check_read(bench: Bench, names: Iterable[str], options: Iterable[Option]) -> None:
    """``ValueError`` where an option rounds what a module never read."""
    for name, option in product(names, options):
        bench.grid(name, option.activation)


def input_change(bench: Bench, name: str, option: Option, x: Tensor) -> Tensor | None:
    """Q(x) - x, or ``None`` where the option leaves what a module reads as it is."""
    grid = bench.grid(name, option.activation)
    return None if grid is None else fake_quantize(x, grid) - x


@contextmanager
def watching(model: nn.Module, names: Iterable[str]) -> Iterator[Reads]:
    """Collects what modules read, by hooks on both sides of those that round it."""
    reads: dict[str, list[Read]] = {name: [] for name in names}
    values: dict[str, Tensor] = {}

    def see(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            def seen(x: Tensor) -> Tensor:
                values[name] = x.detach().clone()  # it may be changed in place later
                return x

            replaced(args, kwargs, seen)

        return hook

    def mark(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            def marked(x: Tensor) -> Tensor:
                x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                reads[name].append(Read(values.pop(name), get_gradient_edge(x)))
                return x

            return replaced(args, kwargs, marked)

        return hook

    with ExitStack() as stack:
        for name in reads:
            add = model.get_submodule(name).register_forward_pre_hook
            stack.callback(add(see(name), prepend=True, with_kwargs=True).remove)
            stack.callback(add(mark(name), with_kwargs=True).remove)
        yield reads


def replaced(args: Any, kwargs: Any, change: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    """A call's arguments with its first floating tensor, which is what is rounded, changed."""
    for key, x in [*enumerate(args), *kwargs.items()]:
        if isinstance(x, Tensor) and x.is_floating_point():
            if isinstance(key, int):
                return (*args[:key], change(x), *args[key + 1 :]), kwargs
            return args, kwargs | {key: change(x)}
    return args, kwargs


def together(task: Task, network: Network, model: nn.Module) -> bool:
    """Whether samples that go through a model together have the gradients they have alone."""
    with differentiable(task, network, model) as traces:
        return traces.together()


@contextmanager
def differentiable(task: Task, network: Network, model: nn.Module) -> Iterator[Traces]:
    """All weights of a network in a model, which want gradients meanwhile."""
    weights = tuple(one.weight for layer in stored(model, network) for one in layer)
    wanted = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_()
    try:
        yield Traces(task, network, model, weights)
    finally:
        for weight, before in zip(weights, wanted, strict=True):
            weight.requires_grad_(before)


def slopes(
    value: Tensor, places: Sequence[Place], *, graph: bool = False
) -> dict[int, Tensor | None]:
    """The gradients at some places, by their identity; ``None`` where there is none."""
    if not places:
        return {}
    at: Any = places  # tensors and edges mixed are taken, too
    found = torch.autograd.grad(value, at, create_graph=graph, allow_unused=True)
    return {id(place): slope for place, slope in zip(places, found, strict=True)}


def loss_of(task: Task, output: Any, batch: Any, reference: Tensor) -> Tensor:
    """The loss of a batch; ``ValueError`` where it fails, or is not finite and one number."""
    if task.loss is None:
        value: Any = divergence(reference, tensor_of(output)).mean()
    else:
        try:
            value = task.loss(output, batch)
        except (IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the loss failed on a batch ({type(error).__name__}: {error}); one that wants"
                " labels needs them in every batch: (x, y), or a dict that holds them"
            ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        said = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"the loss returned {said}; wanted a tensor of one number that can be differentiated by"
            " weights and activations: give such a loss, or use 'kl', which needs no gradient"
        )
    if not torch.isfinite(value).all():
        raise ValueError(
            f"the loss is {value.item()}; wanted a finite number: check the output of the model on"
            " these batches, which may be out of range in half precision"
        )
    return value.sum()


def reached(rows: Floats, network: Network) -> Floats:
    """Rows with 0 for NaN, once every layer has a gradient in some batch."""
    never = np.isnan(rows).all(axis=0).reshape(rows.shape[1], -1).any(axis=1)
    for row in np.flatnonzero(never)[:1]:
        raise ValueError(
            f"the loss has no gradient in layer {network.layers[row].name!r} on any batch: it does"
            " not run, or what it writes is not used or is detached; give batches that reach it, or"
            " skip it"
        )
    return np.nan_to_num(rows)


def finite(number: float, layer: str, option: Option) -> float:
    """The number, if it is one."""
    if math.isfinite(number):
        return number
    raise ValueError(
        f"layer {layer!r} at {str(option)!r}: the score is {number}, from a gradient that is out of"
        " range; run the model in float32, or scale its loss"
    )


def one_of(name: str, value: object, known: Sequence[object]) -> None:
    """Refuse what is not among the known."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; known are {', '.join(map(repr, known))}")
