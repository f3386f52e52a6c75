"""A quantized network as one ONNX graph.

Which of its tensors are codes: :mod:`mpsearch.kernels.code_plan`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from mpsearch.kernels import onnx_layers as layers
from mpsearch.kernels.capture import LAYERS, Captured, alike, called, inputs, owner
from mpsearch.kernels.code_plan import Plan
from mpsearch.kernels.onnx_graph import Graph, Value
from mpsearch.kernels.onnx_moves import shape_of
from mpsearch.kernels.onnx_operators import OPERATORS
from mpsearch.kernels.onnx_runtime import kernels_of, ran
from mpsearch.quant.activations import Grid
from mpsearch.quant.recipe import Recipe


@dataclass(frozen=True)
class Finished:
    """A finished file, and what ran when it was run once.

    Attributes:
        content: Of the file.
        layers: Module name to the kernel that ran.
        others: Kernels that ran beside the layers, and how often.
    """

    content: bytes
    layers: Mapping[str, str]
    others: Mapping[str, int]


def written(model: nn.Module, batches: Sequence[Any], recipe: Recipe, accuracy: int) -> Finished:
    """The file of a model that ``mp.quantize`` made, run on the first batch.

    Raises:
        ValueError: What :func:`mpsearch.export.onnx` says.
    """
    batches = alike(batches, "a file is written")
    for name, each in model.named_modules():
        if layers.kind_of(each) is None:
            raise layers.refused(name, each)
    captured = Captured(
        model,
        batches[0],
        "export a network whose forward does not depend on the values it computes",
    )
    content = Network(captured, batches, recipe, accuracy).model()
    nodes = [*captured.graph.graph.find_nodes(op="placeholder")]
    feed = {node.name: layers.array(x) for node, x in zip(nodes, inputs(batches[0]), strict=True)}
    kernels, others = kernels_of(ran(content, feed), [name for name, _ in captured.layers.values()])
    return Finished(content, kernels, others)


class Network:
    """Writes a captured network, node by node.

    Attributes:
        graph: What is written.
        captured: What is read.
        node: Where the writing is.
    """

    node: Any

    def __init__(
        self, captured: Captured, batches: Sequence[Any], recipe: Recipe, accuracy: int
    ) -> None:
        self.graph, self.captured, self._accuracy = Graph(), captured, accuracy
        self._plan = Plan(
            captured, batches, recipe, lambda _, module: layers.kind_of(module) == "integer"
        )
        self._values: dict[Node, Any] = {}

    def model(self) -> bytes:
        """The finished file."""
        ends: dict[str, list[Any]] = {"placeholder": [], "output": []}
        for node in self.captured.graph.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = Value(node.name)
                ends[node.op].append(self._end(node.name, node))
            elif node.op == "output":
                for number, leaf in enumerate(tree_leaves(node.args)):  # one may be there twice
                    name = f"output{number or ''}"
                    self.graph.named(self.floats(leaf), name)
                    ends[node.op].append(self._end(name, leaf))
            elif node.op == "call_function" and node not in self._plan.constants:
                self._values[node] = self._written(node)
        return self.graph.model(*ends.values())

    def _end(self, name: str, node: Node) -> tuple[str, Any, list[Any]]:
        shape = [side if side >= 0 else "samples" for side in shape_of(node)]
        return name, node.meta["val"].dtype, shape

    def value(self, of: Any) -> Value:
        """A tensor of the captured network in the graph."""
        if isinstance(of, Tensor):
            return Value(self.graph.constant(layers.array(of)))
        if of in self._plan.constants and of not in self._values:
            name = str(of.target) if of.op == "get_attr" else of.name
            self._values[of] = Value(
                self.graph.constant(layers.array(self._plan.constants[of]), name)
            )
        found: Value = self._values[of]
        return found

    def floats(self, of: Any, like: Any = None) -> str:
        """The name of a tensor or a number, the latter in the type of another tensor."""
        if not isinstance(of, Node | Tensor):
            kind = like.meta["val"].dtype if isinstance(like, Node) else torch.float32
            return self.graph.constant(np.array(of, str(kind).removeprefix("torch.")))
        return self.graph.floats(self.value(of))

    def samples(self, side: Any) -> str:
        """The name of a tensor that holds a side of a shape: the number of samples."""
        for node in self.captured.graph.graph.find_nodes(op="placeholder"):
            if node.meta["val"].dim() and str(node.meta["val"].shape[0]) == str(side):
                return self.graph.add("Shape", [node.name], start=0, end=1)
        raise NotImplementedError(f"a tensor repeated {side} times")

    def _written(self, node: Any) -> Any:
        """What a node is in the graph, as codes where it is to be kept as codes."""
        self.node = node
        try:
            found = self._called(node)
        except NotImplementedError as error:
            where = owner(node) if node.meta.get("nn_module_stack") else ""
            raise ValueError(
                f"module {where!r}: mp.export.onnx does not write {error}; it writes"
                f" {', '.join(sorted({*OPERATORS, *LAYERS}))}"
            ) from None
        if isinstance(found, Value) and found.grid is None:
            grid = self._plan.kept(node)
            found = found if grid is None else self.graph.codes(found, grid)
        self._plan.grids[node] = getattr(found, "grid", None)
        return found

    def _called(self, node: Any) -> Any:
        """What an operator writes; ``NotImplementedError`` where it has no counterpart."""
        name = called(node)
        if node in self._plan.folded:
            return self._values[self._plan.folded[node]]
        if name in LAYERS:
            return self._layer(node, name)
        if name == "sym_size":  # shapes are known
            return None
        write = OPERATORS.get(name)
        try:
            bound = inspect.signature(write).bind(self, *node.args, **node.kwargs)  # type: ignore[arg-type]
        except TypeError:
            raise NotImplementedError(f"the operator {node.target}") from None
        return write(*bound.args, **bound.kwargs)  # type: ignore[misc]

    def _layer(self, node: Any, op: str) -> Value:
        """A linear layer or a convolution, with the norm behind it where there is one."""
        name, module = self.captured.layers[node]
        kind, moves = layers.kind_of(module), _moves(node) if op != "linear" else None
        x = self.value(node.args[0])
        if kind == "packed":
            read = self.graph.floats(x)
            return Value(layers.packed(self.graph, name, read, module, self._accuracy))
        if kind == "float":
            weights = [None if each is None else self.floats(each) for each in _weights(node)]
            return layers.plain(self.graph, name, self.graph.floats(x), weights, moves)
        weight = layers.Weight.of(module)
        affine = self._plan.affine(node)
        if affine is not None:
            weight = weight.scaled(*affine)
        found = layers.integer(self.graph, name, x, weight, _grid(module), moves)
        return found if moves is not None else replace(found, shape=shape_of(node))


def _grid(module: Any) -> Grid:
    found: Grid = module.grid
    return found


def _weights(node: Any) -> tuple[Any, Any]:
    weight, *rest = node.args[1:3]
    return weight, (rest[0] if rest else None)


def _moves(node: Any) -> layers.Moves:
    """How a convolution moves."""
    given: tuple[Any, ...] = node.args[3:]
    words = given + (1, 0, 1, 1)[len(given) :]
    return layers.Moves.of(shape_of(node.args[1])[2:], *words)
