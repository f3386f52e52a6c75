"""What a weight takes in a file: each container has its own codes, scales, blocks and padding.

``packed``
    As :meth:`mpsearch.Format.bytes` counts, and as :func:`mpsearch.quantize` stores: codes one bit
    stream, 16-bit scales, zero points packed.
``safetensors``
    The same in a safetensors file, each tensor with its line in the header (offsets counted at
    their longest, so that a file is never larger than said).
``onnx``
    Initializers of an ONNX model: codes of 2, 4 or 8 bits (ONNX has no others; 3 become 4, 5 to 7
    become 8), 32-bit scales, zero points as codes; not the graph around them.
``gguf``
    Block types of GGUF (ggml), each tensor padded to 32 bytes, with its entry in the header: 4 bits
    in groups of 32 are Q4_0 (Q4_1 with zero points), 5 bits Q5_0 (Q5_1), 8 bits Q8_0; 2, 3, 6 bits
    the K types of 256, and where rows are no multiple of 256 what llama.cpp falls back to.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mpsearch.formats import Format
from mpsearch.network import Shape

Container = Literal["packed", "safetensors", "onnx", "gguf"]
CONTAINERS: tuple[Container, ...] = ("packed", "safetensors", "onnx", "gguf")
ALIGNMENT = 32  # of tensors in a GGUF file
OFFSET = 15  # digits of an offset in a safetensors header: petabytes


class Block(NamedTuple):
    """A block type of GGUF: so many weights in so many bytes."""

    name: str
    weights: int
    bytes: int


BLOCKS = {
    block.name: block
    for block in (
        Block("F32", 1, 4),
        Block("F16", 1, 2),
        Block("BF16", 1, 2),
        Block("Q4_0", 32, 18),
        Block("Q4_1", 32, 20),
        Block("Q5_0", 32, 22),
        Block("Q5_1", 32, 24),
        Block("Q8_0", 32, 34),
        Block("Q2_K", 256, 84),
        Block("Q3_K", 256, 110),
        Block("Q6_K", 256, 210),
        Block("IQ4_NL", 32, 18),
        Block("MXFP4", 32, 17),
    )
}
_INTEGERS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_0", 5: "Q5_0", 6: "Q6_K", 7: "Q8_0", 8: "Q8_0"}
_SHIFTED = {4: "Q4_1", 5: "Q5_1"}
_OTHERS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "nf4": "IQ4_NL", "mxfp4": "MXFP4"}
_FLOATS = "scale", "left", "right", "kept", "tensor"
_FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q6_K": "Q8_0"}


def stored(shapes: Sequence[Shape], weight: Format, container: Container, name: str) -> int:
    """Bytes of a layer's weights; ``ValueError`` for a format that a container does not have."""
    each = {"packed": _packed, "safetensors": _safetensors, "onnx": _onnx, "gguf": _gguf}
    return sum(each[container](shape, weight, name) for shape in shapes)


def _packed(shape: Shape, weight: Format, _name: str) -> int:
    return weight.bytes(shape)


def _safetensors(shape: Shape, weight: Format, name: str) -> int:
    lines = 0
    for part, (_, bits) in weight.streams(shape).items():
        dtype = "F16" if part in _FLOATS or bits == 16 else "U8"
        size = f"[{','.join(map(str, shape))}]"
        offsets = "9" * OFFSET + "," + "9" * OFFSET
        line = f'"{name}.{part}":{{"dtype":"{dtype}","shape":{size},"data_offsets":[{offsets}]}},'
        lines += len(line.encode())
    return weight.bytes(shape) + lines


def onnx_bits(weight: Format) -> int:
    """Bits of a code in an ONNX initializer."""
    if not weight.quantized:
        return weight.bits
    if weight.kind == "int":
        return next(bits for bits in (2, 4, 8) if bits >= weight.bits)
    if weight.kind == "float" and weight.bits == 8:
        return 8
    raise ValueError(f"ONNX has no initializer of {str(weight)!r}; give integers or fp8")


def _onnx(shape: Shape, weight: Format, _name: str) -> int:
    bits, scales = onnx_bits(weight), weight.scales(shape)
    zeros = 0 if weight.symmetric or not weight.quantized else -(-scales * bits // 8)
    return -(-math.prod(shape) * bits // 8) + 4 * scales + zeros


def gguf_block(shape: Shape, weight: Format) -> Block:
    """The block type a weight of this shape is stored as."""
    row = math.prod(shape[1:])
    of_base = None if weight.kind == "mixed" else _OTHERS.get(weight.base)
    known = _INTEGERS.get(weight.bits) if weight.kind == "int" else of_base
    if weight.kind == "int" and weight.symmetric is False:
        known = _SHIFTED.get(weight.bits, known)
    if known is None:
        raise ValueError(
            f"GGUF has no type for {str(weight)!r}; give integers of 2 to 8 bits, nf4, mxfp4, or"
            " 16 and 32 bits"
        )
    block = BLOCKS[known]
    if row % block.weights:
        block = BLOCKS[_FALLBACK.get(known, "F16")]
    return block if row % block.weights == 0 else BLOCKS["F16"]


def _gguf(shape: Shape, weight: Format, name: str) -> int:
    block = gguf_block(shape, weight)
    data = math.prod(shape) // block.weights * block.bytes
    entry = 8 + len(name.encode()) + 4 + 8 * len(shape) + 4 + 8  # name, axes, type, offset
    return -(-data // ALIGNMENT) * ALIGNMENT + entry
