"""What core torch has kernels for on CPUs: 8-bit integers, 32-bit floats and bfloat16.

Linear layers and convolutions of 2 to 8 bits run on oneDNN's integer operators, codes of fewer bits
in containers of 8. There are two ways to put them together:

- ``torch-cpu``: each layer reads floats, rounds them to its own codes and writes floats. Sums of
  branches and normalization stay in floats, so nothing is rounded but where the quantized network,
  on which losses were predicted, rounds. A layer's time is its own whatever its neighbours are, and
  a network's their sum.
- ``torch-cpu:codes``: layers write the codes that the next ones read, and sums are of codes. That
  is faster, and rounds to 8 bits wherever branches meet, as files of ``mp.export.onnx`` do.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from mpsearch.formats import Option
from mpsearch.kernels.onednn import OneDnn
from mpsearch.kernels.plain import Plain, runs_as
from mpsearch.network import Layer
from mpsearch.quant.recipe import Recipe


@dataclass(frozen=True)
class TorchCpu:
    """Integers where both weight and input are, floats where both are of one kept type.

    Attributes:
        between: What a network's layers hand on: ``floats``, or ``codes`` where they can.
    """

    between: Literal["floats", "codes"] = "floats"

    def __post_init__(self) -> None:
        """Refuse what layers do not hand on."""
        if self.between not in ("floats", "codes"):
            raise ValueError(f"between is 'floats' or 'codes', got {self.between!r}")

    def kernel(self, layer: Layer, option: Option, module: Any) -> nn.Module | None:
        """The module on a kernel that multiplies what its option says, codes in their containers.

        There is none where torch would compute in another type: weights alone in few bits,
        fp16, fp8, and integers that oneDNN does not take.
        """
        found = OneDnn().kernel(layer, option, module)
        if found is not None:
            return found
        floats = Plain().kernel(layer, option, module)
        return floats if floats is not None and runs_as(floats, option) == _asked(option) else None

    def network(
        self,
        model: nn.Module,
        kernels: Mapping[str, nn.Module],
        batches: Sequence[Any],
        recipe: Recipe,
    ) -> nn.Module | None:
        """The whole quantized network with codes between its kernels; ``None`` between floats.

        ``ValueError`` where it cannot be captured.
        """
        if self.between == "floats":
            return None
        connected: Any = importlib.import_module("mpsearch.kernels.code_network").connected
        found: nn.Module = connected(model, kernels, batches, recipe)
        return found


def _asked(option: Option) -> str:
    return f"{option.weight}/{option.activation}"
