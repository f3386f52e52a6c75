"""A call's arguments, with the tensor that a layer reads rounded."""

from typing import Any

from torch import Tensor, nn

from mpsearch.quant.activations import Grid, fake_quantize


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


def rounding(grid: Grid) -> Any:
    """A hook before a module's forward that does so."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return rounded(args, kwargs, grid)

    return hook
