"""What core torch has kernels for on CPUs: 8-bit integers, 32-bit floats and bfloat16.

Linear layers and convolutions of 2 to 8 bits run on oneDNN's integer operators, codes of fewer bits
in containers of 8. Each layer reads floats, rounds them to its own codes and writes floats. Sums of
branches and normalization stay in floats: as codes they would be rounded where the quantized
network, on which losses were predicted, rounds nothing. So a layer's time is its own whatever its
neighbours are, and a network's their sum; what requantization between two layers would save is not
saved.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from mpsearch.formats import Option
from mpsearch.kernels.onednn import OneDnn
from mpsearch.kernels.plain import Plain, runs_as
from mpsearch.network import Layer


@dataclass(frozen=True)
class TorchCpu:
    """Integers where both weight and input are, floats where both are of one kept type."""

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


def _asked(option: Option) -> str:
    return f"{option.weight}/{option.activation}"
