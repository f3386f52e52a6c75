"""A quantized network as one ONNX graph.

A tensor is kept as 8-bit codes where an integer convolution writes it, where codes are added or
averaged, and where all that read it read the same codes. Where other operators read it too, they
read these codes; where its readers differ, it gets 8-bit codes of its own, calibrated.
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

from mpsearch.formats import Format
from mpsearch.kernels import onnx_layers as layers
from mpsearch.kernels.onnx_capture import LAYERS, Captured, Observed, called, inputs, owner
from mpsearch.kernels.onnx_graph import Graph, Value, unsigned
from mpsearch.kernels.onnx_moves import CLAMPS, MOVES, POOLS, shape_of
from mpsearch.kernels.onnx_operators import OPERATORS
from mpsearch.kernels.onnx_runtime import kernels_of, ran
from mpsearch.quant.activations import Grid
from mpsearch.quant.recipe import Recipe

_BYTE = Format.parse("int8")


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
    shapes = {tuple(x.shape[1:] for x in inputs(batch)) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"batches have the shapes {sorted(shapes)}; a file is written for one, so give batches"
            " that differ in the number of samples alone"
        )
    captured = Captured(model, batches[0])
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
        self._recipe = recipe
        observed = Observed(captured, len(batches))
        with torch.no_grad():
            for batch in batches:
                observed.run(*inputs(batch))
        self._seen, self._constants = observed.seen, observed.constants
        self._values: dict[Node, Any] = {}
        self._folded: dict[Node, Node] = {}

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
            elif node.op == "call_function" and node not in self._constants:
                self._values[node] = self._written(node)
        return self.graph.model(*ends.values())

    def _end(self, name: str, node: Node) -> tuple[str, Any, list[Any]]:
        shape = [side if side >= 0 else "samples" for side in shape_of(node)]
        return name, node.meta["val"].dtype, shape

    def value(self, of: Any) -> Value:
        """A tensor of the captured network in the graph."""
        if isinstance(of, Tensor):
            return Value(self.graph.constant(layers.array(of)))
        if of in self._constants and of not in self._values:
            name = str(of.target) if of.op == "get_attr" else of.name
            self._values[of] = Value(self.graph.constant(layers.array(self._constants[of]), name))
        found: Value = self._values[of]
        return found

    def floats(self, of: Any, like: Any = None) -> str:
        """The name of a tensor or a number, the latter in the type of another tensor."""
        if not isinstance(of, Node | Tensor):
            kind = like.meta["val"].dtype if isinstance(like, Node) else torch.float32
            return self.graph.constant(np.array(of, str(kind).removeprefix("torch.")))
        return self.graph.floats(self.value(of))

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
            grid = self._kept(node)
            found = found if grid is None else self.graph.codes(found, grid)
        return found

    def _called(self, node: Any) -> Any:
        """What an operator writes; ``NotImplementedError`` where it has no counterpart."""
        name = called(node)
        if node in self._folded:
            return self._values[self._folded[node]]
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
        norm = next(iter(node.users))
        if len(node.users) == 1 and called(norm) == "batch_norm" and moves is not None:
            weight = weight.scaled(*self._affine(norm))
            self._folded[norm] = node
        found = layers.integer(self.graph, name, x, weight, _grid(module), moves)
        return found if moves is not None else replace(found, shape=shape_of(node))

    def _affine(self, norm: Any) -> tuple[Any, Any]:
        """The gain and the shift of a norm in inference."""
        _, *given = norm.args[:5]
        weight, bias, mean, var = (
            other if each is None else self._constants[each].detach().double().numpy()
            for each, other in zip(given, (1.0, 0.0, None, None), strict=True)
        )
        gain = weight / np.sqrt(var + norm.args[7])
        return gain, bias - mean * gain

    def _kept(self, node: Any) -> Grid | None:
        """The grid of a tensor that is kept as codes."""
        source, user = node, next(iter(node.users))
        if len(node.users) == 1 and (called(user) in CLAMPS or user in self._folded):
            return None
        while called(source) in CLAMPS or source in self._folded:
            source = source.args[0]
        if not self._whole(source):
            return None
        wanted, linear = self._read_as(node), called(source) == "linear"
        grids = [grid for grid in wanted if grid is not None]
        if len(grids) == 1 and (len(wanted) == 1 or (grids[0].high == 255 and not linear)):
            return grids[0]
        if linear or node not in self._seen:
            return None
        return self._seen[node].grid(_BYTE, self._recipe)

    def _whole(self, node: Any) -> bool:
        """Whether an operator computes with codes alone."""
        if node in self.captured.layers:
            return layers.kind_of(self.captured.layers[node][1]) == "integer"
        name = called(node)
        read = node.args[:2] if name == "add" else node.args[:1] if name in POOLS else [None]
        return all(
            isinstance(each, Node)
            and each not in self._constants
            and self._values[each].grid is not None
            for each in read
        )

    def _read_as(self, node: Node) -> set[Grid | None]:
        """The grids that a tensor's readers round it to; ``None`` where one reads floats."""
        found: set[Grid | None] = set()
        for user in node.users:
            if called(user) in MOVES:
                found |= self._read_as(user)
            elif user in self.captured.layers and user.args[0] is node:
                module = self.captured.layers[user][1]
                whole = layers.kind_of(module) == "integer"
                found.add(unsigned(_grid(module)) if whole else None)
            else:
                found.add(None)
        return found


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
