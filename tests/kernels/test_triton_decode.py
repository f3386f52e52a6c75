"""Triton's kernels: run in its interpreter, and compiled for GPUs that are not here."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from mpsearch.kernels import cuda, cuda_decode
from mpsearch.kernels.cuda_decode import Linear, processors, shares
from tests.conftest import require
from tests.kernels.decoding import WEIGHTS, check, stored
from tests.kernels.networks import layer

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16"}


@pytest.fixture
def _triton() -> None:
    require("triton", find_spec("triton"), "triton is not installed")


@pytest.mark.usefixtures("_triton")
def test_in_tritons_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported."""
    tests = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    broken = "only 0-dimensional arrays can be converted" in done.stdout  # Triton 3.6, NumPy 2.4
    require("interpreter", not broken, "this Triton's interpreter does not work with this NumPy")
    assert done.returncode == 0, done.stdout[-5000:]
    assert re.search(r"^\d{2} passed", done.stdout, re.MULTILINE), done.stdout


def compiled(made: Linear, kernel: str, gpu: int, **constants: object) -> Any:
    """What Triton makes of a kernel for a GPU, by stages."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mpsearch.kernels import triton_decode

    of = getattr(triton_decode, kernel)
    half = TYPES[made.dtype]
    kinds = dict.fromkeys("x y weight".split(), half) | {"words": "*i16", "scales": "*fp16"}
    kinds |= {"zeros": "*i8", "bias": "*fp32", "parts": "*fp32", "arrived": "*i32"}
    constants |= cuda_decode.constants(made.layout, made.dtype, made.zeros.numel())
    signature = {
        name: "constexpr" if name in constants else kinds.get(name, "i32") for name in of.arg_names
    }
    places = {name: (place,) for place, name in enumerate(of.arg_names)}
    pointers = [n for n, kind in signature.items() if kind[0] == "*"]
    even = {places[n]: [["tt.divisibility", 16]] for n in (*pointers, "rows", "columns")}
    known = {places[name]: value for name, value in constants.items() if name in places}
    source = ASTSource(of, signature, known, even)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", gpu, 32), options=options).asm


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("name", "dtype", "gpu"),
    [
        ("int1g128", torch.float16, 90),
        ("int2g128", torch.bfloat16, 90),
        ("int2g128", torch.float16, 80),
        ("int3g128", torch.bfloat16, 80),
        ("int4g32a", torch.float16, 90),
        ("int8", torch.bfloat16, 90),
    ],
)
def test_compiled_it_copies_ahead_and_multiplies_on_tensor_cores(
    name: str, dtype: torch.dtype, gpu: int
) -> None:
    made = Linear(stored(name, 128, 512), "fc", dtype)
    split = {"TOKENS": 16, "SPLIT": 8, "EVEN": True, "BIAS": True, "STAGES": 4}
    ptx = compiled(made, "decode", gpu, **split)["ptx"]
    half = "bf16" if dtype is torch.bfloat16 else "f16"
    assert "cp.async.cg.shared.global [ %r" in ptx.replace("+0", "")
    assert f"mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32" in ptx
    assert f"fma.rn.{half}x2" in ptx
    assert "atom.global.gpu.acq_rel.add" in ptx


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("name", ["int3g32a", "binary"])
def test_the_kernel_that_writes_weights_out_is_compiled(name: str) -> None:
    made = Linear(stored(name, 128, 512), "fc", torch.bfloat16)
    assert "fma.rn.bf16x2" in compiled(made, "dequantize", 80)["ptx"]


@pytest.mark.parametrize(
    ("blocks", "row_blocks", "count", "wanted"),
    [(64, 64, 132, 8), (32, 64, 132, 8), (64, 1, 132, 16), (64, 1000, 132, 1), (1, 1, 132, 1)],
)
def test_inputs_are_shared_out_among_programs(
    blocks: int, row_blocks: int, count: int, wanted: int
) -> None:
    assert shares(blocks, row_blocks, count) == wanted


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpsearch.kernels.triton_decode", raising=False)
    monkeypatch.delattr("mpsearch.kernels.triton_decode", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    wanted = "weights of few bits run on Triton kernels.*triton is not installed; install"
    module = stored("int4", 3, 8)
    with pytest.raises(RuntimeError, match=wanted):
        Linear(module, "fc", torch.float16)(torch.randn(1, 8))
    monkeypatch.setattr(cuda, "_on_gpu", lambda *_: None)
    with pytest.raises(RuntimeError, match=wanted):
        cuda.Cuda().kernel(layer(), module.option, module)


def test_importing_the_kernels_imports_no_triton() -> None:
    code = "import sys, mpsearch.kernels.cuda; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("x", [torch.randn(3, 9), torch.tensor(1.0)])
def test_an_input_of_another_width_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' reads 8 values a token, got \d"):
        Linear(stored("int4", 3, 8), "fc", torch.float16)(x)


def test_an_input_elsewhere_is_refused() -> None:
    made = Linear(stored("int4", 3, 8), "fc", torch.float16)
    with pytest.raises(ValueError, match="layer 'fc' is on cpu and its input on meta; move the"):
        made(torch.empty(1, 8, device="meta"))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_on_a_gpu_outputs_are_within_a_rounding(name: str, dtype: torch.dtype) -> None:
    for shape in [(1, 1024, 256), (3, 150, 37), (16, 4096, 130), (40, 700, 300), (65, 256, 5)]:
        check(name, shape, dtype, "cuda")


@pytest.mark.cuda
def test_on_a_gpu_large_layers_are_within_a_rounding() -> None:
    for name in ("int1g128", "int2g128", "int3g128", "int4g128a", "int8"):
        check(name, (1, 8192, 8192), torch.bfloat16, "cuda")


@pytest.mark.cuda
def test_on_a_gpu_an_input_at_a_strange_address_is_read_as_it_is() -> None:
    made = Linear(stored("int3g32", 40, 96).to("cuda"), "fc", torch.bfloat16)
    x = torch.randn(6, 96, device="cuda").bfloat16()
    room = torch.empty(6 * 96 + 1, device="cuda", dtype=torch.bfloat16)[1:].reshape(6, 96)
    assert torch.equal(made(room.copy_(x)), made(x))
    assert torch.equal(made(x.mT.contiguous().mT), made(x))


@pytest.mark.cuda
def test_a_graph_of_calls_repeats_them() -> None:
    module = stored("int2g128", 512, 4096).to("cuda")
    made, x = Linear(module, "fc", torch.bfloat16), torch.randn(1, 4096, device="cuda").bfloat16()
    wanted = made(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = made(x)
    for _ in range(3):
        found.zero_()
        graph.replay()
        assert torch.equal(found, wanted)


def test_processors_of_the_interpreter_are_one() -> None:
    assert processors(torch.device("cpu")) == 1
    assert cuda_decode.MOST % cuda_decode.TOKENS == 0
