"""Random shapes through a library, beside the reference: ``python -m tests.kernels.fuzz LIBRARY``.

Needs no torch, so that it runs under a sanitizer; buffers are as long as they must be and no more,
and start where no vector does.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from mpsearch.kernels.native import PATHS, Inputs, Matrix, Outputs, Rule, opened
from tests.references import packed

ROWS, COLUMNS = 32, 32  # of layout.h


def askew(values: Any) -> Any:
    """The same values at an address that is a multiple of their own size alone."""
    values = np.asarray(values)
    room = np.empty(values.nbytes + values.itemsize, np.uint8)
    to = room[values.itemsize :].view(values.dtype).reshape(values.shape)
    to[...] = values
    return to


def blocks(values: Any) -> Any:
    """(blocks, groups, 32) from (rows, groups)."""
    full = np.zeros((-(-len(values) // ROWS) * ROWS, values.shape[1]), values.dtype)
    full[: len(values)] = values
    return askew(full.reshape(len(full) // ROWS, ROWS, values.shape[1]).transpose(0, 2, 1))


def once(lib: Any, rng: np.random.Generator, path: int) -> str:
    """One random case; what it was."""
    bits, tokens = int(rng.integers(1, 9)), int(rng.integers(0, 7))
    rows, columns = int(rng.integers(0, 70)), int(rng.integers(0, 150))
    group = int(rng.integers(1, max(columns, 1) + 1))
    groups, wide = -(-columns // group), -(-group // COLUMNS) * COLUMNS
    twice, static, brain = int(bits < 8 and rng.random() < 0.3), rng.random() < 0.5, 0
    case = f"{bits=} {tokens=} {rows=} {columns=} {group=} {twice=} {static=} path={PATHS[path]}"
    codes = askew(rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8))
    codes[rng.random(rows) < 0.2] = (1 << bits) - 1
    scales = rng.random((rows, groups)).astype(np.float16)
    zeros = rng.integers(0, 256, (rows, groups), dtype=np.uint8)
    if rng.random() < 0.3:
        brain, scales = 1, (scales.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    steps = (scales.astype(np.uint32) << 16).view(np.float32) if brain else scales
    many = rng.random() < 0.5
    if not many:
        zeros[:] = 1 << (bits - 1)
    laid = askew(np.zeros(-(-rows // ROWS) * groups * wide * ROWS * bits // 8, np.uint8))
    scale_blocks, zero_blocks = blocks(scales), blocks(zeros)
    matrix = Matrix(
        *(rows, columns, group, bits, twice, brain, laid.ctypes.data, scale_blocks.ctypes.data),
        *(zero_blocks.ctypes.data if many else None, 1 << (bits - 1)),
    )
    lib.packed_weights(matrix, codes.ctypes.data, laid.ctypes.data)
    x = askew(rng.standard_normal((tokens, columns)).astype(np.float32) * 3)
    x[rng.random(x.shape) < 0.1] *= np.float32(1e-39)
    x[rng.random(tokens) < 0.1] *= np.float32(1e-37)
    x[rng.random(tokens) < 0.1] = 0
    if static:
        rule, wanted = (
            Rule(1 / np.float32(0.05), -30, -128, 127),
            packed.grid_codes(x, 0.05, 98, 0, 255),
        )
    else:
        rule, wanted = Rule(0.0, 0, -127, 127), packed.token_codes(x)
    a = askew(np.full((tokens, groups, wide), 99, np.int8))
    below, by = askew(np.zeros((tokens, groups), np.int32)), askew(np.full(tokens, 0.05))
    told = (a.ctypes.data, below.ctypes.data, by.ctypes.data)
    assert lib.packed_codes(matrix, rule, x.ctypes.data, tokens, *told, path) == -1, case
    bias = askew(rng.standard_normal(rows).astype(np.float32))
    y = askew(np.zeros((tokens, rows), np.float32))
    kept = askew(np.zeros((tokens, groups, rows), np.int32))
    read = Inputs(tokens, *told)
    written = Outputs(y.ctypes.data, bias.ctypes.data, kept.ctypes.data)
    lib.packed_rows(matrix, read, written, 0, -(-rows // ROWS), path)
    value = (codes.astype(np.int64) << twice) - zeros.repeat(group, 1)[:, :columns]
    seen = wanted[0] + rule.zero
    found = packed.sums(value, seen, group)
    assert np.array_equal(kept, found), case
    scale = np.full(tokens, 0.05) if static else wanted[1]
    exact = packed.output(found, steps.astype(np.float64), scale, bias.astype(np.float64))
    size = packed.output(abs(found), steps.astype(np.float64), scale, abs(bias).astype(np.float64))
    assert (abs(y - exact) <= 1e-6 * size).all(), case
    return case


def main(library: str, count: int) -> None:
    """So many cases on every path this CPU has."""
    lib = opened(Path(library))
    for path in range(lib.packed_path() + 1):
        rng = np.random.default_rng(path)
        for _ in range(count):
            once(lib, rng, path)
    print(f"{count} cases on {', '.join(PATHS[: lib.packed_path() + 1])}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
