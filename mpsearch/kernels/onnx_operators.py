"""torch's operators in ONNX's words: a function for each, of what its inputs are in the graph."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from mpsearch.kernels import onnx_moves as moves
from mpsearch.kernels.onnx_graph import Value
from mpsearch.kernels.onnx_moves import Operator, Writing, shape_of


def _plain(op: str, **words: Any) -> Operator:
    """An operator of one tensor."""

    def write(w: Writing, x: Any, *_: Any, **__: Any) -> Value:
        return Value(_behind(w, op, [w.floats(x)], **words))

    return write


def _behind(w: Writing, op: str, names: Sequence[str], **words: Any) -> str:
    """An operator that runtimes make part of the layer before it, and so named for that."""
    return w.graph.add(op, names, name=f"{names[0].partition(':')[0]}/{op}", **words)


def _of_two(op: str) -> Operator:
    """An operator of two tensors, or of a tensor and a number."""

    def write(w: Writing, a: Any, b: Any, *, alpha: float = 1) -> Value:
        like = a if isinstance(a, Node) else b
        names = [w.floats(a, like), w.floats(b, like)]
        if alpha != 1:
            names[1] = w.graph.add("Mul", [names[1], w.floats(alpha, like)])
        fixed = op != "MatMul" and not (isinstance(b, Node) and b.op != "get_attr")
        return Value(_behind(w, op, names) if fixed else w.graph.add(op, names))

    return write


def _silu(w: Writing, x: Any) -> Value:
    name = w.floats(x)
    return Value(_behind(w, "Mul", [name, _behind(w, "Sigmoid", [name])]))


def _gelu(w: Writing, x: Any, *, approximate: str = "none") -> Value:
    return Value(w.graph.add("Gelu", [w.floats(x)], approximate=approximate))


def _rsqrt(w: Writing, x: Any) -> Value:
    return Value(w.graph.add("Reciprocal", [w.graph.add("Sqrt", [w.floats(x)])]))


def _softmax(w: Writing, x: Any, axis: int, *_: Any, **__: Any) -> Value:
    return Value(w.graph.add("Softmax", [w.floats(x)], axis=axis))


def _norm(w: Writing, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Value:
    ones = torch.ones(shape_of(x)[1])
    given = (weight, ones), (bias, ones * 0), (mean, None), (var, None)
    names = [w.floats(other if each is None else each) for each, other in given]
    read = w.floats(x)
    owner = f"{read.partition(':')[0]}/BatchNormalization"
    return Value(w.graph.add("BatchNormalization", [read, *names], name=owner, epsilon=rest[2]))


def _layer_norm(
    w: Writing, x: Any, shape: Any, weight: Any = None, bias: Any = None, *rest: Any
) -> Value:
    names = [w.floats(x), w.floats(torch.ones(shape) if weight is None else weight)]
    names += [] if bias is None else [w.floats(bias)]
    epsilon = float(rest[0]) if rest else 1e-5
    found = w.graph.add("LayerNormalization", names, axis=-len(shape), epsilon=epsilon)
    return Value(found)


def _rms_norm(w: Writing, x: Any, shape: Any, weight: Any = None, epsilon: Any = None) -> Value:
    name, add = w.floats(x), w.graph.add
    axes = w.graph.constant(np.arange(-len(shape), 0))
    square = add("ReduceMean", [add("Mul", [name, name]), axes], keepdims=1)
    least = torch.finfo(torch.float32).eps if epsilon is None else epsilon
    scale = add("Sqrt", [add("Add", [square, w.floats(torch.tensor(least))])])
    found = add("Div", [name, scale])
    return Value(found if weight is None else add("Mul", [found, w.floats(weight)]))


def _where(w: Writing, mask: Any, a: Any, b: Any) -> Value:
    return Value(w.graph.add("Where", [w.floats(mask), w.floats(a, w.node), w.floats(b, w.node)]))


def _masked(w: Writing, x: Any, mask: Any, fill: Any) -> Value:
    return _where(w, mask, fill, x)


def _embedding(w: Writing, weight: Any, index: Any, *_: Any) -> Value:
    return Value(w.graph.add("Gather", [w.floats(weight), w.floats(index)], axis=0))


def _attention(
    w: Writing,
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    _: float = 0,
    causal: bool = False,
    **words: Any,
) -> Value:
    if words.get("enable_gqa"):
        raise NotImplementedError("attention with fewer keys than queries")
    add, shape, by = w.graph.add, shape_of(q), words.get("scale")
    turned = w.graph.floats(moves.transpose(w, k, -1, -2))
    scale = torch.tensor(1 / math.sqrt(shape[-1]) if by is None else by, dtype=torch.float32)
    scores = add("Mul", [add("MatMul", [w.floats(q), turned]), w.floats(scale)])
    if causal:
        mask = torch.ones(shape[-2], shape_of(k)[-2]).tril().bool()
    if mask is not None:
        kind = (mask.meta["val"] if isinstance(mask, Node) else mask).dtype
        if kind is torch.bool:
            below = w.floats(torch.tensor(-math.inf))
            scores = add("Where", [w.floats(mask), scores, below])
        else:
            scores = add("Add", [scores, w.floats(mask)])
    return Value(add("MatMul", [add("Softmax", [scores], axis=-1), w.floats(v)]))


def _cast(w: Writing, x: Any, *_: Any, **__: Any) -> Value:
    kinds = [each.meta["val"].dtype for each in (x, w.node)]
    if kinds[0] == kinds[1]:
        return w.value(x)
    return Value(w.graph.add("Cast", [w.floats(x)], to=w.graph.kind(kinds[1])))


OPERATORS: Mapping[str, Operator] = {
    **moves.MOVES,
    **moves.CLAMPS,
    **moves.POOLS,
    **{name: _of_two(name.capitalize()) for name in ("add", "sub", "mul", "div", "pow")},
    **{name: _of_two("MatMul") for name in ("matmul", "bmm")},
    **{name: _plain(name.capitalize()) for name in "sigmoid tanh exp sqrt neg erf abs".split()},
    **{name: _plain(name.capitalize()) for name in "log sin cos reciprocal mish".split()},
    "hardswish": _plain("HardSwish"),
    "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "silu": _silu,
    "gelu": _gelu,
    "rsqrt": _rsqrt,
    "softmax": _softmax,
    "_softmax": _softmax,
    "batch_norm": _norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "where": _where,
    "masked_fill": _masked,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    "_to_copy": _cast,
}
