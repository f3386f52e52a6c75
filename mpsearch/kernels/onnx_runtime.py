"""ONNX Runtime on CPU: layers on it, alone, and which of its kernels ran.

A convolution of codes writes codes of 8 bits, as it does in a network: their range is that of its
outputs on the calibration batches, or without these of the first output. Linear layers write
floats. A bias of a layer of codes is rounded to a whole number of what its sums count.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call
from mpsearch.formats import Format, Option
from mpsearch.kernels import onnx_layers as layers
from mpsearch.kernels.onnx_graph import Array, Graph, Value, needed
from mpsearch.kernels.plain import check_threads, checked, floated, is_linear
from mpsearch.network import Layer
from mpsearch.quant.activations import Grid, Seen
from mpsearch.quant.codes import Codes
from mpsearch.quant.modules import Stored, store
from mpsearch.quant.recipe import Recipe
from mpsearch.tracing import output_first

_BYTE = Format.parse("int8")
_COVERING = Recipe(activation_ranges="minmax")
_LAYERS = ("Conv", "Gemm", "MatMul")  # in the name of every kernel that multiplies by a weight
_BEHIND = r"(?:#\d+)?(?:[/:].*)?(?:_token_\d+|_nchwc|_quant)*"  # a node's name, after fusion


@dataclass(frozen=True)
class OnnxRuntime:
    """Linear layers and convolutions, a session each.

    Attributes:
        accuracy: What weights alone in codes are multiplied with: 4 is inputs rounded to 8 bits
            block by block, 0 is 32-bit floats, for which there are fast kernels at 4 bits only.
        threads: Of a session; 0 takes as many as torch does.
    """

    accuracy: int = 4
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse an accuracy that ONNX Runtime does not have, and a negative number of threads."""
        if self.accuracy not in (0, 4):
            raise ValueError(f"accuracy is 0 (floats) or 4 (8 bits), got {self.accuracy!r}")
        check_threads(self.threads)

    def kernel(self, layer: Layer, option: Option, module: Any) -> "Alone | None":
        """A module of :func:`mpsearch.quant.quantize`, or one in floats, in ONNX Runtime.

        There is none where :data:`mpsearch.kernels.onnx_layers.TAKEN` names none, for bfloat16, nor
        for integers where this CPU's sums are not exact. ``ImportError`` without the packages,
        ``ValueError`` where the option wants codes that the module does not hold.
        """
        if not layers.takes(option, module):
            return None
        kind = layers.kind_of(module)
        wants = option.weight.quantized or option.activation.quantized
        if wants and (not isinstance(module, Stored) or kind == "float"):
            raise ValueError(
                f"layer {layer.name!r} at {str(option)!r}: its module is a"
                f" {type(module).__name__} that holds no codes; give one of mpsearch.quant.quantize"
            )
        if kind is None or (kind == "integer" and not exact()):
            return None
        return Alone(module, layer.name, self.accuracy, self.threads)

    def network(
        self,
        model: nn.Module,
        kernels: Mapping[str, nn.Module],
        batches: Sequence[Any],
        recipe: Recipe,
    ) -> None:
        """No network of its own: give each kernel the range of what it writes on the batches."""
        waiting = {one: name for name, one in kernels.items() if isinstance(one, Alone)}
        seen = {one: (name, Seen()) for one, name in waiting.items() if not one.made}

        def looking(at: Seen) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda _, __, y: at.add(y, len(batches))

        with ExitStack() as stack, torch.no_grad():
            for name, found in seen.values():
                hook = model.get_submodule(name).register_forward_hook(looking(found))
                stack.callback(hook.remove)
            for batch in batches if seen else ():
                call(model, batch)
        for one, (_, found) in seen.items():
            if found.count:
                one.make(found.grid(_BYTE, recipe))


class Alone(nn.Module):
    """A layer that is a network of its own.

    Attributes:
        grid: Of the codes it writes, once that is known; ``None`` where it writes floats.
        made: The file that is run; nothing before the grid is known.
    """

    def __init__(self, module: nn.Module, name: str, accuracy: int, threads: int) -> None:
        super().__init__()
        of: Any = module
        self.name, self._accuracy, self._threads = name, accuracy, threads
        self._module = [module]  # in a list: no child
        self._linear = is_linear(module)
        self._axes = 2 if self._linear else 2 + len(of.kernel_size)
        channels = _wide(module) if self._linear else of.in_channels
        self._reads: tuple[int, int] = (-1 if self._linear else 1 - self._axes, channels)
        self.grid: Grid | None = None
        self.made = b""
        self._session: Any = None
        kind, option = layers.kind_of(module), getattr(module, "option", None)
        self.runs_as = {"integer": "int8/int8", "float": "fp32/fp32"}.get(
            str(kind), f"{option and option.weight}/{'int8 per block' if accuracy else 'fp32'}"
        )
        if kind != "integer" or self._linear:
            self.make(None)

    def make(self, grid: Grid | None) -> None:
        """The file, for codes of a grid or for floats, and a session for it."""
        self.grid = grid
        self.made = alone(self._module.pop(), self._axes, grid, self._accuracy)
        self._session = session(self.made, self._threads)

    def __getstate__(self) -> dict[str, Any]:
        """All but the session: that cannot be copied."""
        return {**self.__dict__, "_session": None}

    def forward(self, x: Tensor) -> Tensor:
        """What the module computes, in the type of the input."""
        checked(x, *self._reads, self.name)
        if not self.made and not x.numel():  # nothing to find a range on
            found: Tensor = self._module[0](x)
            return found
        if not self.made:
            self._look(x)
        if self._session is None:  # of a copy
            self._session = session(self.made, self._threads)
        read = x.detach().float()
        read = read.reshape(-1, x.shape[-1]) if self._linear else read
        one = read.dim() < self._axes  # image, alone
        feed = {"x": layers.array(read[None] if one else read)}
        made = torch.from_numpy(self._session.run(None, feed)[0])
        if self._linear:
            made = made.reshape(*x.shape[:-1], made.shape[-1])
        return (made[0] if one else made).to(x.dtype)

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        seen = Seen()
        seen.add(self._module[0](x), 1)
        self.make(seen.grid(_BYTE, _COVERING))


def _wide(module: Any) -> int:
    """Values that a linear layer reads."""
    if isinstance(module, Stored):
        return module.stored_shape[1]
    return output_first(module.weight, module).shape[1]


def alone(module: nn.Module, axes: int, grid: Grid | None = None, accuracy: int = 4) -> bytes:
    """A file of one layer, ``x`` to ``y``, of so many axes; ``y`` on a grid if one is given."""
    graph, name, x = Graph(), "layer", Value("x")
    this: Any = module
    moves = None
    if not is_linear(module):
        window = this.stride, this.padding, this.dilation, this.groups
        moves = layers.Moves.of(this.kernel_size, *window)
    kind = layers.kind_of(module)
    if kind == "integer":
        found = layers.integer(graph, name, x, layers.Weight.of(module), this.grid, moves)
    elif kind == "packed":
        found = Value(layers.packed(graph, name, "x", module, accuracy))
    else:
        plain: Any = floated(module)
        weight = output_first(plain.weight, plain)
        given = [None if each is None else layers.array(each) for each in (weight, plain.bias)]
        names = [None if each is None else graph.constant(each) for each in given]
        found = layers.plain(graph, name, "x", names, moves)
    if grid is not None:
        found = graph.codes(found, grid.unsigned)
    graph.named(graph.floats(found), "y")
    ends = [(end, torch.float32, [None] * axes) for end in ("x", "y")]
    return graph.model(ends[:1], ends[1:])


def session(model: bytes | str | Path, threads: int = 0, profile: str = "") -> Any:
    """A session for a file or what is in it, on so many threads; 0 takes as many as torch does."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def ran(model: bytes | str | Path, feed: Mapping[str, Array]) -> list[tuple[str, str]]:
    """Every node that ran, by its name and its kernel's, after all that a session fuses."""
    with tempfile.TemporaryDirectory() as folder:
        made = session(model, 1, str(Path(folder) / "ran"))
        made.run(None, dict(feed))
        events = json.loads(Path(made.end_profiling()).read_text())
    end = "_kernel_time"
    return [
        (event["name"].removesuffix(end), event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(end)
    ]


def kernels_of(
    nodes: Sequence[tuple[str, str]], names: Sequence[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """What ran for each layer, by its name, and what ran beside them."""
    known = sorted(set(names), key=len, reverse=True)
    pattern = re.compile(rf"(?:fused )?({'|'.join(map(re.escape, known))}){_BEHIND}")
    found: dict[str, set[str]] = {name: set() for name in names}
    others: Counter[str] = Counter()
    for node, kernel in nodes:
        match = pattern.fullmatch(node) if known else None
        if match and any(word in kernel for word in _LAYERS):
            found[match[1]].add(kernel)
        else:
            others[kernel] += 1
    return {n: " and ".join(sorted(each)) or "not seen" for n, each in found.items()}, dict(others)


@cache
def exact() -> bool:
    """Whether this CPU sums products of 8-bit codes exactly: those without VNNI saturate."""
    module: Any = nn.Linear(64, 16, bias=False)
    form = Format.parse("int8")
    shape, codes = (16, 64), torch.full((16, 64), -127, dtype=torch.int8)
    stored = Codes(codes, torch.ones(16).half(), None, form.as_weight(), shape)
    option = Option({"weight": form, "activation": form})
    store(module, option, stored, Grid(1.0, 0, 0, 255), torch.float32)
    x = torch.full((4, 64), 255.0)
    found = session(alone(module, 2), 1).run(None, {"x": x.numpy()})[0]
    return bool((found == -127.0 * 255 * 64).all())
