"""A working copy of a model, on which layers are quantized for a while and the output is seen.

Calibration is done once; the original is never touched. What a layer's weight becomes in a format
is kept, and what lies before the first quantized layer is computed once.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call, checked, joined
from mpsearch.formats import Format, Option
from mpsearch.quant import activations, integers
from mpsearch.quant.activations import Grid, Seen, fake_quantize
from mpsearch.quant.attention import explicit
from mpsearch.quant.corrections import Moments, correcting, float_moments, undone
from mpsearch.quant.integers import Codes, encode
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.replay import Replay
from mpsearch.tracing import module_weight, output_first, sites

_KEPT = Format.parse("fp32")


class Bench:
    """A copy of a model in eval mode, calibrated, with attention made explicit.

    Attributes:
        model: The copy; nothing in it wants gradients.
        recipe: How layers are quantized.
        batch: The calibration samples, as one batch.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], names: Sequence[str], recipe: Recipe
    ) -> None:
        """Copy the model and run it on the batches.

        ``names`` are the modules that options will be given to. Raises ``KeyError`` where the
        model has no such module, ``ValueError`` on NaN in weights or inputs.
        """
        self.recipe = recipe
        self.model = explicit(copy.deepcopy(model)).eval().requires_grad_(False)
        self.batch = joined(checked(batches), recipe.samples)
        self._weights = {name: module_weight(self.model, name) for name in names}
        named = {id(weight) for weight in self._weights.values()}
        for site in sites(self.model):  # those that share a weight see it quantized too
            if site.weight is not None and id(site.weight) in named:
                self._weights.setdefault(site.name, site.weight)
        self._layers = {name: self.model.get_submodule(name) for name in self._weights}
        self._codes: dict[tuple[int, Format], Codes] = {}
        self._grids: dict[tuple[str, Format], Grid | None] = {}
        self._seen = self._calibrated(batches)

    @torch.no_grad()
    def _calibrated(self, batches: Sequence[Any]) -> dict[str, Seen]:
        seen: dict[str, Seen] = {}

        def watch(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                for x in [*args, *kwargs.values()]:
                    if isinstance(x, Tensor) and x.is_floating_point():
                        _named(name, seen.setdefault(name, Seen()).add, x, len(batches))
                        return

            return hook

        with ExitStack() as stack:
            for name, module in self._layers.items():
                hook = module.register_forward_pre_hook(watch(name), with_kwargs=True)
                stack.callback(hook.remove)
            for batch in batches:
                call(self.model, batch)
        return seen

    @cached_property
    def replay(self) -> Replay:
        """The float forward on the calibration samples, remembered."""
        return Replay(self.model, self.batch, list(self._layers))

    @cached_property
    def _moments(self) -> Moments:
        with torch.no_grad():
            return float_moments(self.model, self._layers, lambda: call(self.model, self.batch))

    @property
    def reference(self) -> Tensor:
        """The float model's output on the calibration samples."""
        return self.replay.reference

    def codes(self, name: str, form: Format) -> Codes:
        """A layer's weight as stored in a format, outputs first."""
        weight = self._weights[name]
        key = (id(weight), integers.supported(form))
        if key not in self._codes:
            first = output_first(weight, self._layers[name])
            self._codes[key] = _named(name, encode, first, form, self.recipe.ranges)
        return self._codes[key]

    def grid(self, name: str, form: Format) -> Grid | None:
        """The grid of a layer's input; ``None`` where it stays as it is."""
        if isinstance(self._layers[name], nn.Embedding):
            return None  # it reads indices
        if activations.supported(form).kind != "full" and name not in self._seen:
            raise ValueError(
                f"module {name!r} is not called on the calibration batches, so its input has no"
                " range; give batches that reach it, or leave its activations at 16 bits"
            )
        key = (name, activations.supported(form))
        if key not in self._grids:
            seen = self._seen.get(name)
            self._grids[key] = None if seen is None else seen.grid(form, self.recipe)
        return self._grids[key]

    def complete(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """The options of every module that changes, those included that share a weight."""
        return {n: o for n, o in shared(self._weights, options).items() if changes(o)}

    @contextmanager
    def at(self, options: Mapping[str, Option]) -> Iterator[nn.Module]:
        """The copy with these modules quantized and corrected; as before on the way out."""
        with self._quantized(options) as layers, undone(self.model, list(layers.values())):
            if layers and self.recipe.corrections:
                with torch.no_grad(), correcting(self._moments, layers):
                    call(self.model, self.batch)
            yield self.model

    @torch.no_grad()
    def outputs(self, options: Mapping[str, Option]) -> Tensor:
        """The output on the calibration samples with these modules quantized and corrected."""
        replay = self.replay
        with self._quantized(options) as layers, undone(self.model, list(layers.values())):
            if not layers:
                return replay.reference
            if not self.recipe.corrections:
                return replay.run(list(layers))
            with correcting(self._moments, layers):
                return replay.run(list(layers))

    @contextmanager
    def _quantized(self, options: Mapping[str, Option]) -> Iterator[dict[str, nn.Module]]:
        """Weights swapped and inputs rounded; yields the modules that changed."""
        given = self.complete(options)
        changed = {name: self._layers[name] for name in given}
        if self.recipe.corrections and changed:
            _ = self._moments  # while the copy is still the float one
        before = {name: self._weights[name].data for name in changed}
        with ExitStack() as stack:
            try:
                for name, module in changed.items():
                    self._weights[name].data = self._dequantized(name, given[name].weight)
                    grid = self.grid(name, given[name].activation)
                    if grid is not None:
                        hook = module.register_forward_pre_hook(_rounding(grid), with_kwargs=True)
                        stack.callback(hook.remove)
                yield changed
            finally:
                for name, data in before.items():
                    self._weights[name].data = data

    def _dequantized(self, name: str, form: Format) -> Tensor:
        weight = self._weights[name]
        if integers.supported(form).base == "fp32":
            return weight.data
        values = self.codes(name, form).dequantize().to(weight.dtype)
        return output_first(values, self._layers[name]).contiguous()  # its own inverse


def shared(
    weights: Mapping[str, nn.Parameter | None], options: Mapping[str, Option]
) -> dict[str, Option]:
    """The options, and for modules that share a weight with one of these, its weight format.

    ``weights`` are those of all modules by name. Raises ``KeyError`` for a module not among them
    and ``ValueError`` where two formats are given to one weight.
    """
    given = dict(options)
    owners: dict[int, str] = {}
    for name in options:
        if name not in weights:
            raise KeyError(
                f"the model was prepared without module {name!r}; name it when making the bench"
            )
        owners.setdefault(id(weights[name]), name)
    for name, weight in weights.items():
        owner = owners.get(id(weight))
        if owner is None:
            continue
        form = options[owner].weight
        other = given.setdefault(name, Option({"weight": form, "activation": _KEPT}))
        if other.weight != form:
            raise ValueError(
                f"modules {owner!r} and {name!r} share one weight and were given"
                f" {str(options[owner])!r} and {str(other)!r}; give both the same option"
            )
    return given


def changes(option: Option) -> bool:
    """Whether an option changes anything; ``ValueError`` where a format is not supported yet."""
    if option.method is not None:
        raise ValueError(
            f"option {str(option)!r} names method {option.method!r}, which is not there yet; leave"
            " it out, and weights are rounded as the recipe says"
        )
    weight, inputs = integers.supported(option.weight), activations.supported(option.activation)
    return weight.base != "fp32" or inputs.kind != "full"


def _rounding(grid: Grid) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return rounded(args, kwargs, grid)

    return hook


def rounded(
    args: tuple[Any, ...], kwargs: dict[str, Any], grid: Grid
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the first floating tensor among them on the grid."""
    for place, x in enumerate(args):
        if isinstance(x, Tensor) and x.is_floating_point():
            return (*args[:place], fake_quantize(x, grid), *args[place + 1 :]), kwargs
    for key, x in kwargs.items():
        if isinstance(x, Tensor) and x.is_floating_point():
            return args, kwargs | {key: fake_quantize(x, grid)}
    return args, kwargs


def _named(name: str, compute: Any, *args: Any) -> Any:
    """Call, with the layer's name before what a ``ValueError`` says."""
    try:
        return compute(*args)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from None
