"""An ONNX graph as it is written: tensors that are codes or floats, and how one becomes the other.

Codes are uint8 with a scale and a zero point, in the form that runtimes fuse to integer operators:
what a ``DequantizeLinear`` reads and a ``QuantizeLinear`` writes. A clamp between an operator and
its ``QuantizeLinear`` would be in the way, so it is put behind, on codes, where it is the same.
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.quant.activations import Grid

Array = NDArray[Any]
_OPSETS = {"": 21, "com.microsoft": 1}
_IR = 10
_MOST = (1 << 31) - (1 << 24)  # bytes of weights in a file
End = tuple[str, Any, Sequence[int | str | None]]  # an input or output: name, type, shape


def needed(name: str) -> Any:
    """A package that only ONNX files need; ``ImportError`` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f'ONNX files need {name}: pip install "mpsearch[onnx]"') from None


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: In the graph.
        grid: What its codes stand for; ``None`` where it holds no codes.
        least: What floats are still to be raised to.
        most: What floats are still to be lowered to.
        shape: That it is still to be given.
    """

    name: str
    grid: Grid | None = None
    least: float = -math.inf
    most: float = math.inf
    shape: tuple[int, ...] | None = None

    def clamped(self, least: float, most: float) -> "Value":
        """Floats raised to one bound, then lowered to the other."""
        return replace(
            self,
            least=min(max(self.least, least), most),
            most=min(max(self.most, least), most),
        )


class Graph:
    """Nodes and constants, in the order they were written."""

    def __init__(self) -> None:
        self._onnx = needed("onnx")
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._floats: dict[Value, str] = {}
        self._codes: dict[tuple[Value, Grid], str] = {}
        self._taken: dict[str, int] = {}

    def kind(self, dtype: Any) -> int:
        """The number ONNX has for a type of torch."""
        kind = np.dtype(str(dtype).removeprefix("torch."))
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(kind))

    def unique(self, name: str) -> str:
        """The name, or where it is taken, the name and a number."""
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def constant(self, values: Array, name: str = "constant") -> str:
        """The name of a tensor stored in the file."""
        found = self.unique(name)
        stored = np.ascontiguousarray(values) if values.ndim else values
        self._constants[found] = self._onnx.numpy_helper.from_array(stored, found)
        return found

    def add(self, op: str, inputs: Sequence[str], *, name: str = "", **attributes: Any) -> str:
        """The name of what an operator writes."""
        return self.several(op, inputs, 1, name=name, **attributes)[0]

    def several(
        self, op: str, inputs: Sequence[str], count: int, *, name: str = "", **attributes: Any
    ) -> list[str]:
        """The names of all that an operator writes."""
        domain = "com.microsoft" if op == "MatMulNBits" else ""
        outputs = [self.unique(f"{name or op}:0") for _ in range(count)]
        made = self._onnx.helper.make_node(
            op, inputs, outputs, name=self.unique(name or op), domain=domain, **attributes
        )
        self._nodes.append(made)
        return outputs

    def named(self, name: str, output: str) -> None:
        """Give a tensor the name that an output of the file has."""
        made = self._onnx.helper.make_node("Identity", [name], [output], name=output)
        self._nodes.append(made)

    def reshaped(self, name: str, shape: Sequence[int]) -> str:
        """The tensor in another shape."""
        return self.add("Reshape", [name, self.constant(np.array(shape, np.int64), "shape")])

    def floats(self, value: Value) -> str:
        """The name of a value as floats, all that was still to be done to it done."""
        if value.grid is not None:
            return self.dequantized(value.name, value.grid)
        if value not in self._floats:
            name = self._clamped(value)
            self._floats[value] = name if value.shape is None else self.reshaped(name, value.shape)
        return self._floats[value]

    def _clamped(self, value: Value) -> str:
        ends, owner = (value.least, value.most), value.name.partition(":")[0]
        if ends == (-math.inf, math.inf):
            return value.name
        if ends == (0, math.inf):
            return self.add("Relu", [value.name], name=f"{owner}/Relu")
        given = [
            "" if math.isinf(end) else self.constant(np.array(end, np.float32)) for end in ends
        ]
        return self.add("Clip", [value.name, *given], name=f"{owner}/Clip")

    def codes(self, value: Value, grid: Grid) -> Value:
        """A value as codes of a grid."""
        if value.grid == grid:
            return value
        plain = replace(value, shape=None)
        if value.grid is not None:
            plain = Value(self.floats(value))
        if (plain, grid) not in self._codes:
            made = self.add("QuantizeLinear", [plain.name, *self._steps(grid)])
            low, high = grid.code_of(plain.least), grid.code_of(plain.most)
            if low > 0:
                made = self.add("Max", [made, self.constant(np.array(low, np.uint8))])
            if high < 255:
                made = self.add("Min", [made, self.constant(np.array(high, np.uint8))])
            self._codes[plain, grid] = made
        found = self._codes[plain, grid]
        if value.shape is not None:
            found = self.reshaped(found, value.shape)
        return Value(found, grid)

    def dequantized(self, codes: str, grid: Grid) -> str:
        """The floats that uint8 codes stand for."""
        key = Value(codes, grid)
        if key not in self._floats:
            self._floats[key] = self.add("DequantizeLinear", [codes, *self._steps(grid)])
        return self._floats[key]

    def weight(self, codes: Array, scale: Array, axis: int, name: str) -> str:
        """The floats that stored codes stand for, one scale for each place along an axis."""
        names = [
            self.constant(codes, f"{name}.codes"),
            self.constant(scale.astype(np.float32), f"{name}.scale"),
        ]
        if codes.dtype == np.int8:  # without it ONNX Runtime takes a linear layer for a float one
            names.append(self.constant(np.zeros(len(scale), np.int8), f"{name}.zero_point"))
        return self.add("DequantizeLinear", names, name=name, axis=axis)

    def _steps(self, grid: Grid) -> list[str]:
        scale, zero = f"scale {grid.scale!r}", f"zero {grid.zero}"
        if scale not in self._constants:
            self.constant(np.array(grid.scale, np.float32), scale)
        if zero not in self._constants:
            self.constant(np.array(grid.zero, np.uint8), zero)
        return [scale, zero]

    def model(self, inputs: Sequence[End], outputs: Sequence[End]) -> bytes:
        """The finished file."""
        helper = self._onnx.helper
        ends = [
            [
                helper.make_tensor_value_info(name, self.kind(kind), shape)
                for name, kind, shape in each
            ]
            for each in (inputs, outputs)
        ]
        size = sum(each.ByteSize() for each in self._constants.values())
        if size > _MOST:
            raise ValueError(
                f"the weights take {size} bytes; a file holds at most {_MOST}, so choose fewer bits"
            )
        graph = helper.make_graph(self._nodes, "mpsearch", *ends, [*self._constants.values()])
        opsets = [helper.make_opsetid(name, number) for name, number in _OPSETS.items()]
        made = helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR, producer_name="mpsearch"
        )
        self._onnx.checker.check_model(made)
        return bytes(made.SerializeToString())
