"""Linear layers on weights of 1 to 8 bits, packed: our own C, one pass over the bytes as stored.

Codes of a weight times 8-bit codes of an input are summed by group in int32, exactly, and scaled to
float32. An input that its option leaves in 16 or 32 bits is rounded to 8 where it is read, with one
scale a token, and ``runs_as`` says so. Group sizes other than multiples of 32 are filled up to one:
the result is the same, the pass longer.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from ctypes import byref
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.formats import Format, Option
from mpsearch.kernels.native import PATHS, Inputs, Matrix, Outputs, Rule, library
from mpsearch.kernels.plain import check_threads, checked, is_linear
from mpsearch.kernels.weight_codes import is_sign, of_integers, unsigned
from mpsearch.network import Layer
from mpsearch.quant.codes import Codes
from mpsearch.quant.modules import Stored

_ROWS, _COLUMNS, _VECTOR = 32, 32, 128  # of layout.h
_MOST = 1 << 16  # columns a group: 255 * 128 times that is an int32
_TOKEN = Rule(0.0, 0, -127, 127)


@dataclass(frozen=True)
class Packed:
    """Linear layers of packed weights, inputs of 8 bits.

    Attributes:
        threads: That share the rows of a layer; 0 takes as many as torch does.
        path: ``portable``, ``avx2`` or ``avx512``; by default the best this CPU has.
    """

    threads: int = 0
    path: str = ""

    def __post_init__(self) -> None:
        """Refuse a negative number of threads."""
        check_threads(self.threads)

    def kernel(self, layer: Layer, option: Option, module: Any) -> "Linear | None":
        """A quantized linear module (of :func:`mpsearch.quant.quantize`) on its packed codes.

        There is none for other operators and for weights that are no integers. ``RuntimeError``
        where the C was not built, ``ValueError`` where the module holds no codes.
        """
        if not (of_integers(option.weight) and _input(option.activation) and is_linear(module)):
            return None
        if not isinstance(module, Stored) or module.scale is None:
            raise ValueError(
                f"layer {layer.name!r} at {str(option)!r}: its module is a"
                f" {type(module).__name__} that holds no codes; give one of mpsearch.quant.quantize"
            )
        return Linear(module, layer.name, self.threads, path_number(self.path))


def path_number(name: str) -> int:
    """The number the library gives a path; ``ValueError`` for one this CPU does not have."""
    best: int = library().packed_path()
    if name and name not in PATHS[: best + 1]:
        has = ", ".join(PATHS[: best + 1])
        raise ValueError(f"this CPU has the paths {has}, got {name!r}; name one of them, or none")
    return PATHS.index(name) if name else best


def _input(form: Format) -> bool:
    this = form.as_activation()
    return this.kind == "full" or (this.kind == "int" and this.per == "tensor" and this.bits > 1)


class Weight:
    """A weight as the library reads it, in types and places that nothing changes.

    Attributes:
        codes: (blocks, groups, bytes) uint8, of 32 rows and a group each.
        scales: (blocks, groups, 32) fp16 or bf16.
        zeros: (blocks, groups, 32) uint8; empty where all are ``zero``.
    """

    def __init__(self, codes: Codes) -> None:
        form = codes.format
        self.rows, self.columns = codes.codes.shape
        group = form.group if form.per == "group" and form.group else self.columns
        if _MOST < group < self.columns:
            raise ValueError(f"groups have at most {_MOST} inputs here, got {group}; use {_MOST}")
        self.group = min(group, max(self.columns, 1), _MOST)
        self.groups = -(-self.columns // self.group)
        self.bits, self.twice, self.zero = form.bits, 0, 1 << (form.bits - 1)
        if is_sign(codes):
            self.twice, self.zero = 1, 1
        whole = unsigned(codes).contiguous()
        self.scales = self._blocks(_of(codes.scale))
        none = torch.empty(0, dtype=torch.uint8)
        self.zeros = none if codes.zero is None else self._blocks(codes.zero)
        shape = (len(self.scales), self.groups, -(-self.group // _COLUMNS) * _VECTOR * self.bits)
        self.codes = torch.from_numpy(np.zeros(shape, np.uint8))  # in large pages
        library().packed_weights(self.matrix(), whole.data_ptr(), self.codes.data_ptr())

    def _blocks(self, values: Tensor) -> Tensor:
        """(blocks, groups, 32) of what each scale is stored with; what fills up is zero."""
        each = values.reshape(self.rows if len(values) > 1 else 1, -1).expand(self.rows, -1)
        blocks = -(-self.rows // _ROWS)
        full = values.new_zeros(blocks * _ROWS, self.groups)
        full[: self.rows] = each.expand(-1, self.groups)
        return full.reshape(blocks, _ROWS, -1).transpose(1, 2).contiguous()

    def matrix(self) -> Matrix:
        """What the library is told."""
        zeros = self.zeros.data_ptr() if len(self.zeros) else None
        brain = self.scales.dtype == torch.bfloat16
        return Matrix(
            *(self.rows, self.columns, self.group, self.bits, self.twice, brain),
            *(self.codes.data_ptr(), self.scales.data_ptr(), zeros, self.zero),
        )


def _of(scale: Tensor | None) -> Tensor:
    if scale is None:
        raise ValueError("a weight without scales has no integers to multiply")
    return scale


class Linear(nn.Module):
    """A linear layer."""

    def __init__(self, module: Stored, name: str, threads: int, path: int) -> None:
        super().__init__()
        codes, self.grid = module.stored(), module.grid
        self.name, self.threads, self.path, self.rule = name, threads, path, _TOKEN
        self.packed = Weight(codes)
        given: Any = getattr(module, "bias", None)
        bias: Tensor | None = None if given is None else given.detach().float().clone()
        if self.grid is not None:
            moved = self.grid.signed if self.grid.high > 127 else self.grid
            self.rule = Rule(moved.inverse, moved.zero, moved.low, moved.high)
            below = codes.dequantize().double().sum(1) * (moved.zero * moved.scale)
            bias = (-below if bias is None else bias - below).float()
        self.bias = bias
        dynamic = " per token" if self.grid is None else ""
        self.runs_as = f"{module.option.weight}/int8{dynamic}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., in), in the type of the input."""
        return self.run(x)[0].to(x.dtype)

    def sums(self, x: Tensor) -> Tensor:
        """(tokens, groups, out) int32: codes times codes, before any scale."""
        return self.run(x, keep=True)[1]

    def run(self, x: Tensor, *, keep: bool = False) -> tuple[Tensor, Tensor]:
        """The output in float32, and the sums where they are to be kept.

        Raises:
            ValueError: An input of another width, or one that has no codes: NaN, or where a token
                has a scale of its own, infinity.
        """
        of = self.packed
        checked(x, -1, of.columns, self.name)
        flat = x.detach().float().reshape(-1, of.columns).contiguous()
        matrix = of.matrix()
        codes, sums, scales = self.codes(flat, matrix)
        y = torch.empty(len(flat), of.rows)
        kept = torch.empty((len(flat), of.groups, of.rows) if keep else 0, dtype=torch.int32)
        read = Inputs(len(flat), codes.data_ptr(), sums.data_ptr(), scales.data_ptr())
        bias = None if self.bias is None else self.bias.data_ptr()
        written = Outputs(y.data_ptr(), bias, kept.data_ptr() if keep else None)

        def rows(first: int, last: int) -> None:
            library().packed_rows(
                byref(matrix), byref(read), byref(written), first, last, self.path
            )

        spread(rows, len(of.scales), self.threads or torch.get_num_threads())
        return y.reshape(*x.shape[:-1], of.rows), kept

    def codes(self, flat: Tensor, matrix: Matrix) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of (tokens, in) floats filled up by group, their sums by group, and scales."""
        of, tokens = self.packed, len(flat)
        wide = -(-of.group // _COLUMNS) * _COLUMNS
        codes = torch.empty(tokens, of.groups, wide, dtype=torch.int8)
        sums = torch.empty(tokens, of.groups, dtype=torch.int32)
        scales = torch.empty(tokens, dtype=torch.float64)
        if self.grid is not None:
            scales.fill_(self.grid.scale)
        bad = library().packed_codes(
            *(byref(matrix), byref(self.rule), flat.data_ptr(), tokens),
            *(codes.data_ptr(), sums.data_ptr(), scales.data_ptr(), self.path),
        )
        if bad >= 0:
            what = "NaN" if self.grid else "NaN or infinity"
            raise ValueError(
                f"the input of layer {self.name!r} holds {what} in token {bad} of {tokens}, which"
                " has no 8-bit codes; find what wrote it, or run this layer in floats"
            )
        return codes, sums, scales


def spread(run: Callable[[int, int], None], count: int, threads: int) -> None:
    """Run 0 to ``count``, in about equal parts, on so many threads."""
    threads = min(threads, max(count, 1))
    if threads == 1:  # without a pool
        run(0, count)
        return
    ends = [count * part // threads for part in range(threads + 1)]
    others = [_pool(threads - 1).submit(run, *ends[n : n + 2]) for n in range(1, threads)]
    try:
        run(*ends[:2])
    finally:  # what is read and written must outlive them all
        wait(others)
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "mpsearch-packed")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay with the parent
