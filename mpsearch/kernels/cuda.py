"""What runs on NVIDIA GPUs: 8-bit integers and floats, and 16-bit inputs on weights of 1 to 8 bits.

========================  =====================  =====================================
option                    kernel                 outputs are those of the codes within
========================  =====================  =====================================
``int2..8/int2..8``       ``torch._int_mm``      2 roundings of float32; sums are exact
``fp8_e4m3/fp8_e4m3``     ``torch._scaled_mm``   a thousandth of the terms' magnitudes
``int4g32..g256/bf16``    tinygemm, or the next  a 32nd of a step of every weight
``int1..8/fp16``, also    Triton, on weights as  a rounding of the output
bf16, ternary, binary     they are stored
both of 16 or 32 bits     torch's own            a rounding of the output
========================  =====================  =====================================

All but the last are linear layers alone; convolutions of few bits have no kernel here.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from mpsearch.formats import Option
from mpsearch.kernels import cuda_decode, cuda_floats, cuda_integers, cuda_tinygemm
from mpsearch.kernels.plain import Floats, floated, is_linear
from mpsearch.kernels.weight_codes import of_integers
from mpsearch.network import Layer
from mpsearch.quant.modules import Stored

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_HALVES = ("fp16", "bf16")
_EIGHT = "fp8_e4m3"


@dataclass(frozen=True)
class Cuda:
    """Kernels of a GPU of compute capability 8.0 and up, 8.9 for ``fp8_e4m3``.

    Attributes:
        int4: What runs 4-bit groups on bfloat16 where it can: ``tinygemm`` or ``triton``.
    """

    int4: Literal["tinygemm", "triton"] = "tinygemm"

    def __post_init__(self) -> None:
        """Refuse a name that is neither."""
        if self.int4 not in ("tinygemm", "triton"):
            raise ValueError(f"int4 is {self.int4!r}; wanted 'tinygemm' or 'triton'")

    def kernel(self, layer: Layer, option: Option, module: Any) -> nn.Module | None:
        """A module on the kernel of its option; on the GPU that it is on.

        Raises:
            ValueError: There is one, but the module holds no codes, or is on no GPU that has it.
            RuntimeError: It is Triton's, and triton is not installed.
        """
        name = self.runs(option, module)
        if name is None:
            return None
        where = f"layer {layer.name!r} at {str(option)!r}"
        _on_gpu(where, module, (8, 9) if name == "_scaled_mm" else (8, 0))
        if name == "triton":
            cuda_decode.kernels()  # says so at once where there is no Triton
        if name == "torch":
            floats = Floats(floated(module), _TYPES[option.weight.base])
            floats.runs_as = f"{option.weight}/{option.activation}"
            return floats
        if not isinstance(module, Stored) or module.scale is None:
            raise ValueError(
                f"{where}: its module is a {type(module).__name__} that holds no codes; give one of"
                " mpsearch.quant.quantize"
            )
        return made(name, module, layer.name)

    def runs(self, option: Option, module: nn.Module) -> str | None:
        """The kernel of an option, by name; ``None`` where there is none."""
        weight, inputs = option.weight.as_weight(), option.activation.as_activation()
        if not weight.quantized and weight.base == inputs.base:
            return "torch"
        if not is_linear(module):
            return None
        if weight.kind == inputs.kind == "int":
            plain = weight.symmetric and weight.per != "group" and inputs.per == "tensor"
            return "_int_mm" if plain and min(weight.bits, inputs.bits) > 1 else None
        if weight.base == inputs.base == _EIGHT:
            plain = weight.per != "group" and weight.plain == weight and inputs.per == "tensor"
            return "_scaled_mm" if plain else None
        if not of_integers(weight) or inputs.base not in _HALVES:
            return None
        four = self.int4 == "tinygemm" and cuda_tinygemm.takes(option, module)
        return "tinygemm" if four else "triton"


def made(name: str, module: Stored, layer: str) -> nn.Module:
    """A module on a kernel, by name, wherever it is."""
    if name == "_int_mm":
        return cuda_integers.Linear(module, layer)
    if name == "_scaled_mm":
        return cuda_floats.Linear(module, layer)
    if name == "tinygemm":
        return cuda_tinygemm.Linear(module, layer)
    return cuda_decode.Linear(module, layer, _TYPES[module.option.activation.base])


def _on_gpu(where: str, module: nn.Module, needed: tuple[int, int]) -> None:
    """Refuse a module on no GPU, or on one too old."""
    devices = {each.device for each in (*module.parameters(), *module.buffers())}
    device = next((d for d in devices if d.type == "cuda"), None)
    if device is None or len(devices) > 1:
        there = torch.cuda.is_available()
        fix = (
            "move the model and its batches there with .to('cuda')"
            if there
            else "torch finds none here: name another backend"
        )
        on = " and ".join(sorted(map(str, devices))) or "no device"
        raise ValueError(f"{where} is on {on}, and the kernels of cuda run on NVIDIA GPUs; {fix}")
    has = torch.cuda.get_device_capability(device)
    if has < needed:
        raise ValueError(
            f"{where} needs a GPU of compute capability {needed[0]}.{needed[1]}, this one has"
            f" {has[0]}.{has[1]}; give it another option, or name another backend"
        )
