"""Which tensors of a network stay codes between its layers, and of which grid.

A tensor is kept as 8-bit codes where an integer layer writes it, where codes are added or averaged,
and where all that read it read the same codes. Where other operators read it too, they read these
codes; where its readers differ, it gets 8-bit codes of its own, calibrated. A batch norm behind an
integer layer becomes part of its scales and its bias.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from mpsearch.formats import Format
from mpsearch.kernels.capture import Captured, Observed, called, inputs
from mpsearch.kernels.onnx_graph import Array
from mpsearch.kernels.onnx_moves import CLAMPS, MOVES, POOLS
from mpsearch.quant.activations import Grid
from mpsearch.quant.recipe import Recipe

_BYTE = Format.parse("int8")


class Plan:
    """For what writes a captured network node by node, and says what each became.

    Attributes:
        whole: Layers that multiply integers.
        folded: Norms that are part of a layer, and which.
        constants: What does not depend on the input.
        grids: What tensors became so far: codes of a grid, or ``None`` for floats.
    """

    def __init__(
        self,
        captured: Captured,
        batches: Sequence[Any],
        recipe: Recipe,
        whole: Callable[[str, nn.Module], bool],
        folding: Sequence[str] = ("conv1d", "conv2d"),
    ) -> None:
        """Calibrate on the batches.

        Args:
            whole: Says of a layer whether it multiplies integers.
            folding: Operators that norms behind them become part of.
        """
        observed = Observed(captured, len(batches))
        with torch.no_grad():
            for batch in batches:
                observed.run(*inputs(batch))
        self._seen, self.constants = observed.seen, observed.constants
        self._captured, self._recipe = captured, recipe
        self.whole = {node for node, layer in captured.layers.items() if whole(*layer)}
        self.folded: dict[Node, Node] = {}
        for node in self.whole:
            norm = next(iter(node.users))
            rows = called(node) != "linear" or node.meta["val"].dim() == 2  # channels second
            if len(node.users) == 1 and called(norm) == "batch_norm":
                self.folded.update({norm: node} if rows and called(node) in folding else {})
        self.grids: dict[Node, Grid | None] = {}

    def affine(self, layer: Node) -> tuple[Array, Array] | None:
        """The gain and the shift of the norm folded into a layer; ``None`` where there is none."""
        norm: Any = next(iter(layer.users), None)
        if norm not in self.folded:
            return None
        _, *given = norm.args[:5]
        weight, bias, mean, var = (
            other if each is None else self.constants[each].detach().double().numpy()
            for each, other in zip(given, (1.0, 0.0, None, None), strict=True)
        )
        gain = weight / np.sqrt(var + norm.args[7])
        return gain, bias - mean * gain

    def deferred(self, node: Node) -> bool:
        """Whether a clamp or a folded norm alone reads the tensor: that is kept in its place."""
        user = next(iter(node.users))
        return len(node.users) == 1 and (called(user) in CLAMPS or user in self.folded)

    def kept(self, node: Node) -> Grid | None:
        """The grid of a tensor that is kept as codes."""
        if self.deferred(node):
            return None
        source: Any = node
        while called(source) in CLAMPS or source in self.folded:
            source = source.args[0]
        if not self._of_codes(source):
            return None
        wanted, linear = self._read_as(node), called(source) == "linear"
        grids = [grid for grid in wanted if grid is not None]
        if len(grids) == 1 and (len(wanted) == 1 or (grids[0].high == 255 and not linear)):
            return grids[0]
        if linear or node not in self._seen:
            return None
        return self._seen[node].grid(_BYTE, self._recipe)

    def _of_codes(self, node: Any) -> bool:
        """Whether an operator computes with codes alone."""
        if node in self._captured.layers:
            return node in self.whole
        name = called(node)
        read = node.args[:2] if name == "add" else node.args[:1] if name in POOLS else [None]
        return all(isinstance(each, Node) and self.grids.get(each) is not None for each in read)

    def _read_as(self, node: Node) -> set[Grid | None]:
        """The grids that a tensor's readers round it to; ``None`` where one reads floats."""
        found: set[Grid | None] = set()
        for user in node.users:
            if called(user) in MOVES:
                found |= self._read_as(user)
            elif user in self.whole and user.args[0] is node:
                found.add(self.read_by(user))
            else:
                found.add(None)
        return found

    def read_by(self, layer: Node) -> Grid:
        """What an integer layer rounds its input to, with codes of 0 to 255."""
        module: Any = self._captured.layers[layer][1]
        grid: Grid = module.grid
        return grid.unsigned
