"""A quantized network as a file that ONNX Runtime runs alone.

Weights and inputs of at most 8 bits become the form that runtimes fuse to integer operators
(``QuantizeLinear`` and ``DequantizeLinear`` around each), weights alone of 2, 4 and 8 bits
``MatMulNBits``.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsearch.allocation import Allocation
from mpsearch.formats import Option

if TYPE_CHECKING:
    from mpsearch.quant.recipe import Recipe


@dataclass(frozen=True)
class Written:
    """A file, and what ran when it was run once.

    Attributes:
        path: Of the file.
        layers: Module name to the kernel that ran, in ONNX Runtime's words.
        others: Kernels that ran beside the layers, and how often.
    """

    path: Path
    layers: Mapping[str, str]
    others: Mapping[str, int]

    def __str__(self) -> str:
        rows = [f"{name}: {kernel}" for name, kernel in self.layers.items()]
        rows += [f"beside the layers: {count} {kernel}" for kernel, count in self.others.items()]
        return "\n".join(rows)


def onnx(
    model: Any,
    allocation: Mapping[str, Option | str] | Allocation,
    batches: Sequence[Any],
    path: str | Path,
    recipe: "Recipe | None" = None,
    *,
    accuracy: int = 4,
) -> Written:
    """Quantize a model to an allocation, write it, run it on the first batch, and say what ran.

    The number of samples stays free where the model allows. Between layers tensors are 8-bit codes
    where integer operators follow each other, so outputs differ from those of ``mp.quantize`` by
    that rounding.

    Args:
        accuracy: What ``MatMulNBits`` multiplies: 4 is inputs rounded to 8 bits block by block, 0
            is 32-bit floats.

    Raises:
        ValueError: An option without a kernel, an operator that has no counterpart here, or a model
            that ``torch.export`` cannot capture.
    """
    network: Any = importlib.import_module("mpsearch.kernels.onnx_network")
    quant: Any = importlib.import_module("mpsearch.quant")
    if recipe is None:
        known = allocation.recipe if isinstance(allocation, Allocation) else None
        recipe = quant.Recipe.read(known)
    made = quant.quantize(model, allocation, batches, recipe)
    written = network.written(made, batches, recipe, accuracy)
    Path(path).write_bytes(written.content)
    return Written(Path(path), written.layers, written.others)
