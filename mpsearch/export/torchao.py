"""torchao's words: for each module the dtypes of its weights and its input, and the group size."""

from typing import Any

from mpsearch.allocation import Allocation
from mpsearch.formats import Format

_FLOATS = {
    "fp16": "torch.float16",
    "bf16": "torch.bfloat16",
    "fp32": "torch.float32",
    "fp8_e4m3": "torch.float8_e4m3fn",
    "fp8_e5m2": "torch.float8_e5m2",
}


def torchao(allocation: Allocation) -> dict[str, dict[str, Any]]:
    """Module name to ``weight_dtype``, ``activation_dtype``, ``granularity`` and ``group_size``.

    Dtypes are names of torch's (``torch.int4``, ``torch.float8_e4m3fn``), as torchao's per-module
    configurations take them. ``ValueError`` names the first module whose format torch has no dtype
    for.
    """
    return {
        module: {
            "weight_dtype": _dtype(option.weight.as_weight(), module),
            "activation_dtype": _dtype(option.activation.as_activation(), module),
            "granularity": option.weight.as_weight().per,
            "group_size": option.weight.group,
            "mapping_type": _mapping(option.weight.as_weight()),
        }
        for module, option in allocation.by_module().items()
    }


def _mapping(weight: Format) -> str | None:
    if not weight.quantized:
        return None
    return "symmetric" if weight.symmetric else "asymmetric"


def _dtype(its_format: Format, module: str) -> str:
    if its_format.kind == "int":
        return f"torch.{'int' if its_format.symmetric else 'uint'}{its_format.bits}"
    if its_format.base in _FLOATS:
        return _FLOATS[its_format.base]
    raise ValueError(
        f"module {module!r} has format {its_format}, for which torch has no dtype; torchao takes"
        " int1 to int8, fp8, fp16, bf16 and fp32"
    )
