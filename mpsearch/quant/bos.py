"""First tokens kept in floats: what all prompts begin with is not rounded, but stored (MixDQ).

From Zhao et al. 2024, MixDQ (arXiv 2405.17873). Prompts begin with one token, which to the keys and
values of cross-attention is far larger than the others, and so it is to language models that attend
to it for want of better (attention sinks: Xiao et al. 2023, arXiv 2309.17453). What such a layer
writes for it is computed once, in floats; ranges and roundings are of the tokens after it.

A layer stores one number more for each output, in its weight's type; tables of sizes, which are of
options alone, do not count these. It reads whole prompts: with a cache of keys and values, later
calls do not begin with that token.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call
from mpsearch.quant.arguments import changed, read
from mpsearch.tracing import output_first, sites

_SAME = 0.01  # of its norm: what two samples' first tokens may be apart


class FirstKept(nn.Module):
    """A layer and what it writes for the first token, (outputs,) in floats."""

    first: Tensor

    def __init__(self, layer: nn.Module, first: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("first", first)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer writes for the other tokens, after that."""
        args, kwargs = changed(args, kwargs, _others)
        return _joined(self.first, self.layer(*args, **kwargs))


@torch.no_grad()
def keep_first(
    model: nn.Module, batches: Sequence[Any], patterns: Sequence[str]
) -> dict[str, Tensor]:
    """Let layers whose name holds a pattern return, for first tokens, what they wrote on these.

    In place, by hooks that stay: hooks and operations inside see the other tokens alone.

    Returns:
        (outputs,) for each layer.

    Raises:
        ValueError: A pattern that names no layer or one that is not linear, an input without
            tokens, or a first token that is not always the same.
    """
    layers = {name: model.get_submodule(name) for name in _named(model, patterns)}
    known: dict[str, Tensor] = {}
    wrote: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(_watch(name, known, wrote), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in batches if layers else ():
            call(model, batch)
    for name, layer in layers.items():
        if name not in wrote:
            raise ValueError(
                f"layer {name!r} is not called on the calibration batches, so its first token is"
                " not known; give batches that reach it, or leave it out of the recipe's bos"
            )
        layer.register_forward_pre_hook(_before, with_kwargs=True)
        layer.register_forward_hook(_after(wrote[name]))
    return wrote


def put_first(model: nn.Module, first: Mapping[str, Tensor]) -> nn.Module:
    """The model with these layers as :class:`FirstKept`, in place unless it is one itself."""
    made: dict[nn.Module, nn.Module] = {}
    for name, values in first.items():
        layer = model.get_submodule(name)
        made[layer] = FirstKept(layer, values)
    for name, module in [*model.named_modules(remove_duplicate=False)]:
        if module in made and not name:
            return made[module]
        if module in made:
            model.set_submodule(name, made[module])
    return model


def no_first(model: nn.Module, patterns: Sequence[str]) -> dict[str, Tensor]:
    """Zeros in place of what :func:`keep_first` returns, to be loaded over."""
    weights = {site.name: (site.weight, site.module) for site in sites(model)}
    first: dict[str, Tensor] = {}
    for name in _named(model, patterns):
        weight, module = weights[name]
        if weight is not None:
            first[name] = weight.new_zeros(len(output_first(weight, module)))
    return first


def _named(model: nn.Module, patterns: Sequence[str]) -> Iterator[str]:
    """The linear layers that patterns name."""
    found = sites(model)
    for pattern in patterns:
        if not any(re.search(pattern, site.name) for site in found):
            raise ValueError(
                f"recipe: bos has {pattern!r}, which is found in the name of no layer; there are"
                f" {', '.join(repr(site.name) for site in found[:5])}"
            )
    for site in found:
        if any(re.search(pattern, site.name) for pattern in patterns):
            if site.kind != "linear":
                raise ValueError(
                    f"recipe: bos names {site.name!r}, of kind {site.kind}; wanted linear layers,"
                    " which read (samples, tokens, channels)"
                )
            yield site.name


def _watch(name: str, known: dict[str, Tensor], wrote: dict[str, Tensor]) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = read(args, kwargs)
        if x is None:
            return
        try:
            _others(x)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        tokens = x[:, 0].double()
        token = known.setdefault(name, tokens[0])
        wrote.setdefault(name, output[0, 0].clone())
        if float((tokens - token).norm(dim=-1).max()) > _SAME * float(token.norm()):
            raise ValueError(
                f"layer {name!r} reads another first token in each sample, so nothing can be stored"
                " for it; give prompts that begin with one token, or leave it out of the recipe's"
                " bos"
            )

    return hook


def _before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return changed(args, kwargs, _others)


def _after(first: Tensor) -> Any:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return _joined(first, output)

    return hook


def _others(x: Tensor) -> Tensor:
    """The tokens after the first."""
    if x.dim() != 3 or x.shape[1] < 2:
        raise ValueError(
            f"its input has shape {tuple(x.shape)}; wanted (samples, tokens, channels) with tokens"
            " after the first: leave it out of the recipe's bos"
        )
    return x[:, 1:].contiguous()  # some layers view what they read


def _joined(first: Tensor, others: Tensor) -> Tensor:
    return torch.cat([first.to(others).expand(len(others), 1, -1), others], 1)
