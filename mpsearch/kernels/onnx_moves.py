"""torch's operators that move values, take the largest of some, average or clamp them, in ONNX's.

What only moves values, or takes the largest of some, moves codes where it is given codes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch.fx import Node

from mpsearch.kernels.onnx_graph import Graph, Value
from mpsearch.kernels.onnx_layers import each

_END = (1 << 63) - 1


class Writing(Protocol):
    """What an operator is given: the graph, its node of the network, what its arguments became."""

    graph: Graph
    node: Node

    def value(self, of: Any) -> Value:
        """A tensor of the traced network."""
        ...

    def floats(self, of: Any, like: Any = None) -> str:
        """The name of a tensor or a number, the latter in the type of another tensor."""
        ...

    def samples(self, side: Any) -> str:
        """The name of a tensor that holds a side of a shape: the number of samples."""
        ...


Operator = Callable[..., Value | list[Value]]


def _clamp(w: Writing, x: Any, least: Any = None, most: Any = None) -> Value:
    low, high = (
        float(end) if end is not None else sign * math.inf for end, sign in ((least, -1), (most, 1))
    )
    value = w.value(x)
    if value.grid is None:
        return value.clamped(low, high)
    if (low, high) == (0, math.inf):
        zero = w.graph.constant(np.array(value.grid.zero, np.uint8))
        return Value(w.graph.add("Max", [value.name, zero]), value.grid)
    return Value(w.graph.floats(value)).clamped(low, high)


def _relu(w: Writing, x: Any) -> Value:
    return _clamp(w, x, 0)


def _hardtanh(w: Writing, x: Any, least: float = -1, most: float = 1) -> Value:
    return _clamp(w, x, least, most)


def _mean(w: Writing, x: Any, axes: Any = None, keep: bool = False) -> Value:
    count = len(shape_of(x))
    which = sorted(axis % count for axis in (range(count) if axes is None else axes))
    if count > 2 and which == [*range(2, count)]:  # what runtimes have for codes
        found = w.graph.add("GlobalAveragePool", [w.floats(x)])
        return Value(found, shape=None if keep else shape_of(w.node))
    names = [w.floats(x), w.graph.constant(np.array(which, np.int64))]
    return Value(w.graph.add("ReduceMean", names, keepdims=int(keep)))


def _adaptive(w: Writing, x: Any, *_: Any) -> Value:
    image, wanted = shape_of(x)[2:], shape_of(w.node)[2:]
    if set(wanted) == {1}:
        return Value(w.graph.add("GlobalAveragePool", [w.floats(x)]))
    if any(side % out for side, out in zip(image, wanted, strict=True)):
        raise NotImplementedError(
            f"adaptive pooling from {image} to {wanted}, which are no multiples"
        )
    step = [side // out for side, out in zip(image, wanted, strict=True)]
    return Value(w.graph.add("AveragePool", [w.floats(x)], kernel_shape=step, strides=step))


def _average(
    w: Writing,
    x: Any,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    _ceil: bool = False,
    padded: bool = True,
    divisor: Any = None,
) -> Value:
    if divisor is not None:
        raise NotImplementedError("average pooling with a divisor of its own")
    words = _window(w.node, kernel, stride, padding)
    sides = zip(shape_of(x)[2:], shape_of(w.node)[2:], *words.values(), strict=False)
    if any((side + 2 * pad - size) // step + 1 != out for side, out, size, step, pad in sides):
        raise NotImplementedError("average pooling over less than a window")  # ORT's is wrong
    words["count_include_pad"] = int(padded)
    return Value(w.graph.add("AveragePool", [w.floats(x)], **words))


def _largest(
    w: Writing,
    x: Any,
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> Value:
    words = _window(w.node, kernel, stride, padding)
    dilations = each(dilation, len(words["kernel_shape"]))
    return _moved(w, x, "MaxPool", dilations=dilations, ceil_mode=int(ceil), **words)


def _window(node: Node, kernel: Any, stride: Any, padding: Any) -> dict[str, Any]:
    axes = len(shape_of(node)) - 2
    return {
        "kernel_shape": each(kernel, axes),
        "strides": each(stride or kernel, axes),
        "pads": each(padding, axes) * 2,
    }


def _moved(w: Writing, x: Any, op: str, *more: str, **words: Any) -> Value:
    """An operator that writes values it reads: of codes where it is given codes."""
    value = w.value(x)
    name = value.name if value.grid is not None else w.graph.floats(value)
    return Value(w.graph.add(op, [name, *more], **words), value.grid)


def _view(w: Writing, x: Any, *_: Any, **__: Any) -> Value:
    return _moved(w, x, "Reshape", w.graph.constant(np.array(shape_of(w.node), np.int64)))


def _permute(w: Writing, x: Any, axes: Sequence[int]) -> Value:
    count = len(shape_of(x))
    return _moved(w, x, "Transpose", perm=[axis % count for axis in axes])


def transpose(w: Writing, x: Any, one: int = 0, other: int = 1) -> Value:
    """Two axes of a tensor, each in the other's place."""
    axes = [*range(len(shape_of(x)))]
    axes[one], axes[other] = axes[other], axes[one]
    return _permute(w, x, axes)


def _slice(
    w: Writing, x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    start, end = start or 0, _END if end is None else end
    if (start, step) == (0, 1) and shape_of(x) == shape_of(w.node):
        return w.value(x)
    if not (isinstance(start, int) and isinstance(end, int)):
        raise NotImplementedError("a slice up to the number of samples")
    more = [w.graph.constant(np.array([n], np.int64)) for n in (start, end, axis, step)]
    return _moved(w, x, "Slice", *more)


def _select(w: Writing, x: Any, axis: int, index: int) -> Value:
    return _moved(w, x, "Gather", w.graph.constant(np.array(index, np.int64)), axis=axis)


def _expand(w: Writing, x: Any, *_: Any, **__: Any) -> Value:
    wanted, given = shape_of(w.node), shape_of(x)
    before = (1,) * (len(wanted) - len(given)) + given
    shape = [1 if new == old else new for new, old in zip(wanted, before, strict=True)]
    if -1 not in shape:
        return _moved(w, x, "Expand", w.graph.constant(np.array(shape, np.int64)))
    axis = shape.index(-1)
    parts = [w.graph.constant(np.array(n, np.int64)) for n in (shape[:axis], shape[axis + 1 :])]
    parts.insert(1, w.samples(w.node.meta["val"].shape[axis]))
    return _moved(w, x, "Expand", w.graph.add("Concat", parts, axis=0))


def _split(w: Writing, x: Any, _sizes: Any, axis: int = 0) -> list[Value]:
    value = w.value(x)
    name = value.name if value.grid is not None else w.graph.floats(value)
    parts = [shape_of(part)[axis] for part in w.node.meta["val"]]
    each = w.graph.constant(np.array(parts, np.int64))
    names = w.graph.several("Split", [name, each], len(parts), axis=axis)
    return [Value(part, value.grid) for part in names]


def _getitem(w: Writing, x: Any, index: int) -> Value:
    of: Any = w.value(x)
    found: Value = of[index]
    return found


def _pad(
    w: Writing, x: Any, pads: Sequence[int], mode: str = "constant", fill: Any = None
) -> Value:
    if mode != "constant":
        raise NotImplementedError(f"padding by {mode!r}")
    ends = np.zeros((len(shape_of(x)), 2), np.int64)
    ends[len(ends) - len(pads) // 2 :] = np.array(pads).reshape(-1, 2)[::-1]
    value = w.value(x)
    if value.grid is None or fill:
        value = Value(w.graph.floats(value))
    filled = (
        np.array(fill or 0, np.float32)
        if value.grid is None
        else np.array(value.grid.zero, np.uint8)
    )
    names = [value.name, w.graph.constant(ends.T.reshape(-1)), w.graph.constant(filled)]
    return Value(w.graph.add("Pad", names), value.grid)


def _filled(w: Writing, x: Any, pads: Sequence[int], fill: Any = 0) -> Value:
    return _pad(w, x, pads, "constant", fill)


def _cat(w: Writing, parts: Sequence[Any], axis: int = 0) -> Value:
    values = [w.value(part) for part in parts]
    grid = values[0].grid
    if any(value.grid != grid for value in values):
        grid = None
    names = [w.graph.floats(v) if grid is None else v.name for v in values]
    return Value(w.graph.add("Concat", names, axis=axis), grid)


def _same(w: Writing, x: Any, *_: Any, **__: Any) -> Value:
    return w.value(x)


def fixed(side: Any) -> int | None:
    """A side of a shape, ``None`` where it varies; a model may have fixed one that was free."""
    known: int | None = side if isinstance(side, int) else side.node.maybe_as_int()
    return known


def shape_of(node: Any) -> tuple[int, ...]:
    """The shape of a tensor of the traced network, -1 for the number of samples."""
    given = node.meta["val"] if isinstance(node, Node) else node
    shape = tuple(-1 if side is None else side for side in map(fixed, given.shape))
    if shape.count(-1) > 1:
        raise NotImplementedError(
            f"a tensor of shape {tuple(given.shape)} with two sides that vary"
        )
    return shape


MOVES: Mapping[str, Operator] = {
    **dict.fromkeys(("alias", "clone", "detach"), _same),
    "view": _view,
    "_unsafe_view": _view,
    "reshape": _view,
    "unsqueeze": _view,
    "squeeze": _view,
    "permute": _permute,
    "transpose": transpose,
    "t": transpose,
    "slice": _slice,
    "select": _select,
    "expand": _expand,
    "split": _split,
    "split_with_sizes": _split,
    "getitem": _getitem,
    "pad": _pad,
    "constant_pad_nd": _filled,
    "cat": _cat,
    "max_pool1d": _largest,
    "max_pool2d": _largest,
}
CLAMPS: Mapping[str, Operator] = {
    "relu": _relu,
    "hardtanh": _hardtanh,
    "relu6": lambda w, x: _clamp(w, x, 0, 6),
    "clamp": _clamp,
    "clamp_min": _clamp,
}
POOLS: Mapping[str, Operator] = {
    "mean": _mean,
    "adaptive_avg_pool1d": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
    "avg_pool1d": _average,
    "avg_pool2d": _average,
}
