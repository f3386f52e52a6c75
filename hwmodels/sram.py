"""Peak activation memory: what each layer reads and writes, and what is kept for later ones.

The cost is a maximum over stages of sums (:class:`mpsearch.Stages`), one stage a layer, in the
order of the network's layers. A tensor is stored in the format its next reader takes it in; tensors
that meet in an addition are one from then on. Depthwise convolutions can write over what they read,
one channel aside (TinyEngine); kernels need scratch (CMSIS-NN); the first layers can run patch by
patch, which makes tensors small and work double where patches overlap (MCUNetV2, Lin et al.,
NeurIPS 2021).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mpsearch.formats import Option
from mpsearch.network import Layer, Network, Window
from mpsearch.tables import Stages

Term = tuple[int, int, float]
Held = tuple[int, int]  # the layer whose input it is, and how many elements
Scratch = Literal["none", "dsp", "mve"]


@dataclass(frozen=True)
class Sram:
    """``sram``: the peak, in bytes of one sample.

    Attributes:
        scratch: What kernels need beside their tensors: ``none``, or what CMSIS-NN's convolutions
            take with the ``dsp`` extension or with ``mve``.
        in_place: Whether depthwise convolutions write over their input.
        patched: How many of the first layers run patch by patch; they are convolutions in a chain.
        patches: Into how many patches, along each axis, the output of the last of them is cut.
        output_bits: Bits of what no layer reads: the network's output.
    """

    scratch: Scratch = "none"
    in_place: bool = False
    patched: int = 0
    patches: int = 1
    output_bits: int = 8

    def __post_init__(self) -> None:
        """Refuse unknown scratch and counts that are none."""
        if self.scratch not in ("none", "dsp", "mve"):
            raise ValueError(f"no scratch is named {self.scratch!r}; there are none, dsp and mve")
        if self.patched < 0 or self.patches < 1:
            raise ValueError(
                f"patched is {self.patched} and patches {self.patches}; wanted at least 0 and 1"
            )

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Stages]:
        """``sram`` as stages; the reference stores every tensor as 32-bit floats."""
        bits = [option.activation.bits for option in options]
        readers = _readers(network)
        alive, open_ = [], list[int]()  # layers whose output is still read
        for row in range(len(network.layers)):
            open_ = [source for source in open_ if readers[source][-1] > row]
            alive.append(self._alive(network, row, readers, open_))
            open_ += [row] if readers[row] else []
        stages = tuple(tuple(self._terms(each, bits)) for each in alive)
        wide = max(4 * sum(count for _, count in tensors) + more for tensors, more in alive)
        return {
            "sram": Stages(network.layers, tuple(options), stages, "byte", "sram", reference=wide)
        }

    def _terms(self, alive: tuple[list[Held], int], bits: Sequence[int]) -> list[Term]:
        """A stage: each tensor at each option of its reader.

        What no option changes stands at all options of the first layer.
        """
        tensors, more = alive
        terms: list[Term] = []
        for reader, count in tensors:
            if reader < 0:
                more += _bytes(count, self.output_bits)
            else:
                terms += [(reader, column, _bytes(count, b)) for column, b in enumerate(bits)]
        if more:
            terms += [(0, column, more) for column in range(len(bits))]
        return terms

    def _alive(
        self, network: Network, row: int, readers: Sequence[Sequence[int]], sources: Sequence[int]
    ) -> tuple[list[Held], int]:
        """What is in memory while a layer runs: tensors, and bytes that no option changes."""
        layer = network.layers[row]
        if row < self.patched:
            return self._patch(network, row, readers), self._scratch(layer)
        own = _later(readers[row], row)
        inputs, outputs = layer.inputs, layer.outputs
        if self.in_place and layer.role == "depthwise":
            outputs = -(-outputs // _channels(layer))  # one channel aside
        tensors = [(row, inputs), (own[0] if own else -1, outputs)]
        return tensors + _kept(network, row, readers, sources), self._scratch(layer)

    def _scratch(self, layer: Layer) -> int:
        """Bytes that CMSIS-NN's convolution gathers its window in."""
        if self.scratch == "none" or not layer.kind.startswith("conv") or layer.role == "depthwise":
            return 0
        length = math.prod(_shape(layer)[1:])
        if math.prod(_shape(layer)[2:]) == 1:
            return 0
        if self.scratch == "dsp":
            return 2 * (-(-length // 4) * 4) * 2
        return 4 * -(-length // 16) * 16

    def _patch(self, network: Network, row: int, readers: Sequence[Sequence[int]]) -> list[Held]:
        """A layer of the patched stage: one patch of what it reads and of what it writes.

        Beside them the whole output of the stage, which fills up.
        """
        sides = patch_sides(network, self.patched, self.patches)
        last = network.layers[self.patched - 1]
        after = _later(readers[self.patched - 1], self.patched - 1)
        layer = network.layers[row]
        read = math.prod(sides[row]) * _shape(layer)[1] * _window(layer).groups
        made = math.prod(sides[row + 1]) * _channels(layer)
        reader = row + 1 if row + 1 < self.patched else (after[0] if after else -1)
        return [(row, read), (reader, made), (after[0] if after else -1, last.outputs)]


def patch_sides(network: Network, patched: int, patches: int) -> list[tuple[int, int]]:
    """Sides of a patch before each of the patched layers and after the last.

    Backwards by ``(side - 1) * stride + dilation * (kernel - 1) + 1``, at most the whole image.
    ``ValueError`` where the layers are no chain of convolutions that have been traced.
    """
    chain = network.layers[:patched]
    edges = set(network.edges)
    for a, b in itertools.pairwise(chain):
        if (a.name, b.name) not in edges:
            raise ValueError(
                f"layers {a.name!r} and {b.name!r} are no chain; patch only the layers before them"
            )
    windows = [_window(layer) for layer in chain]
    size = windows[-1].output
    side = tuple(-(-length // patches) for length in size)
    sides = [(side[0], side[-1])]
    for window in reversed(windows):
        grown = [
            min((s - 1) * stride + dilation * (kernel - 1) + 1, whole)
            for s, stride, dilation, kernel, whole in zip(
                sides[-1], window.stride, window.dilation, window.kernel, window.image, strict=True
            )
        ]
        sides.append((grown[0], grown[1]))
    return sides[::-1]


def patch_overhead(network: Network, patched: int, patches: int) -> float:
    """MACs of the whole network with the first layers patched, over MACs without."""
    sides = patch_sides(network, patched, patches)
    more = 0.0
    for layer, side in zip(network.layers[:patched], sides[1:], strict=True):
        full = math.prod(_window(layer).output)
        more += layer.macs * (math.prod(side) * patches**2 / full - 1)
    return 1 + more / network.macs


def _readers(network: Network) -> list[list[int]]:
    """For each layer the layers that read what it wrote, in order."""
    place = {layer.name: row for row, layer in enumerate(network.layers)}
    readers: list[list[int]] = [[] for _ in network.layers]
    for source, to in network.edges:
        readers[place[source]].append(place[to])
    return [sorted(each) for each in readers]


def _later(readers: Sequence[int], row: int) -> list[int]:
    return [reader for reader in readers if reader > row]


def _kept(
    network: Network, row: int, readers: Sequence[Sequence[int]], open_: Sequence[int]
) -> list[Held]:
    """Tensors of earlier layers that later ones still read, each once.

    Those with the same readers ahead met in an addition where the reader has the channels of each
    of them, and are then one; else they are counted side by side, which is never too little.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for source in open_:
        groups.setdefault(tuple(_later(readers[source], row)), []).append(source)
    kept = []
    for ahead, sources in groups.items():
        written = [network.layers[source].outputs for source in sources]
        reader = network.layers[ahead[0]]
        added = all(_meet(network.layers[source], reader) for source in sources)
        count = max(written) if added else sum(written)
        read_now = all(row in readers[source] for source in sources)
        if not (read_now and count == network.layers[row].inputs):
            kept.append((ahead[0], count))
    return kept


def _meet(source: Layer, reader: Layer) -> bool:
    """Whether a layer reads as many channels as another writes."""
    if not (source.shapes and reader.shapes):
        return False
    groups = reader.window.groups if reader.window else 1
    return _channels(source) == _shape(reader)[1] * groups


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _shape(layer: Layer) -> tuple[int, ...]:
    if not layer.shapes:
        raise ValueError(f"layer {layer.name!r} has no weight shape; trace the model")
    return layer.shapes[0]


def _channels(layer: Layer) -> int:
    return _shape(layer)[0]


def _window(layer: Layer) -> Window:
    if layer.window is None:
        raise ValueError(
            f"layer {layer.name!r} is no convolution that was traced; patch only such layers"
        )
    return layer.window
