"""Operators of torch on codes: what moves, averages or clamps them, or takes the largest."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from mpsearch.kernels.capture import called
from mpsearch.kernels.code_graph import PLAIN, Ready, Steps
from mpsearch.kernels.code_steps import Sum
from mpsearch.kernels.onnx_layers import each
from mpsearch.kernels.onnx_moves import CLAMPS, MOVES, POOLS
from mpsearch.quant.activations import Grid

UNSAID = ("getitem", "sym_size")  # that compute nothing
_ATEN = torch.ops.aten
_ENDS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}


def of_codes(
    steps: Steps, node: Any, codes: Sequence[Ready], rest: Any, kwargs: Mapping[str, Any]
) -> Ready | None:
    """An operator on a tensor of codes, or on several of one grid; ``None`` where it takes floats.

    The other arguments are given as floats.
    """
    name, (first, *_) = called(node), codes
    grid: Any = first.grid
    said = "" if name in UNSAID else f"{name} of codes"
    operator, x = target(node), [one.node for one in codes] if name == "cat" else first.node
    if name in POOLS:
        units = steps.step(
            Sum([Grid(1.0, grid.zero, 0, 255)], PLAIN), [first.node], f"{name}.units"
        )
        found = steps.called(operator, (units, *rest), kwargs, said)
        return Ready(steps.called(_ATEN.mul.Tensor, (found, grid.scale), {}))
    if ends(node) == (0, math.inf):
        operator, rest = _ATEN.clamp_min.default, (grid.zero,)
    elif name == "max_pool2d" and len(shape(node)) == 4 and not kwargs:
        operator, rest = torch.ops.quantized.max_pool2d.default, _window(*rest)
    elif name in ("pad", "constant_pad_nd"):
        if kwargs or any(more not in ("constant", 0, None) for more in rest[1:]):
            return None
        operator, rest = _ATEN.constant_pad_nd.default, (rest[0], grid.zero)
    elif name != "sym_size" and (name not in MOVES or name == "max_pool1d"):
        return None
    return Ready(steps.called(operator, (x, *rest), kwargs, said), grid)


def ends(node: Any) -> tuple[float, float] | None:
    """What a clamp raises to, and what it lowers to; ``None`` where these are not numbers."""
    name = called(node)
    if name not in CLAMPS or node.kwargs:
        return None
    known = _ENDS.get(name, (None, None))
    given = [*node.args[1:3], *known[len(node.args) - 1 :]]
    if any(isinstance(end, Node) for end in given):
        return None
    low, high = given
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def shape(node: Any) -> tuple[str, ...]:
    """Sides, free ones by the name they have."""
    return tuple(map(str, node.meta["val"].shape))


def target(node: Any) -> Any:
    """The operator, of any layout in memory."""
    return _ATEN.reshape.default if called(node) in ("view", "_unsafe_view") else node.target


def _window(
    kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> tuple[Any, ...]:
    """The words of a pool, two of each."""
    words = kernel, stride or kernel, padding, dilation
    return *(each(word, 2) for word in words), ceil
