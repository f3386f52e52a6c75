"""A whole network on integers: oneDNN's layers, and between them codes where the graph allows.

Which tensors are codes: :mod:`mpsearch.kernels.code_plan`. A layer writes them itself, clamp and
batch norm included, and adds another branch's to what it computes: their sum is rounded once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from mpsearch.batches import samples
from mpsearch.kernels import code_moves as moves
from mpsearch.kernels.capture import LAYERS, Captured, alike, called, owner
from mpsearch.kernels.code_graph import Pending, Ready, Steps
from mpsearch.kernels.code_plan import Plan
from mpsearch.kernels.code_steps import Rounded
from mpsearch.kernels.on_codes import Input, OnCodes
from mpsearch.kernels.onednn import Integers
from mpsearch.kernels.onnx_moves import MOVES, POOLS, fixed
from mpsearch.kernels.plain import Floats
from mpsearch.quant.recipe import Recipe
from mpsearch.tracing.sites import kind_of

_ATEN = torch.ops.aten
_ADVICE = "run it layer by layer, on 'torch-cpu'"


def connected(
    model: nn.Module, kernels: Mapping[str, nn.Module], batches: Sequence[Any], recipe: Recipe
) -> OnCodes:
    """A quantized model with tensors kept as codes between its kernels.

    The number of samples stays free where a batch has two or more and the model allows.

    Raises:
        ValueError: A model that ``torch.export`` cannot capture, or in which it shows no call of a
            layer; floats of other types than float32; batches of several shapes.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise ValueError(
                f"{name!r} is in {weight.dtype}; floats between layers of codes are in float32:"
                f" call float() on the model, or {_ADVICE}"
            )
    if not batches:
        raise ValueError("codes between layers need ranges; give batches to calibrate them on")
    batches = alike(batches, "a network is captured")
    batch = max(batches, key=samples)
    captured = Captured(model, batch, _ADVICE)

    def whole(name: str, _: nn.Module) -> bool:
        return isinstance(kernels.get(name), Integers)

    writer = Writer(captured, Plan(captured, batches, recipe, whole, LAYERS), kernels)
    steps, inputs = writer.written(), captured.graph.graph.find_nodes(op="placeholder")
    names = [*batch] if isinstance(batch, Mapping) else [node.name for node in inputs]
    return OnCodes(
        steps.finished(),
        dict(zip(names, map(_input, inputs), strict=True)),
        writer.layers([name for name, one in model.named_modules() if kind_of(one) is not None]),
        steps.others,
    )


def _input(node: Any) -> Input:
    """What a placeholder takes."""
    given = node.meta["val"]
    return Input(tuple(map(fixed, given.shape)), given.dtype)


class Writer:
    """Writes a captured network in steps, node by node."""

    def __init__(self, captured: Captured, plan: Plan, kernels: Mapping[str, nn.Module]) -> None:
        self._captured, self._plan, self._kernels = captured, plan, kernels
        self._steps = Steps()
        self._values: dict[Node, Ready | Pending] = {}

    def written(self) -> Steps:
        """The steps of the whole network."""
        graph: Any = self._captured.graph.graph
        for node in graph.nodes:
            if node.op == "placeholder":
                self._values[node] = Ready(self._steps.graph.placeholder(node.name))
            elif node.op == "output":
                leaves = [self._floats(leaf) for leaf in pytree.tree_leaves(node.args)]
                form = graph._codegen.pytree_info.out_spec  # noqa: SLF001  (no public way)
                self._steps.graph.output(_plain(pytree.tree_unflatten(leaves, form)))
            elif node.op == "call_function" and node not in self._plan.constants:
                self._values[node] = self._written(node)
                self._plan.grids[node] = self._values[node].grid
        return self._steps

    def layers(self, names: Sequence[str]) -> dict[str, str]:
        """What each layer's kernel multiplied; ``ValueError`` for one that no step stands for."""
        shown = {
            owner(node)
            for node in self._captured.graph.graph.nodes
            if node.op == "call_function" and node.meta.get("nn_module_stack")
        }
        by: dict[int, list[str]] = {}
        for name, ran in self._steps.layers.items():  # one kernel may have two names
            by.setdefault(id(self._kernels[name]), []).extend(ran)
        found = {}
        for name in dict.fromkeys([*self._kernels, *names]):
            kernel: Any = self._kernels.get(name)
            said = by.get(id(kernel))
            if kernel is None:
                said = ["left as it was"]
            elif said is None and name not in shown:
                said = ["not run"]
            elif said is None and _in_floats(kernel):
                said = [str(kernel.runs_as)]
            if said is None:
                raise ValueError(
                    f"layer {name!r}: torch.export shows it as operators that are no call of a"
                    f" {type(kernel).__name__}; {_ADVICE}"
                )
            found[name] = " and ".join(dict.fromkeys(said))
        return found

    def _written(self, node: Node) -> Ready | Pending:
        """What a node becomes: codes where the plan says so."""
        value = self._called(node)
        if self._plan.deferred(node):
            return value
        grid = self._plan.kept(node) if self._taken(node) else None
        if isinstance(value, Ready):
            here = grid is None or value.grid is not None
            return value if here else self._steps.formed(value, grid)
        users = [*node.users]
        if grid is not None and len(users) == 1 and called(users[0]) == "add":
            return replace(value, grid=grid)
        return self._steps.run(value, grid)

    def _taken(self, node: Node) -> bool:
        """Whether something that reads a tensor computes with codes."""
        return any(
            self._taken(user)
            if called(user) in MOVES
            else user in self._plan.whole or called(user) in POOLS or self._joins(user)
            for user in node.users
        )

    def _joins(self, node: Any) -> bool:
        """Whether a node adds branches, which may be of codes."""
        return called(node) == "add" and all(
            isinstance(one, Node) and one not in self._plan.constants for one in node.args
        )

    def _called(self, node: Any) -> Ready | Pending:
        """What the operator of a node writes."""
        name, args = called(node), node.args
        first = self._values.get(args[0]) if args and isinstance(args[0], Node) else None
        if node in self._plan.folded:
            return self._values[self._plan.folded[node]]
        if node in self._captured.layers:
            return self._layer(node)
        ends = moves.ends(node)
        if isinstance(first, Pending) and ends is not None:
            return replace(first, out=first.out.clamped(*ends))
        if name == "add" and self._adds(node):
            return self._sum(*args)
        read = [self._values.get(one) for one in (args[0] if name == "cat" else args[:1])]
        codes = [one for one in read if isinstance(one, Ready) and one.grid is not None]
        found = None
        if codes and len(codes) == len(read) and len({one.grid for one in codes}) == 1:
            rest = self._read(args[1:]), self._read(node.kwargs)
            found = moves.of_codes(self._steps, node, codes, *rest)
        return self._plainly(node) if found is None else found

    def _layer(self, node: Any) -> Ready | Pending:
        """A layer of integers, with the norm behind it where there is one; or one of floats."""
        name = self._captured.layers[node][0]
        kernel: Any = self._kernels.get(name)
        if node in self._plan.whole:
            codes = self._steps.formed(self._ready(node.args[0]), kernel.grid).node
            affine = self._plan.affine(node)
            made = kernel if affine is None else kernel.behind(*affine)
            return Pending(layer=(made, name, codes))
        if kernel is not None:
            self._steps.ran(name, str(kernel.runs_as))
        if isinstance(kernel, Floats) and kernel.dtype != torch.float32:
            return self._narrow(node, kernel.dtype)
        grid = getattr(kernel, "grid", None)
        if grid is None:
            return self._plainly(node)
        read = self._steps.step(Rounded(grid), [self._floats(node.args[0])], f"{name}.rounded")
        return self._plainly(node, read)

    def _narrow(self, node: Any, dtype: torch.dtype) -> Ready:
        """A layer in another type than its neighbours."""
        cast, add = _ATEN.to.dtype, self._steps.called
        weights = [
            one and self._steps.constant(self._plan.constants[one].to(dtype), str(one))
            for one in node.args[1:3]
        ]
        read = add(cast, (self._floats(node.args[0]), dtype), {})
        found = add(node.target, (read, *weights, *node.args[3:]), {})
        return Ready(add(cast, (found, torch.float32), {}))

    def _adds(self, node: Any) -> bool:
        """Whether a sum is one of codes."""
        return not node.kwargs and all(
            isinstance(one, Node) and self._plan.grids.get(one) is not None for one in node.args
        )

    def _sum(self, one: Node, other: Node) -> Pending:
        """A sum of codes; a layer that writes one of them adds the other."""
        for layer, term in ((other, one), (one, other)):
            value, alike = self._values[layer], moves.shape(layer) == moves.shape(term)
            if isinstance(value, Pending) and value.adds and alike and layer is not term:
                return replace(value, grid=None, terms=(self._ready(term),))
        return Pending(terms=(self._ready(one), self._ready(other)))

    def _plainly(self, node: Any, first: Node | None = None) -> Ready:
        """An operator on floats; in place of its first input, another."""
        if called(node) == "as_strided":
            raise ValueError(f"as_strided reads memory, laid out otherwise for codes; {_ADVICE}")
        args = self._read(node.args) if first is None else (first, *self._read(node.args[1:]))
        kwargs, said = self._read(node.kwargs), f"{called(node)} of floats"
        number = isinstance(node.meta.get("val"), torch.SymInt | int)
        quiet = number or node in self._captured.layers or called(node) in moves.UNSAID
        return Ready(self._steps.called(moves.target(node), args, kwargs, "" if quiet else said))

    def _read(self, given: Any) -> Any:
        """Arguments, the tensors among them as floats."""
        return map_arg(given, self._floats)

    def _floats(self, of: Any) -> Any:
        """A tensor as floats; what is none, as it is."""
        if not isinstance(of, Node):
            return of
        if of in self._plan.constants:
            known = self._plan.constants[of]
            if of not in self._values and isinstance(known, Tensor):
                self._values[of] = Ready(self._steps.constant(known, str(of.target)))
            elif not isinstance(known, Tensor):
                return known
        value = self._values[of]
        if isinstance(value, Pending):
            value = self._values[of] = self._steps.run(value, None)
        return self._steps.formed(value, None).node

    def _ready(self, node: Node) -> Ready:
        """A tensor in the form it is kept in."""
        value = self._values[node]
        if isinstance(value, Pending):
            value = self._values[node] = self._steps.run(value, value.grid)
        return value


def _in_floats(kernel: Any) -> bool:
    """Whether torch's operators in float32 are all that a kernel stands for."""
    narrow = isinstance(kernel, Floats) and kernel.dtype != torch.float32
    return not (narrow or isinstance(kernel, Integers) or getattr(kernel, "grid", None))


def _plain(output: Any) -> Any:
    """What a network returns; ``ValueError`` where a list of steps could not."""
    if isinstance(output, tuple | list | dict):
        if type(output) not in (tuple, list, dict):
            raise ValueError(
                f"the network returns a {type(output).__name__}; return tensors in tuples, lists"
                f" and dicts, or {_ADVICE}"
            )
        for part in output.values() if isinstance(output, dict) else output:
            _plain(part)
    return output
