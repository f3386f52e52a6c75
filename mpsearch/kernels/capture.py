"""A network as a graph of torch's operators, and what its tensors are on calibration batches."""

import copy
import inspect
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from mpsearch.batches import samples
from mpsearch.kernels.onnx_moves import CLAMPS, POOLS
from mpsearch.kernels.plain import floated, is_linear
from mpsearch.quant.activations import Seen, fake_quantize
from mpsearch.quant.modules import Stored

LAYERS = ("linear", "conv1d", "conv2d")
_FLOATS = ("conv3d", *(f"conv_transpose{n}d" for n in (1, 2, 3)))  # no integer kernel has these
_NORM = "_native_batch_norm_legit_no_training"  # writes a tuple
_LOOKED_AT = {*LAYERS, *POOLS, *CLAMPS, "add", "batch_norm"}  # what may be kept as codes


class Captured:
    """A network as a graph of torch's operators, and the modules of its layers.

    Attributes:
        graph: In floats; its inputs are those of the model.
        layers: What each call of a linear layer or a convolution is a call of, with its name.
    """

    def __init__(self, model: nn.Module, batch: Any, advice: str) -> None:
        """Capture; ``ValueError`` that ends with the advice where that cannot be done."""
        model = copy.deepcopy(model).float().cpu()
        plain = _in_floats(model)
        (args, kwargs), given, many = arguments(batch), inputs(batch), samples(batch)
        dynamic = [
            {0: torch.export.Dim.AUTO} if x.dim() and len(x) == many > 1 else {} for x in given
        ]
        shapes = dict(zip(kwargs, dynamic, strict=True)) if kwargs else tuple(dynamic)
        if kwargs:
            plain.forward = _naming(plain.forward, [*kwargs])
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # torch about itself
                found = torch.export.export(plain, args, kwargs, dynamic_shapes=shapes)
                module: Any = found.run_decompositions({}).module(check_guards=False)
        except Exception as error:
            said = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"torch.export cannot capture the {type(model).__name__}: {said}; {advice}"
            ) from error
        self.graph: GraphModule = module
        _tidied(self.graph)
        self.layers = {
            node: (name, model.get_submodule(name))
            for node in self.graph.graph.nodes
            if called(node) in (*LAYERS, *_FLOATS)
            for name in [owner(node)]
        }


def _in_floats(model: nn.Module) -> nn.Module:
    """A copy on the weights that codes stand for, in torch's own linear layers."""
    new = copy.deepcopy(model)
    for name, module in [*new.named_modules(remove_duplicate=False)]:
        plain = floated(module) if isinstance(module, Stored) else module
        if is_linear(plain) and not isinstance(plain, nn.Linear):
            plain = _linear(plain)
        if not name:
            new = plain
        elif plain is not module:
            new.set_submodule(name, plain)
    return new


def _naming(forward: Any, names: Sequence[str]) -> Any:
    """The function, its arguments named: torch.export gives ``**`` no shapes."""

    def named(**given: Any) -> Any:
        return forward(**given)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    made: Any = named
    made.__signature__ = inspect.Signature(parameters)
    return made


def _linear(module: Any) -> nn.Linear:
    """Hugging Face's ``Conv1D`` as torch has it."""
    inputs, outputs = module.weight.shape
    made = nn.Linear(inputs, outputs, device="meta")
    made.weight, made.bias = nn.Parameter(module.weight.detach().t().contiguous()), module.bias
    return made


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called with a batch, floats in 32 bits."""
    if isinstance(batch, Mapping):
        return (), {key: _single(value) for key, value in batch.items()}
    return (_single(batch[0] if isinstance(batch, tuple | list) else batch),), {}


def _single(x: Any) -> Any:
    if not isinstance(x, Tensor):
        raise ValueError(  # noqa: TRY004  (as for all that cannot be written)
            f"a batch holds {x!r}, which is no tensor; wrap the model so that it reads no others"
        )
    return x.detach().float().cpu() if x.is_floating_point() else x.cpu()


def called(node: Any) -> str:
    """The name of the operator that a node calls; empty where it calls none."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", node.target))


def owner(node: Node) -> str:
    """The name of the module in whose forward an operator was called."""
    stack = [*node.meta["nn_module_stack"].values()]
    return str(stack[-1][0]).partition("@")[0]


def _tidied(module: GraphModule) -> None:
    """Norms that write a tensor, and nothing that is not read."""
    for node in [*module.graph.nodes]:
        if called(node) == "getitem" and called(node.args[0]) == _NORM:
            norm = node.args[0]
            norm.target, norm.meta["val"] = torch.ops.aten.batch_norm.default, node.meta["val"]
            *given, momentum, epsilon = norm.args
            norm.args = (*given, False, momentum, epsilon, False)
            node.replace_all_uses_with(norm)
            module.graph.erase_node(node)
    for node in reversed([*module.graph.nodes]):
        if node.op in ("call_function", "get_attr") and not node.users:
            module.graph.erase_node(node)


def alike(batches: Sequence[Any], what: str) -> list[Any]:
    """The batches, named tensors in the order of the first; refused where more than that differs.

    They may differ in the number of samples.
    """
    names = [[*batch] if isinstance(batch, Mapping) else [] for batch in batches]
    if len({frozenset(each) for each in names}) > 1:
        raise ValueError(f"batches name the tensors {names}; {what} for one set of names")
    if names and names[0]:
        batches = [{name: batch[name] for name in names[0]} for batch in batches]
    shapes = {tuple(x.shape[1:] for x in inputs(batch)) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"batches have the shapes {sorted(shapes)}; {what} for one, so give batches that differ"
            " in the number of samples alone"
        )
    return [*batches]


def inputs(batch: Any) -> list[Tensor]:
    """The tensors of a batch that a model reads."""
    args, kwargs = arguments(batch)
    return [*args, *kwargs.values()]


class Observed(Interpreter):
    """Runs a captured network as it will be quantized, and looks at every tensor."""

    def __init__(self, captured: Captured, batches: int) -> None:
        super().__init__(captured.graph)
        self._layers, self._batches = captured.layers, batches
        self.seen: dict[Node, Seen] = {}
        self.constants: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """The node's result, its values remembered where it does not depend on the input."""
        found = self._rounded(n) if n in self._layers else super().run_node(n)
        if called(n) in _LOOKED_AT and torch.isfinite(found).all():
            self.seen.setdefault(n, Seen()).add(found, self._batches)
        known = n.op == "get_attr" or (
            n.op == "call_function" and all(x in self.constants for x in n.all_input_nodes)
        )
        if known:
            self.constants[n] = found
        return found

    def _rounded(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        grid = getattr(self._layers[n][1], "grid", None)
        first = args[0] if grid is None else fake_quantize(args[0], grid)
        return self.call_function(n.target, (first, *args[1:]), kwargs)
