"""Layers, and the network they make: plain data, no tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    import networkx
    from numpy.typing import NDArray

    from mpsearch.formats import Option

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input; sizes are per axis, images without channels."""

    kernel: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int
    image: Shape
    output: Shape
    transposed: bool = False


@dataclass(frozen=True)
class Layer:
    """One place where an option is chosen.

    Attributes:
        name: Unique within a network.
        params: Stored weights the option applies to.
        macs: Multiply-accumulates for one sample.
        kind: The operator, such as ``linear``, ``conv2d`` or ``embedding``.
        role: Its place in a type template: ``first``, ``last``, ``attention``, ``mlp``,
            ``depthwise``, ``pointwise``, ``conv``, ``linear``, ``embedding``.
        shapes: Shape of each stored weight, output channels first.
        inputs: Elements read for one sample.
        outputs: Elements written for one sample.
        members: Modules that share the option.
        window: How a convolution moves over its input, where it is one and has been traced.
    """

    name: str
    params: int = 0
    macs: int = 0
    kind: str = "layer"
    role: str = "layer"
    shapes: tuple[Shape, ...] = ()
    inputs: int = 0
    outputs: int = 0
    members: tuple[str, ...] = ()
    window: Window | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that get the option: the members, or the layer's own name."""
        return self.members or (self.name,)


@dataclass(frozen=True)
class Numbered(Sequence[Layer]):
    """``n`` layers named by their number, made when asked for."""

    size: int
    params: int = 1

    def __len__(self) -> int:
        """How many."""
        return self.size

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> "tuple[Layer, ...]": ...
    def __getitem__(self, index: int | slice) -> "Layer | tuple[Layer, ...]":
        """The layer of that number."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self.size)))
        if not -self.size <= index < self.size:
            raise IndexError(f"layer {index} of {self.size}")
        return Layer(str(index % self.size), self.params)

    def __iter__(self) -> Iterator[Layer]:
        """Every layer in order."""
        return (Layer(str(i), self.params) for i in range(self.size))


def numbered(count: int, params: int = 1) -> Numbered:
    """``count`` layers without a Python object each, such as the weight groups of a tensor.

    >>> numbered(1_000_000)[17].name
    '17'
    """
    if count < 1:
        raise ValueError(f"got {count} layers; a table has at least one")
    return Numbered(count, params)


@dataclass(frozen=True)
class Fixed:
    """A parameter no option touches, stored as it is."""

    name: str
    elements: int
    bytes: int


@dataclass(frozen=True)
class Tie:
    """Modules that must share an option, and why."""

    members: tuple[str, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Network:
    """The layers, the graph between them, the ties, and what stays unquantized.

    Attributes:
        layers: In order of first use. Tied modules are one layer.
        edges: ``(from, to)`` layer names: ``to`` reads what ``from`` wrote, with no layer between.
        ties: Why modules were made one layer.
        fixed: What no option touches: biases, norms, skipped layers; counted in every size.
        parameter_bytes: Bytes of one unquantized weight.
        ops: Names of the tensor operations the run used, sorted.
        notes: What was found and could not be offered an option, by name, a sentence each.
        allowed: Option names a layer is pinned to, where it is.
    """

    layers: tuple[Layer, ...]
    edges: tuple[tuple[str, str], ...] = ()
    ties: tuple[Tie, ...] = ()
    fixed: tuple[Fixed, ...] = ()
    parameter_bytes: int = 4
    ops: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def graph(self) -> "networkx.DiGraph[str]":
        """The layers as a directed graph; each node carries its ``layer``."""
        import networkx

        graph: networkx.DiGraph[str] = networkx.DiGraph()
        for layer in self.layers:
            graph.add_node(layer.name, layer=layer)
        graph.add_edges_from(self.edges)
        return graph

    @property
    def params(self) -> int:
        """Weights that options apply to."""
        return sum(layer.params for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers, for one sample."""
        return sum(layer.macs for layer in self.layers)

    def mask(self, options: "Sequence[Option]") -> "NDArray[np.bool_]":
        """(L, K) which options each layer may take: all, but for pinned layers.

        ``ValueError`` where a layer is pinned to what is not among the options.
        """
        names = [str(option) for option in options]
        allowed = np.ones((len(self.layers), len(names)), bool)
        for row, layer in enumerate(self.layers):
            if layer.name not in self.allowed:
                continue
            pinned = self.allowed[layer.name]
            allowed[row] = [name in pinned for name in names]
            if not allowed[row].any():
                raise ValueError(
                    f"layer {layer.name!r} is pinned to {', '.join(pinned)}, which is not among the"
                    f" options {', '.join(names)}; add it to them"
                )
        return allowed

    def __getitem__(self, name: str) -> Layer:
        """The layer of that name, or the one a module of that name is a member of."""
        for layer in self.layers:
            if name == layer.name or name in layer.members:
                return layer
        raise KeyError(f"no layer is named {name!r}; there are {_some(self.layers)}")


def _some(layers: Sequence[Layer]) -> str:
    names = [repr(layer.name) for layer in layers[:5]]
    return ", ".join(names) + (", ..." if len(layers) > 5 else "")
