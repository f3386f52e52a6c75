"""ONNX Runtime on CPU: layers on it, alone, and which of its kernels ran.

A convolution of codes writes codes of 8 bits, as it does in a network: their range is that of the
first output. Linear layers write floats.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.formats import Format, Option
from mpsearch.kernels import onnx_layers as layers
from mpsearch.kernels.onnx_graph import Array, Graph, Value, needed
from mpsearch.kernels.plain import floated
from mpsearch.network import Layer
from mpsearch.quant.activations import Grid, Seen
from mpsearch.quant.codes import Codes
from mpsearch.quant.modules import Stored, store
from mpsearch.quant.recipe import Recipe

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
        """Refuse an accuracy that ONNX Runtime does not have."""
        if self.accuracy not in (0, 4):
            raise ValueError(f"accuracy is 0 (floats) or 4 (8 bits), got {self.accuracy!r}")

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
        return Alone(module, self.accuracy, self.threads)


class Alone(nn.Module):
    """A layer that is a network of its own.

    Attributes:
        grid: Of the codes it writes, once it has run; ``None`` where it writes floats.
    """

    def __init__(self, module: nn.Module, accuracy: int, threads: int) -> None:
        super().__init__()
        self._module, self._settings = [module], (accuracy, threads)  # in a list: no child
        self._kind = layers.kind_of(module)
        self._linear = isinstance(module, nn.Linear)
        self._session: Any = None
        self.grid: Grid | None = None
        option = getattr(module, "option", None)
        self.runs_as = {"integer": "int8/int8", "float": "fp32/fp32"}.get(
            str(self._kind),
            f"{option and option.weight}/{'int8 per block' if accuracy else 'fp32'}",
        )

    def forward(self, x: Tensor) -> Tensor:
        """What the module computes, in the type of the input."""
        if self._session is None:
            self._session = self._begun(x)
        read = x.detach().float()
        shape = (*read.shape[:-1], -1) if self._linear else None
        if self._linear:
            read = read.reshape(-1, read.shape[-1])
        found = self._session.run(None, {"x": layers.array(read)})[0]
        made = torch.from_numpy(found)
        return (made if shape is None else made.reshape(shape)).to(x.dtype)

    @torch.no_grad()
    def _begun(self, x: Tensor) -> Any:
        module = self._module.pop()
        if self._kind == "integer" and not self._linear:
            seen = Seen()
            seen.add(module(x), 1)
            self.grid = seen.grid(_BYTE, _COVERING)
        accuracy, threads = self._settings
        axes = 2 if self._linear else x.dim()
        return session(alone(module, axes, self.grid, accuracy), threads)


def alone(module: nn.Module, axes: int, grid: Grid | None = None, accuracy: int = 4) -> bytes:
    """A file of one layer, ``x`` to ``y``, of so many axes; ``y`` on a grid if one is given."""
    graph, name, x = Graph(), "layer", Value("x")
    this: Any = module
    moves = None
    if not isinstance(module, nn.Linear):
        window = this.stride, this.padding, this.dilation, this.groups
        moves = layers.Moves.of(this.kernel_size, *window)
    kind = layers.kind_of(module)
    if kind == "integer":
        found = layers.integer(graph, name, x, layers.Weight.of(module), this.grid, moves)
    elif kind == "packed":
        found = Value(layers.packed(graph, name, "x", module, accuracy))
    else:
        plain: Any = floated(module)
        given = [
            None if each is None else layers.array(each) for each in (plain.weight, plain.bias)
        ]
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
