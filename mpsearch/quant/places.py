"""Formats mixed inside a weight: each channel or group of it rounded at its own option."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpsearch.batches import call
from mpsearch.formats import Format, Option
from mpsearch.network import Layer, Network
from mpsearch.places import Block, Places
from mpsearch.quant.arguments import rounding
from mpsearch.quant.bench import Bench, changes
from mpsearch.quant.corrections import Moments, correcting, float_moments, undone
from mpsearch.quant.encoding import encode
from mpsearch.quant.recipe import Ranges, Recipe
from mpsearch.quant.spreading import refuse
from mpsearch.tracing import module_weight, output_first, sites

Choice = Sequence[int] | NDArray[np.integer]
KEPT = -1
"""In a choice: the place is left as it is."""


def rounded_apart(weight: Tensor, form: Format, width: int, ranges: Ranges = "mse") -> Tensor:
    """A weight, outputs first, with every ``width`` columns of a row a tensor of their own.

    So no two share a scale. What a format has for a tensor beside scales (the second one of
    ``nvfp4``, a choice of outliers) is that of the weight. In float32, unless it stays as it is.

    Raises:
        ValueError: A format that is not supported, or a weight that is not finite.
    """
    this = form.as_weight()
    if this.base == "fp32":
        return weight.detach()
    if this.per == "tensor":
        this = replace(this, per="channel")
    rows = weight.detach().reshape(len(weight), -1)
    short = rows.shape[1] % width
    parts = rows[:, : rows.shape[1] - short].reshape(-1, width), rows[:, rows.shape[1] - short :]
    made = [encode(part, this, ranges).dequantize() for part in parts if part.numel()]
    whole = torch.cat([part.reshape(len(rows), -1) for part in made], dim=1)
    found: Tensor = whole.reshape(weight.shape)
    return found


def sums(values: Tensor, width: int) -> Tensor:
    """(..., places) sums over every ``width`` columns of a row, row by row, from (..., r, c)."""
    short = -values.shape[-1] % width
    apart = torch.nn.functional.pad(values, (0, short)).unflatten(-1, (-1, width))
    found: Tensor = apart.sum(dim=-1).flatten(-2)
    return found


def mixed(
    weight: Tensor, choice: Choice, formats: Sequence[Format], width: int, ranges: Ranges = "mse"
) -> Tensor:
    """A weight, outputs first, whose places have formats of their own; in its own type.

    Args:
        weight: Of rows, each of which has a place for every ``width`` of its columns.
        choice: The number of each place's format, row by row, or ``KEPT``.
        formats: What these count.
        width: The last place of a row may have fewer columns.
        ranges: What scales are chosen by.
    """
    return _mixed(weight, choice, width, lambda k: rounded_apart(weight, formats[k], width, ranges))


def _mixed(weight: Tensor, choice: Choice, width: int, rounded: Callable[[int], Tensor]) -> Tensor:
    made = weight.detach().reshape(len(weight), -1)
    per_row = -(-made.shape[1] // width)
    taken = torch.as_tensor(np.array(choice), device=weight.device)
    if taken.shape != (len(made) * per_row,):
        raise ValueError(
            f"the choice is of shape {tuple(taken.shape)} for {len(made)} rows of {per_row} places"
            " each; wanted one number for each place, row by row"
        )
    each = taken.reshape(-1, per_row).repeat_interleave(width, dim=1)[:, : made.shape[1]]
    for number in map(int, taken.unique()):
        if number != KEPT:
            found = rounded(number).reshape(made.shape).to(made.dtype)
            made = torch.where(each == number, found, made)
    return made.reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Mixed:
    """A bench, on whose copy the places of layers have options.

    Attributes:
        bench: Of the modules of all layers.
        places: Of the network whose layers these are.
    """

    bench: Bench
    places: Places
    _rounded: dict[tuple[int, Format], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a recipe that moves scales."""
        refuse(self.bench.recipe, "places inside a weight have scales of their own")

    @classmethod
    def of(
        cls, model: nn.Module, batches: Sequence[Any], network: Network, recipe: Recipe
    ) -> "Mixed":
        """On a copy of a model; ``network`` is what :func:`mpsearch.places.finer` returned."""
        if not isinstance(network.layers, Places):
            raise ValueError(  # noqa: TRY004  (of the right type, but the wrong network)
                "the network's layers are no channels or groups; give finer(network, 'channel')"
            )
        names = [name for layer in network.layers.coarse.layers for name in layer.modules]
        return cls(Bench(model, batches, names, recipe), network.layers)

    @contextmanager
    def at(
        self, choice: Choice, options: Sequence[Option], layers: Sequence[int] | None = None
    ) -> Iterator[nn.Module]:
        """The copy with every place at its option, corrected as the recipe says.

        As before on the way out. An input is rounded where all places of a layer say so alike.

        Args:
            choice: The number of each place's option, or ``KEPT``.
            options: What these count.
            layers: Which have a place that is not kept, where that is known.

        Raises:
            ValueError: A choice of another network, or two formats for what one layer reads.
        """
        taken = np.asarray(choice)
        if taken.shape != (len(self.places),):
            raise ValueError(
                f"the choice is of shape {taken.shape}; wanted an option for each of"
                f" {len(self.places)} places"
            )
        coarse = self.places.coarse.layers
        rows = range(len(coarse)) if layers is None else layers
        changed = [row for row in rows if self._changes(taken[self.places.rows(row)], options)]
        model = self.bench.model
        with self._at(changed, taken, options) as modules, undone(model, list(modules.values())):
            if modules and self.bench.recipe.corrections:
                with torch.no_grad(), correcting(self._moments, modules):
                    call(model, self.bench.batch)
            yield model

    def _changes(self, taken: NDArray[np.integer], options: Sequence[Option]) -> bool:
        return any(changes(options[k]) for k in map(int, np.unique(taken)) if k != KEPT)

    @cached_property
    def _moments(self) -> Moments:
        bench, coarse = self.bench, self.places.coarse.layers
        modules = {n: bench.model.get_submodule(n) for layer in coarse for n in layer.modules}
        with torch.no_grad():
            run = partial(call, bench.model, bench.batch)
            return float_moments(bench.model, modules, run, bench.recipe.corrections)

    @contextmanager
    def _at(
        self, rows: Sequence[int], taken: NDArray[np.integer], options: Sequence[Option]
    ) -> Iterator[dict[str, nn.Module]]:
        """Weights swapped and inputs rounded; yields the modules that changed."""
        model = self.bench.model
        if rows and self.bench.recipe.corrections:
            _ = self._moments  # while the copy is still the float one
        names = [name for row in rows for name in self.places.coarse.layers[row].modules]
        before = [(weight, weight.data) for weight in {module_weight(model, n) for n in names}]
        with ExitStack() as stack:
            try:
                for row in rows:
                    self._swap(row, taken, options)
                    for name in self.places.coarse.layers[row].modules:
                        inputs = self._input(row, taken, options)
                        grid = None if inputs is None else self.bench.grid(name, inputs)
                        if grid is not None:
                            hook = rounding(grid)
                            add = model.get_submodule(name).register_forward_pre_hook
                            stack.callback(add(hook, with_kwargs=True).remove)
                yield {name: model.get_submodule(name) for name in names}
            finally:
                for weight, data in before:
                    weight.data = data

    def _swap(self, row: int, taken: NDArray[np.integer], options: Sequence[Option]) -> None:
        for block, (module, weight) in weights_of(self.bench.model, self.places, row):
            first = output_first(weight.detach(), module)

            def made(number: int, block: Block = block, first: Tensor = first) -> Tensor:
                key = block.start, options[number].weight
                if key not in self._rounded:
                    ranges = self.bench.recipe.ranges
                    self._rounded[key] = rounded_apart(first, key[1], block.width, ranges)
                return self._rounded[key]

            found = _mixed(first, taken[block.start : block.stop], block.width, made)
            weight.data = output_first(found, module).contiguous()

    def _input(
        self, row: int, taken: NDArray[np.integer], options: Sequence[Option]
    ) -> Format | None:
        kinds = map(int, np.unique(taken[self.places.rows(row)]))
        found = {None if k == KEPT else options[k].activation.as_activation() for k in kinds}
        full = {f for f in found if f is None or not f.quantized}
        if len(found) > 1 and found != full:
            said = " and ".join(sorted("none" if f is None else str(f) for f in found))
            raise ValueError(
                f"places of layer {self.places.coarse.layers[row].name!r} were given {said} for"
                " what it reads; what a layer reads has one format: give them the same"
            )
        return None if full else found.pop()


def weights_of(
    model: nn.Module, places: Places, row: int
) -> list[tuple[Block, tuple[nn.Module, nn.Parameter]]]:
    """The weights of a layer, each once, with the block of places that it is."""
    modules = {site.name: site.module for site in sites(model)}
    found: dict[nn.Parameter, nn.Module] = {}
    layer: Layer = places.coarse.layers[row]
    for name in layer.modules:
        found.setdefault(module_weight(model, name), modules[name])
    blocks = [block for block in places.blocks if block.layer == row]
    pairs = [(module, weight) for weight, module in found.items()]
    shapes = [
        tuple(output_first(w, m).reshape(len(output_first(w, m)), -1).shape) for m, w in pairs
    ]
    if shapes != [block.shape for block in blocks]:
        raise ValueError(
            f"layer {layer.name!r} stores weights of {shapes} rows and columns, the network says"
            f" {[block.shape for block in blocks]}; give the network of this model"
        )
    return list(zip(blocks, pairs, strict=True))
