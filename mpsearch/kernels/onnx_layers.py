"""Layers as ONNX Runtime runs them: which kernel an option gets, and its nodes.

Linear layers and convolutions of 8-bit codes (fewer bits in containers of 8) become ``QGemm`` and
``QLinearConv``; linear layers whose weights alone are codes become ``MatMulNBits``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.kernels.onnx_graph import Array, Graph, Value
from mpsearch.kernels.plain import is_linear
from mpsearch.quant.activations import Grid
from mpsearch.quant.modules import Stored, class_of

Kind = Literal["integer", "packed", "float"]
_MOST = (1 << 31) - 1
_BLOCKS = (128, 64, 32, 16)
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d)
TAKEN = (
    "int2 to int8 weights per channel or tensor with int2 to int8 inputs (linear layers, 1D and 2D"
    " convolutions), int2, int4 and int8 weights, a of groups too, with inputs of 16 or 32 bits"
    " (linear layers), and both in 16 or 32 bits"
)


def takes(option: Option, module: nn.Module) -> bool:
    """Whether there is a kernel for a module at an option, whatever codes it holds."""
    of, linear = class_of(module), is_linear(module)
    convolution = any(of.forward is each.forward for each in _CONVOLUTIONS) and _zeros(module)
    weight, inputs = option.weight.as_weight(), option.activation.as_activation()
    if not (linear or convolution) or weight != weight.plain or inputs != inputs.plain:
        return False
    if weight.kind == "full" and inputs.kind == "full":
        return "bf16" not in (weight.base, inputs.base)
    if weight.kind != "int" or weight.bits < 2:
        return False
    if inputs.kind == "int":
        whole = bool(weight.symmetric) and weight.per != "group"
        return whole and inputs.per == "tensor" and inputs.bits > 1
    return (
        inputs.kind == "full" and linear and weight.bits in (2, 4, 8) and _block(weight.group) > 0
    )


def kind_of(module: nn.Module) -> Kind | None:
    """How a module's option is run; ``None`` where there is no kernel for it."""
    if not isinstance(module, Stored) or isinstance(module, nn.Embedding):
        return "float"
    if not module.option.weight.quantized and module.grid is None:
        return "float"
    if not takes(module.option, module):
        return None
    return "packed" if module.grid is None else "integer"


def _zeros(module: Any) -> bool:
    return getattr(module, "padding_mode", "zeros") == "zeros"


def _block(group: int | None) -> int:
    """Inputs of one block of ``MatMulNBits``; 0 where groups are not made of such blocks."""
    return next((size for size in _BLOCKS if (group or size) % size == 0), 0)


def refused(name: str, module: Any) -> ValueError:
    """What is said of an option without a kernel."""
    return ValueError(
        f"layer {name!r}: ONNX Runtime has no kernel for a {class_of(module).__name__} at"
        f" {str(module.option)!r}; it takes {TAKEN}"
    )


@dataclass(frozen=True)
class Weight:
    """Codes of a layer's weight, outputs first, and what their sums are scaled to.

    Attributes:
        codes: int8, in the weight's shape.
        scale: (out,) float64.
        bias: (out,) float64.
    """

    codes: Array
    scale: Array
    bias: Array

    @classmethod
    def of(cls, module: Any) -> "Weight":
        """A quantized module's; codes of fewer bits times the power of two that fills eight.

        A bias is a whole number of what a sum counts, which would be coarse without.
        """
        stored = module.stored()
        codes = stored.codes.reshape(stored.shape).numpy()
        peak = np.abs(codes.reshape(len(codes), -1)).max(1).clip(1)
        times = 2 ** np.floor(np.log2(127 / peak))
        scale = stored.steps.double().expand(len(codes)).numpy() / times
        filled = codes * times.reshape(-1, *(1,) * (codes.ndim - 1))
        given = getattr(module, "bias", None)
        bias = np.zeros(len(codes)) if given is None else given.detach().double().numpy()
        return cls(filled.astype(np.int8), scale, bias)

    def scaled(self, gain: Array, shift: Array) -> "Weight":
        """Of the layer and a gain and a shift for each output behind it."""
        return Weight(self.codes, self.scale * gain, self.bias * gain + shift)

    def whole(self, grid: Grid) -> tuple[Array, Array, Array]:
        """Codes, positive float32 scales, and the bias in units of what a sum counts.

        Where an output's bias is too large for an int32, its codes are made coarser until it fits.
        """
        least = np.abs(self.bias) / (grid.scale * (_MOST - 1))
        scale = np.maximum(np.abs(self.scale), least)
        scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
        times = (self.scale / scale).reshape(-1, *(1,) * (self.codes.ndim - 1))  # 1, -1 or less
        codes = np.rint(self.codes * times)
        unit = scale.astype(np.float64) * float(np.float32(grid.scale))
        bias = np.clip(np.rint(self.bias / unit), -_MOST, _MOST).astype(np.int32)
        return codes.astype(np.int8), scale, bias


@dataclass(frozen=True)
class Moves:
    """How a convolution moves: the words of ``Conv``."""

    strides: Sequence[int]
    pads: Sequence[int]
    dilations: Sequence[int]
    group: int

    @classmethod
    def of(
        cls, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, groups: int
    ) -> "Moves":
        """From torch's words."""
        axes = len(kernel)
        wide = each(dilation, axes)
        if padding == "same":
            total = [step * (side - 1) for step, side in zip(wide, kernel, strict=True)]
            pads = [side // 2 for side in total] + [side - side // 2 for side in total]
        else:
            pads = each(0 if padding == "valid" else padding, axes) * 2
        return cls(each(stride, axes), pads, wide, groups)


def each(number: Any, axes: int) -> list[int]:
    """One number for each axis."""
    given = [number] if isinstance(number, int) else [*number]
    return given * axes if len(given) == 1 else given


def integer(
    graph: Graph, name: str, x: Value, weight: Weight, grid: Grid, moves: Moves | None
) -> Value:
    """A convolution, or without moves a linear layer, of codes; its result still floats."""
    grid = grid.unsigned
    codes, scale, bias = weight.whole(grid)
    read = graph.codes(x, grid).name
    linear = moves is None
    if linear:
        read = graph.reshaped(read, (-1, codes.shape[1]))
    inputs = [
        graph.dequantized(read, grid),
        graph.weight(codes.T if linear else codes, scale, int(linear), f"{name}.weight"),
        graph.weight(bias, scale * np.float32(grid.scale), 0, f"{name}.bias"),
    ]
    words = {} if moves is None else vars(moves)
    return Value(graph.add("Gemm" if linear else "Conv", inputs, name=name, **words))


def plain(
    graph: Graph, name: str, x: str, weights: Sequence[str | None], moves: Moves | None
) -> Value:
    """A layer in floats."""
    weight, bias = weights
    if moves is not None:
        inputs = [x, *(each for each in weights if each is not None)]
        return Value(graph.add("Conv", inputs, name=name, **vars(moves)))
    turned = graph.add("Transpose", [str(weight)], perm=[1, 0])
    found = graph.add("MatMul", [x, turned], name=name)
    return Value(found if bias is None else graph.add("Add", [found, bias]))


def packed(graph: Graph, name: str, x: str, module: Any, accuracy: int) -> str:
    """A linear layer on packed weights: floats in, floats out."""
    stored = module.stored()
    form, (rows, columns) = stored.format, stored.shape
    block = _block(form.group)
    blocks = -(-columns // block)
    each = (form.group if form.per == "group" else 0) or blocks * block
    scale = _by_block(stored.steps, rows, each // block, blocks)
    half = 1 << (form.bits - 1)
    codes = torch.full((rows, blocks * block), half, dtype=torch.uint8)
    up = half if form.symmetric else 0
    codes[:, :columns] = (stored.codes.reshape(rows, columns).to(torch.int16) + up).to(torch.uint8)
    inputs = [
        x,
        graph.constant(_packed(codes, form.bits).reshape(rows, blocks, -1), f"{name}.codes"),
        graph.constant(scale.numpy(), f"{name}.scale"),
    ]
    if stored.zero is not None:
        zeros = _by_block(stored.zero, rows, each // block, blocks)
        inputs.append(graph.constant(_packed(zeros, form.bits), f"{name}.zero_point"))
    words = {"K": columns, "N": rows, "bits": form.bits, "block_size": block}
    found = graph.add("MatMulNBits", inputs, name=name, accuracy_level=accuracy, **words)
    bias = getattr(module, "bias", None)
    return found if bias is None else graph.add("Add", [found, graph.constant(array(bias))])


def _by_block(values: Tensor, rows: int, times: int, blocks: int) -> Tensor:
    """(out, blocks) of what each tensor, output or group has."""
    each = values.reshape(rows if len(values) >= rows else 1, -1).expand(rows, -1)
    return each.repeat_interleave(max(times, 1), 1)[:, :blocks].contiguous()


def _packed(codes: Tensor, bits: int) -> Array:
    """(rows, bytes) with the codes of each row side by side, the first in the lowest bits."""
    many = 8 // bits
    short = -codes.shape[1] % many
    filled = torch.nn.functional.pad(codes, (0, short)).reshape(len(codes), -1, many)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    found: Array = (filled << shifts).sum(-1, dtype=torch.uint8).numpy()
    return found


def array(values: Tensor) -> Array:
    """A tensor as numpy has it."""
    found: Array = values.detach().cpu().contiguous().numpy()
    return found
