"""Layers taken apart into channels or groups of weights, or put together into experts.

A place is a layer like any other, and is quantized and stored as a tensor of its own, with a scale
of its own for every format: what estimators, hardware models and solvers say of layers they say of
places.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal, cast, get_args, overload

import numpy as np
from numpy.typing import NDArray

from mpsearch.network import Layer, Network

Within = Literal["channel", "group"]
Per = Literal["channel", "group", "expert"]

EXPERT = re.compile(r"^((?:.+\.)?experts\.\d+)(?:\.|$)")
"""What a module's name begins with where it belongs to an expert of a list named ``experts``."""


def finer(network: Network, per: Per = "channel", *, group: int = 128) -> Network:
    """The network whose layers are the places of another's.

    ``channel``
        ``conv1[3]``: one output channel, a row of the weight with output channels first.
    ``group``
        ``fc[3,128:256]``: ``group`` weights of a row that lie side by side, fewer at its end.
    ``expert``
        ``mlp.experts.5``: all layers of one expert together, which is coarser than they are; what
        is in no expert stays as it is. Experts are modules of a list named ``experts``: those that
        share one parameter are not traced (see :func:`mpsearch.quant.unfusing.unfused`).

    Rows are counted through all weights of a layer: ``q_proj[70]`` of tied projections is a row of
    the matrix they make when they are fused. Weights, multiply-accumulates, and elements read and
    written are divided by weights, and add up to those of the layer. There are no edges between
    channels or groups, which are made when asked for, as those of :func:`mpsearch.numbered` are.

    A size adds up as well, for a format that has a scale for each place: all channels at ``int4``
    take what the layer does at ``int4``, all groups of 128 what it does at ``int4g128``. Up to a
    byte is added for each place whose codes end within one, and for its zero points where it has
    some, because each place could be followed by one of another width; none where ``bits`` times
    the weights of a place is a multiple of 8 and the format symmetric. A format whose scale many
    places would share gets one for each instead, 2 bytes a place: ``int4`` on groups, ``int4t`` on
    both.

    Raises:
        ValueError: Layers without shapes or already taken apart, or a network without experts.

    >>> tiny = Network((Layer("fc", 12, 12, shapes=((3, 4),)),))
    >>> [place.name for place in finer(tiny, "group", group=3).layers[:2]]
    ['fc[0,0:3]', 'fc[0,3:4]']
    """
    if per not in get_args(Per):
        raise ValueError(f"per is {per!r}; there are {', '.join(get_args(Per))}")
    if isinstance(network.layers, Places):
        raise ValueError(  # noqa: TRY004  (of the right type)
            f"layers are places already, one per {network.layers.per}; give the network they are of"
        )
    if per == "expert":
        return _by_expert(network)
    places = Places(network, per, group)
    pinned = {
        place.name: network.allowed[layer.name]
        for row, layer in enumerate(network.layers)
        if layer.name in network.allowed
        for place in places[places.rows(row)]
    }
    made = cast("tuple[Layer, ...]", places)  # a sequence all the same
    return replace(network, layers=made, edges=(), allowed=pinned)


@dataclass(frozen=True)
class Block:
    """The places of one weight: numbered row by row from ``start``.

    Attributes:
        layer: Number of the layer it is of.
        start: Number of its first place.
        row: What number its first row has in the layer.
        before: How many weights of the layer come before it.
        shape: Rows and columns.
        width: Columns of a place; the last of a row may have fewer.
    """

    layer: int
    start: int
    row: int
    before: int
    shape: tuple[int, int]
    width: int

    @property
    def per_row(self) -> int:
        """Places in a row."""
        return -(-self.shape[1] // self.width)

    @property
    def stop(self) -> int:
        """The number after that of its last place."""
        return self.start + self.shape[0] * self.per_row


@dataclass(frozen=True, eq=False)
class Places(Sequence[Layer]):
    """The channels or groups of all layers of a network, made when asked for.

    Attributes:
        coarse: The network.
        per: What a place is.
        group: Weights of a group.
    """

    coarse: Network
    per: Within = "channel"
    group: int = 128

    def __post_init__(self) -> None:
        """Refuse what cannot be taken apart."""
        if self.group < 1:
            raise ValueError(f"group is {self.group!r}; wanted at least one weight")
        for layer in self.coarse.layers:
            if not layer.shapes or not all(map(prod, layer.shapes)):
                raise ValueError(
                    f"layer {layer.name!r} says no shape of its weights, so it has no"
                    f" {self.per}s; trace the model, or give Layer(shapes=...)"
                )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """One for each weight, in order."""
        found: list[Block] = []
        for number, layer in enumerate(self.coarse.layers):
            row = before = 0
            for rows, *others in layer.shapes:
                columns = prod(others)
                width = min(self.group, columns) if self.per == "group" else columns
                start = found[-1].stop if found else 0
                found.append(Block(number, start, row, before, (rows, columns), width))
                row, before = row + rows, before + rows * columns
        return tuple(found)

    @cached_property
    def tensors(self) -> NDArray[np.int64]:
        """(n,) the number of the layer that each place is of: what solver ``two-level`` asks."""
        counts = [block.stop - block.start for block in self.blocks]
        return np.repeat([block.layer for block in self.blocks], counts).astype(np.int64)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.array([block.start for block in self.blocks])

    def rows(self, layer: int) -> slice:
        """The places of a layer."""
        own = [block for block in self.blocks if block.layer == layer]
        return slice(own[0].start, own[-1].stop)

    def __len__(self) -> int:
        """How many places."""
        return self.blocks[-1].stop

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> "tuple[Layer, ...]": ...
    def __getitem__(self, index: int | slice) -> "Layer | tuple[Layer, ...]":
        """The place of that number."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"place {index} of {len(self)}")
        number = index % len(self)
        block = self.blocks[int(np.searchsorted(self._starts, number, side="right")) - 1]
        return self._made(block, number - block.start)

    def __iter__(self) -> Iterator[Layer]:
        """Every place in order."""
        return (self._made(b, i) for b in self.blocks for i in range(b.stop - b.start))

    def _made(self, block: Block, number: int) -> Layer:
        layer, columns = self.coarse.layers[block.layer], block.shape[1]
        row, part = divmod(number, block.per_row)
        first = part * block.width
        count = min(block.width, columns - first)
        before = block.before + row * columns + first
        named = f"{block.row + row}" + (f",{first}:{first + count}" if self.per == "group" else "")

        def share(total: int) -> int:
            return total * (before + count) // layer.params - total * before // layer.params

        return Layer(
            f"{layer.name}[{named}]",
            count,
            share(layer.macs),
            layer.kind,
            layer.role,
            ((1, count),),
            share(layer.inputs),
            share(layer.outputs),
            layer.modules,
        )


def _by_expert(network: Network) -> Network:
    """Layers of one expert put together, in the place of the first of them."""
    together: dict[str, list[Layer]] = {}
    for layer in network.layers:
        together.setdefault(expert_of(layer) or layer.name, []).append(layer)
    if not any(expert_of(layer) for layer in network.layers):
        fused = [one.name for one in network.fixed if re.search(r"(^|\.)experts\.[^.]+$", one.name)]
        where = f" ({fused[0]!r} holds several experts: unfuse the model first)" if fused else ""
        raise ValueError(
            f"no layer is part of an expert{where}; wanted modules of a list named 'experts', such"
            f" as 'mlp.experts.0.up_proj', among {', '.join(n.name for n in network.layers[:5])}"
        )
    names = {one.name: name for name, members in together.items() for one in members}
    moved = ((names[one], names[other]) for one, other in network.edges)
    return replace(
        network,
        layers=tuple(_joined(name, members) for name, members in together.items()),
        edges=tuple(dict.fromkeys(edge for edge in moved if edge[0] != edge[1])),
        allowed=_allowed(together, network.allowed),
    )


def expert_of(layer: Layer) -> str | None:
    """The expert that all modules of a layer are in, if there is one."""
    found = {match[1] if (match := EXPERT.match(name)) else None for name in layer.modules}
    return found.pop() if len(found) == 1 else None


def _joined(name: str, members: Sequence[Layer]) -> Layer:
    if len(members) == 1 and members[0].name == name:
        return members[0]
    return Layer(
        name,
        sum(one.params for one in members),
        sum(one.macs for one in members),
        "expert",
        members[0].role,
        tuple(shape for one in members for shape in one.shapes),
        sum(one.inputs for one in members),
        sum(one.outputs for one in members),
        tuple(module for one in members for module in one.modules),
    )


def _allowed(
    together: Mapping[str, Sequence[Layer]], allowed: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, members in together.items():
        pins = [allowed[one.name] for one in members if one.name in allowed]
        if not pins:
            continue
        found[name] = tuple(option for option in pins[0] if all(option in pin for pin in pins))
        if not found[name]:
            said = " and ".join(repr(", ".join(pin)) for pin in dict.fromkeys(pins))
            raise ValueError(f"expert {name!r} is pinned to {said}; pin all of it to the same")
    return found
