"""The quantized network: a new module whose layers hold codes, equal to what was measured."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mpsearch.allocation import Allocation
from mpsearch.formats import Option
from mpsearch.quant import activations
from mpsearch.quant.activations import Grid
from mpsearch.quant.attention import explicit
from mpsearch.quant.bench import Bench, at_layer, changes, shared
from mpsearch.quant.bos import no_first, put_first
from mpsearch.quant.codes import Codes
from mpsearch.quant.corrections import norms_of
from mpsearch.quant.encoding import encode
from mpsearch.quant.inputs import channel_axis
from mpsearch.quant.modules import Stored, settle, share, store, train
from mpsearch.quant.preparing import prepare
from mpsearch.quant.recipe import Ranges, Recipe
from mpsearch.tracing import module_weight, output_first, sites

Options = Mapping[str, Option | str]


def quantize(
    model: nn.Module,
    allocation: Options | Allocation,
    batches: Sequence[Any],
    recipe: Recipe | None = None,
    *,
    trainable: bool = False,
) -> nn.Module:
    """A new module with each layer at its option, in eval mode; ``model`` is left as it was.

    ``allocation`` maps modules to options. Ranges and corrections are computed on ``batches``, as
    the recipe says: the one given, else the allocation's own, else the default. Fused attention
    becomes explicit. Raises ``KeyError`` for a module the model does not have and ``ValueError``
    for a format that cannot be rounded to yet.

    Where it is ``trainable``, layers keep float weights that are rounded at every call, with
    gradients as :mod:`mpsearch.quant.training` says; :func:`packed` ends that. What wants gradients
    is what does in ``model``.
    """
    options = _changed(allocation)
    recipe = recipe or _recipe(allocation)
    bench = Bench(model, batches, list(options), recipe)
    options = bench.complete(options)
    new = explicit(copy.deepcopy(model)).eval()
    prepare(new, bench.batch, recipe)
    grids = {name: bench.grid(name, option.activation) for name, option in options.items()}
    with torch.no_grad(), bench.stored(options) as found:
        for mine, theirs in zip(norms_of(new), norms_of(bench.model), strict=True):
            mine.load_state_dict(theirs.state_dict())
        for name in options:
            bias = getattr(bench.model.get_submodule(name), "bias", None)
            if bias is not None:
                _set_bias(new.get_submodule(name), bias)

    def codes(name: str, option: Option) -> Codes:
        return found[name] if name in found else bench.codes(name, option.weight, option.method)

    _store(new, options, grids, codes, recipe.ranges if trainable else None)
    return put_first(new, {name: x for name, x in bench.first.items() if name in options})


def packed(model: nn.Module) -> nn.Module:
    """What was trained as :func:`quantize` returns it otherwise, in eval mode: codes, no floats.

    Raises:
        ValueError: A model in which no layer is trainable, or weights that are not finite.
    """
    new = copy.deepcopy(model).eval()
    first: dict[int, Stored] = {}
    for name, module in new.named_modules():
        if isinstance(module, Stored) and module.master is not None:
            owner = first.setdefault(id(module.master), module)
            if owner is module:
                at_layer(name, settle, module)
            else:
                share(module, owner)
    if not first:
        raise ValueError(
            f"this {type(model).__name__} has no layer that was trained; give what"
            " quantize(..., trainable=True) returned"
        )
    return new


def quantized_like(
    model: nn.Module, allocation: Options | Allocation, recipe: Recipe | None = None
) -> nn.Module:
    """The module :func:`quantize` returns but for its numbers, which ``load_state_dict`` brings.

    Of the recipe, the one given or the allocation's own, it wants to know ``bos``.
    """
    options = _changed(allocation)
    patterns = (recipe or _recipe(allocation)).bos
    new = explicit(copy.deepcopy(model)).eval()
    for name in options:
        module_weight(new, name)
    weights = {site.name: site.weight for site in sites(new)}
    options = _changed(shared(weights, options))
    grids: dict[str, Grid | None] = {}
    for name, option in options.items():
        inputs = activations.supported(option.activation)
        reads = inputs.kind != "full" and not isinstance(new.get_submodule(name), nn.Embedding)
        grids[name] = (
            activations.Seen().grid(inputs, Recipe(), channel_axis(new.get_submodule(name)))
            if reads
            else None
        )

    def codes(name: str, option: Option) -> Codes:
        first = output_first(module_weight(new, name), new.get_submodule(name))
        return encode(first, option.weight, "minmax")

    first = no_first(new, patterns)
    _store(new, options, grids, codes)
    return put_first(new, {name: x for name, x in first.items() if name in options})


def by_module(allocation: Options | Allocation) -> dict[str, Option]:
    """The option of each module, read."""
    given: Mapping[str, Option | str] = (
        allocation.by_module() if isinstance(allocation, Allocation) else allocation
    )
    return {n: Option.parse(o) if isinstance(o, str) else o for n, o in given.items()}


def _recipe(allocation: Options | Allocation) -> Recipe:
    """The allocation's own, or the default."""
    return Recipe.read(allocation.recipe if isinstance(allocation, Allocation) else None)


def _changed(allocation: Options | Allocation) -> dict[str, Option]:
    return {n: option for n, option in by_module(allocation).items() if changes(option)}


def _store(
    new: nn.Module,
    options: Mapping[str, Option],
    grids: Mapping[str, Grid | None],
    codes: Callable[[str, Option], Codes],
    trained: Ranges | None = None,
) -> None:
    """Replace weights by codes; modules that share a weight share its codes.

    Those that are ``trained`` keep it, to be rounded again in these ranges.
    """
    weights = {name: module_weight(new, name) for name in options}
    first: dict[int, nn.Module] = {}
    for name, option in options.items():
        module, weight = new.get_submodule(name), weights[name]
        if isinstance(module, Stored):
            continue  # the same module under another name
        rows = output_first(weight, module)
        made = store(module, option, codes(name, option), grids[name], weight.dtype)
        if id(weight) in first:
            share(made, first[id(weight)])
        elif trained:
            train(made, rows, trained)
        first.setdefault(id(weight), made)


def _set_bias(module: nn.Module, bias: torch.Tensor) -> None:
    own = module.bias
    if isinstance(own, torch.Tensor):
        own.copy_(bias)
    else:
        module.bias = nn.Parameter(bias.clone(), module.get_parameter("weight").requires_grad)
