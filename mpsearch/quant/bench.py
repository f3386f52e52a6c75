"""A working copy of a model, on which layers are quantized for a while and the output is seen.

Calibration is done once; the original is never touched. What a layer's weight becomes in a format
is kept, and what lies before the first quantized layer is computed once.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call, checked, joined, samples
from mpsearch.formats import Format, Option
from mpsearch.quant import activations
from mpsearch.quant.activations import Grid, Seen
from mpsearch.quant.arguments import read, rounding
from mpsearch.quant.attention import explicit
from mpsearch.quant.bos import keep_first
from mpsearch.quant.codes import Codes
from mpsearch.quant.corrections import Corrected, Moments, correcting, float_moments, undone
from mpsearch.quant.encoding import supported
from mpsearch.quant.input_hessian import InputHessians
from mpsearch.quant.inputs import channel_axis
from mpsearch.quant.memory import Needs, readable
from mpsearch.quant.preparing import prepare
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.replay import Replay, refuse_inference_mode
from mpsearch.quant.rounding import Rounded, method_of
from mpsearch.quant.spreading import put
from mpsearch.tracing import module_weight, sites

_KEPT = Format.parse("fp32")


class Bench:
    """A copy of a model in eval mode, calibrated, with attention made explicit.

    Attributes:
        model: The copy; nothing in it wants gradients.
        recipe: How layers are quantized.
        batch: The calibration samples that corrections look at, as one batch.
        first: What layers write for first tokens where the recipe keeps them, by name.
        called: Modules among those named that ran on the batches.
        memory: Most bytes to run and to keep samples in, beside the copy and its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        names: Sequence[str],
        recipe: Recipe,
        *,
        memory: float = math.inf,
    ) -> None:
        """Copy the model and run it on the batches.

        ``names`` are the modules that options will be given to. Raises ``KeyError`` where the
        model has no such module, ``ValueError`` on NaN in weights or inputs, and where one batch
        cannot be run within the memory.
        """
        refuse_inference_mode()
        self.recipe, self.memory = recipe, memory
        self.model = explicit(copy.deepcopy(model)).eval().requires_grad_(False)
        self.batch = joined(checked(batches), recipe.samples)
        prepare(self.model, self.batch, recipe)
        self.first = keep_first(self.model, batches, recipe.bos)
        self._weights = {name: module_weight(self.model, name) for name in names}
        named = {id(weight) for weight in self._weights.values()}
        for site in sites(self.model):  # those that share a weight see it quantized too
            if site.weight is not None and id(site.weight) in named:
                self._weights.setdefault(site.name, site.weight)
        self._layers = {name: self.model.get_submodule(name) for name in self._weights}
        owners = {id(weight): name for name, weight in reversed(self._weights.items())}
        most = max(map(samples, batches))
        hessians = InputHessians.of(self.model, [self.batch], list(owners.values())[::-1], most)
        self._rounded = Rounded(recipe, self._weights, self._layers, hessians)
        self._grids: dict[tuple[str, Format], Grid | None] = {}
        self._needs = Needs(0, 0) if math.isinf(memory) else self._measured(batches)
        self.called: set[str] = set()
        self._seen = self._calibrated(batches)

    @torch.no_grad()
    def _measured(self, batches: Sequence[Any]) -> Needs:
        """What the largest batch takes; ``ValueError`` where that is too much."""
        needs = Needs.of(self.model, max(batches, key=samples), list(self._layers))
        looked = samples(self.batch) if self.recipe.corrections else 0
        count, which, place = max(
            (max(map(samples, batches)), "your largest batch", "a batch"),
            (looked, "those that corrections look at", "in the recipe"),
        )
        if needs.running * count > self.memory:
            raise ValueError(
                f"a memory of {readable(self.memory)} is too small: to run {count} samples at once,"
                f" {which}, takes about {readable(needs.running * count)}; give that much, or fewer"
                f" samples {place}"
            )
        return needs

    @torch.no_grad()
    def _calibrated(self, batches: Sequence[Any]) -> dict[str, Seen]:
        seen: dict[str, Seen] = {}
        count, times = sum(map(samples, batches)), 1.0

        def watch(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.called.add(name)
                x = read(args, kwargs)
                if x is not None:
                    at_layer(name, seen.setdefault(name, Seen()).add, x, times)

            return hook

        with ExitStack() as stack:
            for name, module in self._layers.items():
                hook = module.register_forward_pre_hook(watch(name), with_kwargs=True)
                stack.callback(hook.remove)
            for batch in batches:
                times = count / samples(batch)
                call(self.model, batch)
        return seen

    @cached_property
    def replay(self) -> Replay:
        """The float forward on the calibration samples, remembered."""
        return self.remembered(self.batch)

    def remembered(self, batch: Any) -> Replay:
        """The float forward on some samples, remembered as far as the memory allows."""
        memory = self.memory - self._needs.running * samples(batch)
        return Replay(self.model, batch, list(self._layers), memory=memory)

    @property
    def most(self) -> int:
        """How many samples can be run at once with nothing computed again."""
        return self._needs.most(self.memory)

    def release(self) -> None:
        """Forget the forward on the calibration samples."""
        self.__dict__.pop("replay", None)

    @cached_property
    def _moments(self) -> Moments:
        with torch.no_grad():
            run = partial(call, self.model, self.batch)
            return float_moments(self.model, self._layers, run, self.recipe.corrections)

    @property
    def reference(self) -> Tensor:
        """The float model's output on the calibration samples."""
        return self.replay.reference

    def codes(self, name: str, form: Format, method: str | None = None) -> Codes:
        """A layer's weight as stored in a format, outputs first.

        ``method`` is how it is rounded where that is not as the recipe says.
        """
        method = method_of(Option({"weight": form, "activation": _KEPT}, method), self.recipe)
        found: Codes = at_layer(name, self._rounded.codes, name, form, method)
        return found

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
            seen, axis = self._seen.get(name), channel_axis(self._layers[name])
            self._grids[key] = None if seen is None else seen.grid(form, self.recipe, axis)
        return self._grids[key]

    def complete(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """The options of every module that changes, those included that share a weight."""
        return {n: o for n, o in shared(self._weights, options).items() if changes(o)}

    @contextmanager
    def at(self, options: Mapping[str, Option]) -> Iterator[nn.Module]:
        """The copy with these modules quantized and corrected; as before on the way out."""
        with self.stored(options):
            yield self.model

    @contextmanager
    def stored(self, options: Mapping[str, Option]) -> Iterator[dict[str, Codes]]:
        """As :meth:`at`, but yields what these modules' weights are then stored as, by name."""
        moved: dict[str, Codes] = {}
        with self._quantized(options) as (layers, codes):
            if layers and self.recipe.corrections:
                with torch.no_grad(), correcting(self._moments, layers, codes) as moved:
                    call(self.model, self.batch)
            yield codes | moved

    def outputs(self, options: Mapping[str, Option]) -> Tensor:
        """The output on the calibration samples with these modules quantized and corrected."""
        return self.corrected(options)[0]

    @torch.no_grad()
    def corrected(self, options: Mapping[str, Option]) -> tuple[Tensor, Corrected]:
        """The output on the calibration samples, and what was corrected on them."""
        replay = self.replay
        with self._quantized(options) as (layers, codes):
            if not layers:
                return replay.reference, Corrected()
            if not self.recipe.corrections:
                return replay.run(list(layers)), Corrected()
            with correcting(self._moments, layers, codes) as moved:
                output = replay.run(list(layers))
            return output, Corrected.of(self._moments, layers, moved)

    @torch.no_grad()
    def returned(self, options: Mapping[str, Option], found: Corrected, on: Replay) -> Any:
        """What the model returns for other samples, corrected as was found on its own."""
        with self._quantized(options) as (layers, _):
            found.apply()
            return on.returned(list(layers))

    @contextmanager
    def _quantized(
        self, options: Mapping[str, Option]
    ) -> Iterator[tuple[dict[str, nn.Module], dict[str, Codes]]]:
        """Weights swapped and inputs rounded; yields what changed, and codes where it has some."""
        given = self.complete(options)
        changed = {name: self._layers[name] for name in given}
        if self.recipe.corrections and changed:
            _ = self._moments  # while the copy is still the float one
        before = {name: self._weights[name].data for name in changed}
        codes = {
            name: self.codes(name, option.weight, option.method)  # likewise
            for name, option in given.items()
            if supported(option.weight).base != "fp32"
        }
        with ExitStack() as stack:
            stack.enter_context(undone(self.model, list(changed.values())))
            try:
                for name, module in changed.items():
                    if name in codes:
                        put(codes[name], module)
                    grid = self.grid(name, given[name].activation)
                    if grid is not None:
                        hook = module.register_forward_pre_hook(rounding(grid), with_kwargs=True)
                        stack.callback(hook.remove)
                yield changed, codes
            finally:
                for name, data in before.items():
                    self._weights[name].data = data


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
        form, method = options[owner].weight, options[owner].method
        other = given.setdefault(name, Option({"weight": form, "activation": _KEPT}, method))
        if (other.weight, other.method) != (form, method):
            raise ValueError(
                f"modules {owner!r} and {name!r} share one weight and were given"
                f" {str(options[owner])!r} and {str(other)!r}; give both the same option"
            )
    return given


def changes(option: Option) -> bool:
    """Whether an option changes anything; ``ValueError`` where it cannot be carried out."""
    method_of(option, Recipe())
    weight, inputs = supported(option.weight), activations.supported(option.activation)
    return weight.base != "fp32" or inputs.kind != "full"


def at_layer(name: str, compute: Any, *args: Any) -> Any:
    """Call, with the layer's name before what a ``ValueError`` says."""
    try:
        return compute(*args)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith("layer ") else f"layer {name!r}: {said}") from None
