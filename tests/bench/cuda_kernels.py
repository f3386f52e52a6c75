"""Kernels of a GPU beside torch's bfloat16: ``python -m tests.bench.cuda_kernels``.

CUDA events around replays of graphs. A graph calls layers of half a gigabyte in all, one after the
other, so that none finds its weight in the cache; a layer's time is that of the graph over their
number. All kinds in every round, in an order that is drawn anew; medians. Needs an NVIDIA GPU,
triton, and 8 GB on it.
"""

import copy
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.kernels import cuda
from mpsearch.quant.activations import Grid
from mpsearch.quant.codes import Codes
from mpsearch.quant.inputs import Levels
from mpsearch.quant.modules import store
from tests.bench.measured import Line

_WIDE, _ALL = 8192, 1 << 29
_ROUNDS, _REPLAYS = 30, 5
_TARGETS = {"int4g128/bf16 tinygemm": 2.5, "int4g128/bf16 triton": 2.5, "int2g128/bf16 triton": 4.0}
_DECODE = [
    *((f"int{bits}g128/bf16", "triton") for bits in (1, 2, 3, 4, 8)),
    ("int4g128/bf16", "tinygemm"),
]
_PREFILL = [("int8/int8", "_int_mm"), ("fp8_e4m3/fp8_e4m3", "_scaled_mm")]


def layer(option: str, kernel: str) -> nn.Module:
    """A kernel on random codes, scales of a hundredth."""
    torch.manual_seed(0)
    given, module = mp.Option.parse(option), nn.Linear(1, 1, bias=False, device="cuda")
    form = given.weight.as_weight()
    top = 1 << (form.bits - 1)
    integer = form.kind == "int" and top > 1
    low, high = (1 - top, top) if integer else (0, min(2 * top, 120))
    kind = torch.int8 if integer else torch.uint8
    codes = torch.randint(low, high, (_WIDE, _WIDE), dtype=kind, device="cuda")
    scale = torch.full((form.scales((_WIDE, _WIDE)),), 0.01, device="cuda").half()
    grid = None
    if kernel == "_int_mm":
        grid = Grid(0.03, 128, 0, 255)
    elif kernel == "_scaled_mm":
        grid = Grid(1.0, 0, 0, 0, Levels(torch.tensor([-4.0, 4.0]), torch.zeros(1)))
    store(module, given, Codes(codes, scale, None, form, (_WIDE, _WIDE)), grid, torch.bfloat16)
    made: Any = module
    return cuda.made(kernel, made, option)


def plain() -> nn.Module:
    """torch's own product in bfloat16."""
    torch.manual_seed(0)
    return nn.Linear(_WIDE, _WIDE, bias=False, device="cuda", dtype=torch.bfloat16)


def held(module: nn.Module) -> int:
    """Bytes that a layer reads of its own."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def graph(module: nn.Module, x: Tensor) -> tuple[Callable[[], None], int]:
    """Replays calls of copies of a layer, and how many these are."""
    copies = [module, *(copy.deepcopy(module) for _ in range(_ALL // held(module)))]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is compiled at the first call is compiled before
        copies[0](x)
    torch.cuda.current_stream().wait_stream(side)
    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made):
        for each in copies:
            each(x)

    def replay(_kept: Sequence[nn.Module] = copies) -> None:
        made.replay()

    return replay, len(copies)


def rounds(calls: dict[str, tuple[Callable[[], None], int]]) -> dict[str, list[float]]:
    """Microseconds of one layer of each graph, in every round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for number in range(_ROUNDS + 1):
        for name in order.sample(list(calls), len(calls)):
            replay, count = calls[name]
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            replay()
            start.record()
            for _ in range(_REPLAYS):
                replay()
            end.record()
            end.synchronize()
            if number:  # the first is not counted
                taken[name].append(start.elapsed_time(end) * 1e3 / _REPLAYS / count)
    return taken


def table(tokens: int, kinds: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Print what each takes; how many times faster than bfloat16 it is."""
    x = torch.randn(tokens, _WIDE, device="cuda").bfloat16()
    modules = {"bf16": plain()} | {f"{o} {k}": layer(o, k) for o, k in kinds}
    bytes_of = {name: held(module) for name, module in modules.items()}
    taken = rounds({name: graph(module, x) for name, module in modules.items()})
    middle = {name: statistics.median(each) for name, each in taken.items()}
    print(f"{tokens}x{_WIDE}x{_WIDE}: us, distance of the quartiles, GB/s of weights, speed")
    for name, each in taken.items():
        low, _, high = statistics.quantiles(each, n=4)
        speed, rate = middle["bf16"] / middle[name], bytes_of[name] / middle[name] / 1e3
        print(f"  {name:<32} {middle[name]:9.2f} {high - low:7.2f} {rate:7.0f} {speed:6.2f}x")
    return {name: middle["bf16"] / each for name, each in middle.items()}


def main() -> int:
    """Print every row; 1 where a promise is not kept, or there is no GPU."""
    if not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU here: nothing was timed")
        return 1
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "triton")]
    print(torch.cuda.get_device_name(), *versions, sep=", ")
    with torch.no_grad():
        speed = table(1, _DECODE)
        for tokens in (4, 16):
            table(tokens, _DECODE)
        table(4096, _PREFILL)
    lines = [Line(f"{n}, 1 token", speed[n], t, "x", True) for n, t in _TARGETS.items()]
    print(*lines, sep="\n")
    return int(not all(line.passed for line in lines))


if __name__ == "__main__":
    sys.exit(main())
