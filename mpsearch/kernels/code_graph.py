"""Steps of a network as they are written: a graph of modules and torch's operators.

What a layer computes is not written before it is known in which form it is read: a clamp, another
branch and the rounding to codes then all become part of the layer's own step.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from mpsearch.kernels.capture import called
from mpsearch.kernels.code_steps import Output, Sum
from mpsearch.kernels.onednn import Conv2d, Fused, Integers
from mpsearch.quant.activations import Grid

PLAIN = Output()


@dataclass(frozen=True)
class Ready:
    """A tensor that is written, as codes of a grid or as floats."""

    node: Node
    grid: Grid | None = None


@dataclass(frozen=True)
class Pending:
    """A sum of codes and what an integer layer computes, of one of them at least.

    Attributes:
        out: The clamps behind it.
        layer: The kernel, its name, and the codes that it reads.
        terms: Codes.
        grid: Of the codes it is to become, once that is known.
    """

    out: Output = PLAIN
    layer: tuple[Integers, str, Node] | None = None
    terms: tuple[Ready, ...] = ()
    grid: Grid | None = None

    @property
    def adds(self) -> bool:
        """Whether its layer can add a tensor of codes to what it computes."""
        kernel = self.layer and self.layer[0]
        return isinstance(kernel, Conv2d) and not self.terms and self.out == PLAIN


class Steps:
    """What was written so far.

    Attributes:
        graph: The steps.
        layers: What each layer's kernel multiplied, in order.
        others: What runs beside the layers, and how often.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self.layers: dict[str, list[str]] = {}
        self.others: Counter[str] = Counter()
        self._stored: dict[str, Any] = {}
        self._forms: dict[tuple[Node, Grid | None], Ready] = {}

    def called(self, target: Any, args: Any, kwargs: Any, said: str = "") -> Node:
        """An operator of torch, counted by what is said of it."""
        self.others.update([said] if said else [])
        return self.graph.call_function(target, tuple(args), dict(kwargs))

    def step(self, module: nn.Module, reads: list[Node], name: str) -> Node:
        """A module that is called."""
        return self.graph.call_module(self._kept(module, name), tuple(reads))

    def constant(self, values: Tensor, name: str) -> Node:
        """A stored tensor."""
        return self.graph.get_attr(self._kept(values.detach(), name))

    def _kept(self, what: Any, name: str) -> str:
        """Store under a name like the one given, which is returned."""
        plain = found = name.replace(".", "_") or "layer"
        while found in self._stored:
            found = f"{plain}_{len(self._stored)}"
        self._stored[found] = what
        return found

    def ran(self, name: str, said: str) -> None:
        """Note what a layer's kernel multiplies."""
        self.layers.setdefault(name, []).append(said)

    def formed(self, x: Ready, grid: Grid | None) -> Ready:
        """A tensor as codes of a grid, or as floats."""
        if x.grid == grid:
            return x
        if (x.node, grid) not in self._forms:
            self._forms[x.node, grid] = self._sum((x,), Output(grid))
        return self._forms[x.node, grid]

    def run(self, what: Pending, grid: Grid | None) -> Ready:
        """A layer or a sum, as codes of a grid or as floats."""
        out, terms = replace(what.out, grid=grid), what.terms
        if what.layer is None:
            return self._sum(terms, out)
        if grid is None and terms:  # over codes only codes are written
            return self._sum((self.run(Pending(layer=what.layer), None), *terms), out)
        kernel, name, codes = what.layer
        made = Fused(kernel, out, next((term.grid for term in terms), None))
        self.ran(name, made.runs_as)
        return Ready(self.step(made, [codes, *(term.node for term in terms)], name), grid)

    def _sum(self, terms: tuple[Ready, ...], out: Output) -> Ready:
        alone = "floats" if all(term.grid is None for term in terms) else "codes"
        said = "add" if len(terms) > 1 else alone
        said += " to floats" if out.grid is None else " to codes"
        self.others[said] += 1
        made = Sum([term.grid for term in terms], out)
        return Ready(
            self.step(made, [term.node for term in terms], said.replace(" ", "_")), out.grid
        )

    def finished(self) -> GraphModule:
        """All steps, sums over what nothing reads any more."""
        order = {node: number for number, node in enumerate(self.graph.nodes)}
        for node, place in order.items():
            made = self._stored.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(made, Fused) and made.other is not None:
                first, read = node.args
                made.over = first is not read and _own(read) and _last(read, order, place)
        return GraphModule(self._stored, self.graph, "Steps")


def _own(node: Any) -> bool:
    """Whether what a step writes lies in memory of its own."""
    return node.op == "call_module" or called(node) in ("cat", "constant_pad_nd", "max_pool2d")


def _last(node: Any, order: Mapping[Node, int], place: int) -> bool:
    """Whether no later step reads what a step wrote, nor what may hand on its memory."""
    return all(user.op == "call_module" and order[user] <= place for user in node.users)
