"""A call's arguments, with the tensor that a layer reads changed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mpsearch.quant.activations import Grid, fake_quantize


def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first floating tensor among a call's arguments."""
    given = (*args, *kwargs.values())
    return next((x for x in given if isinstance(x, Tensor) and x.is_floating_point()), None)


def changed(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the first floating tensor among them changed."""
    for place, x in enumerate(args):
        if isinstance(x, Tensor) and x.is_floating_point():
            return (*args[:place], change(x), *args[place + 1 :]), kwargs
    for key, x in kwargs.items():
        if isinstance(x, Tensor) and x.is_floating_point():
            return args, kwargs | {key: change(x)}
    return args, kwargs


def rounded(
    args: tuple[Any, ...], kwargs: dict[str, Any], grid: Grid
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with the first floating tensor among them on the grid."""
    return changed(args, kwargs, lambda x: fake_quantize(x, grid))


def rounding(grid: Grid) -> Any:
    """A hook before a module's forward that does so."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return rounded(args, kwargs, grid)

    return hook
