"""Packed weights beside ONNX Runtime and the memory's own speed: ``python -m tests.bench.packed``.

One thread, all of a table's calls in every round, in an order that is drawn anew; medians of
process CPU time, wall time beside them. Needs onnxruntime, onnx, a C compiler and 4 GB.
"""

import ctypes
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import mpsearch as mp
from mpsearch.kernels import native
from mpsearch.kernels.packed import Linear, Packed
from mpsearch.quant.codes import Codes
from mpsearch.quant.modules import store
from tests.bench.measured import Line, load, machine

Call = Callable[[], object]
_GIB, _WIDE = 1 << 30, 8192
_READ = """
#include <stdint.h>
uint64_t all(const uint64_t *p, int64_t n) {
    uint64_t found[64] = {0};
    for (int64_t i = 0; i + 64 <= n; i += 64)
        for (int k = 0; k < 64; k++) found[k] ^= p[i + k];
    for (int k = 1; k < 64; k++) found[0] ^= found[k];
    return found[0];
}
"""


def ours(rows: int, columns: int, form: str) -> Linear:
    """A kernel of random codes."""
    torch.manual_seed(0)
    this, module = mp.Format.parse(form).as_weight(), nn.Linear(columns, rows, bias=False)
    top = 1 << (this.bits - 1)
    low, high, kind = (0, 2, torch.uint8) if top == 1 else (1 - top, top, torch.int8)
    codes = torch.randint(low, high, (rows, columns), dtype=kind)
    scale = (torch.rand(this.scales((rows, columns))) * 0.01 + 0.001).half()
    option = mp.Option.parse(f"{form}/fp32")
    store(module, option, Codes(codes, scale, None, this, (rows, columns)), None, torch.float32)
    made = Packed(1).kernel(mp.Layer(form), option, module)
    if made is None:
        raise RuntimeError(f"no kernel for {form}")
    return made


def theirs(rows: int, columns: int, bits: int, group: int) -> Any:
    """ONNX Runtime's MatMulNBits with 8-bit inputs, as fast as it goes."""
    rng = np.random.default_rng(0)
    b = rng.integers(0, 256, (rows, columns // group, group * bits // 8), dtype=np.uint8)
    s = rng.random(rows * columns // group, dtype=np.float32) * np.float32(0.01)
    node = helper.make_node(
        *("MatMulNBits", ["x", "b", "s"], ["y"]), domain="com.microsoft", K=columns, N=rows,
        bits=bits, block_size=group, accuracy_level=4,
    )  # fmt: skip
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size])
        for name, size in (("x", columns), ("y", rows))
    )
    weights = [numpy_helper.from_array(b, "b"), numpy_helper.from_array(s, "s")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "linear", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def rounds(calls: dict[str, Call], count: int, times: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds of each call, after one in every round that is not counted."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(count):
        for name in order.sample(list(calls), len(calls)):
            calls[name]()
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(times):
                calls[name]()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            taken[name].append((spent[0] / times, spent[1] / times))
    return {
        name: (statistics.median(c for c, _ in each), statistics.median(w for _, w in each))
        for name, each in taken.items()
    }


def decode(group: int, tokens: int, count: int) -> list[Line]:
    """4096 by 4096: what each takes, and the ratios that were promised for one token."""
    x = torch.randn(tokens, 4096)
    calls: dict[str, Call] = {}
    for bits in range(1, 9):
        made = ours(4096, 4096, f"int{bits}g{group}")
        calls[f"cpu-packed {bits}"] = partial(made, x)
        if bits in (2, 4, 8):
            session = theirs(4096, 4096, bits, group)
            calls[f"MatMulNBits {bits}"] = partial(session.run, None, {"x": x.numpy()})
    taken = rounds(calls, count, 3)
    print(f"{tokens}x4096x4096, groups of {group}: microseconds of CPU, and of wall")
    for name, (cpu, wall) in taken.items():
        print(f"  {name:<14} {cpu * 1e6:9.0f} {wall * 1e6:9.0f}")
    if tokens > 1 or group != 128:
        return []
    ratio = {b: taken[f"MatMulNBits {b}"][0] / taken[f"cpu-packed {b}"][0] for b in (2, 4, 8)}
    lines = [
        Line(f"{b} bits, speed over MatMulNBits", r, 0.95, "x", True) for b, r in ratio.items()
    ]
    three = taken["cpu-packed 3"][0] / taken["cpu-packed 4"][0]
    return [*lines, Line("3 bits, time over that of 4", three, 1.1, "x")]


def large(count: int) -> list[Line]:
    """Matrices of 1 to 1.5 GiB beside reading as much; 3 and 4 bits of one shape."""
    room = torch.from_numpy(np.zeros(_GIB * 3 // 2, np.uint8))
    room.view(torch.int64).random_(generator=torch.Generator().manual_seed(0))
    x, sizes = torch.randn(1, _WIDE), {"reading": _GIB}
    read = reader()
    calls: dict[str, Call] = {"reading": lambda: read(room.data_ptr(), _GIB // 8)}
    for bits in (2, 3, 4, 5, 6, 8):
        rows = len(room) * 8 // max(bits, 4) // _WIDE // 32 * 32
        made = grown(ours(32, _WIDE, f"int{bits}g128"), rows, room)
        calls[str(bits)] = partial(made, x)
        sizes[str(bits)] = made.packed.codes.nbytes + made.packed.scales.nbytes
    taken = rounds(calls, count, 1)
    speed = {name: sizes[name] / taken[name][0] / 1e9 for name in calls}
    print("1 x 8192 x what fills the bytes, groups of 128: GB, ms of CPU, of wall, GB/s")
    for name, (cpu, wall) in taken.items():
        figures = f"{sizes[name] / 1e9:6.2f} {cpu * 1e3:8.1f} {wall * 1e3:8.1f} {speed[name]:6.1f}"
        print(f"  {name:<8} {figures}")
    lines = [
        Line(f"{b} bits, part of the speed of reading", speed[b] / speed["reading"], 0.7, "x", True)
        for b in "34568"
    ]
    return [*lines, Line("3 bits, time over that of 4", taken["3"][0] / taken["4"][0], 1.0, "x")]


def grown(made: Linear, rows: int, room: torch.Tensor) -> Linear:
    """The kernel with more rows, whose codes are whatever is there."""
    of, groups = made.packed, _WIDE // 128
    of.rows = rows
    of.codes = room[: rows * _WIDE * of.bits // 8].view(rows // 32, groups, -1)
    of.scales = torch.full((rows // 32, groups, 32), 0.01).half()
    return made


def reader() -> Callable[[int, int], object]:
    """Reads memory as fast as plain C does."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "read.c", Path(folder) / "read.so"
        source.write_text(_READ)
        flags = ["-O3", "-march=native", "-shared", "-fPIC", "-o", str(made), str(source)]
        subprocess.run([native.compiler(), *flags], check=True)
        read = ctypes.CDLL(str(made)).all
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
    found: Callable[[int, int], object] = read
    return found


def main() -> int:
    """Print every row; 1 where a promise is not kept."""
    torch.set_num_threads(1)
    print(machine(), f"onnxruntime {onnxruntime.__version__}", f"load {load()}", sep=", ")
    lines = decode(128, 1, 60)
    for group, tokens in ((32, 1), (128, 4), (128, 16)):
        decode(group, tokens, 10)
    lines += large(9)
    print(*lines, sep="\n")
    return int(not all(line.passed for line in lines))


if __name__ == "__main__":
    sys.exit(main())
