"""Linear layers on packed weights, beside the reference and the module they stand for."""

import copy
import os
import pickle
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.kernels import native
from mpsearch.kernels import packed as kernels
from mpsearch.kernels.packed import Linear, Packed, Weight, spread
from mpsearch.quant import quantize
from mpsearch.quant.codes import Codes
from mpsearch.quant.encoding import encode
from mpsearch.quant.modules import store
from tests.conftest import require
from tests.kernels.networks import Conv1D, PaddedConv, at, layer, seen
from tests.references import packed

WEIGHTS = [
    *(f"int{b}" for b in range(1, 9)),
    *"int1a int2a int3g32 int4g128a int5t int6g7 int8g64a ternary ternarym binaryg32".split(),
]
STATIC = ["w8a8", "w4a8", "int3g5/int8s", "int2a/int4", "int8a/int8", "int5/int3s"]


@pytest.fixture(scope="module", autouse=True)
def _built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The library, built here where no installation brought it."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            native.library()
        except RuntimeError:
            require("compiler", shutil.which(os.environ.get("CC") or "cc"), "no C compiler")
            made = native.build(tmp_path_factory.mktemp("packed") / "packed.so")
            patch.setattr(native, "installed", lambda: [made])
        yield
    native.library.cache_clear()


def paths() -> list[str]:
    return list(native.PATHS[: native.library().packed_path() + 1])


def quantized(name: str, rows: int, columns: int) -> Any:
    torch.manual_seed(rows)
    module = nn.Linear(columns, rows)
    store(
        module,
        mp.Option.parse(f"{name}/fp32"),
        encode(module.weight, mp.Format.parse(name), "minmax"),
        None,
        torch.float32,
    )
    return module


def kernel(module: Any, *, threads: int = 1, path: str = "") -> Linear:
    made = Packed(threads, path).kernel(layer("fc"), module.option, module)
    assert made is not None
    return made


def integers(codes: Codes) -> packed.Ints:
    """(out, in) the weight in units of its scales."""
    whole = Codes(
        codes.codes, torch.ones(codes.steps.shape).half(), codes.zero, codes.format, codes.shape
    )
    return whole.dequantize().numpy().astype(np.int64)


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (33, 131), (64, 256)])
@pytest.mark.parametrize("name", WEIGHTS)
def test_sums_are_exact_and_outputs_within_a_millionth_of_their_terms(
    name: str, shape: tuple[int, int]
) -> None:
    module = quantized(name, *shape)
    codes, x = module.stored(), torch.randn(5, shape[1])
    read, scales = packed.token_codes(x.numpy())
    for path in paths():
        made = kernel(module, path=path)
        found = packed.sums(integers(codes), read, made.packed.group)
        np.testing.assert_array_equal(made.sums(x).numpy(), found)
        steps = codes.steps.reshape(shape[0] if len(codes.steps) > 1 else 1, -1)
        wide = steps.expand(*found.shape[:0:-1]).double().numpy()
        bias = module.bias.detach().double().numpy()
        size = packed.output(abs(found), wide, scales, abs(bias))
        off = abs(made(x).double().numpy() - packed.output(found, wide, scales, bias))
        assert (off <= 1e-6 * size).all()


@pytest.mark.parametrize("name", ["int3g32", "int8", "binary"])
def test_an_input_is_off_by_half_a_step_at_most(name: str) -> None:
    module = quantized(name, 40, 96)
    made, x = kernel(module), torch.randn(3, 7, 96)
    assert made.runs_as == f"{name}/int8 per token"
    half = x.abs().amax(-1, keepdim=True) / 254
    most = half * module.weight.abs().sum(1)
    with torch.no_grad():
        assert bool(((made(x) - module(x)).abs() <= 1.001 * most).all())


@pytest.mark.parametrize("option", STATIC)
def test_on_a_static_grid_it_computes_what_the_quantized_module_does(option: str) -> None:
    _, model, x = at(option)
    for name in ("wide", "head"):
        read, written = seen(model, x)[name]
        made = Packed(1).kernel(layer(name), mp.Option.parse(option), model.get_submodule(name))
        assert made is not None
        assert made.runs_as == f"{mp.Option.parse(option).weight}/int8"
        peak = float(written.abs().max())
        torch.testing.assert_close(made(read), written, rtol=0, atol=2e-6 * peak)


def test_threads_and_batches_change_nothing() -> None:
    module, x = quantized("int3g32", 200, 96), torch.randn(17, 96)
    whole = kernel(module)(x)
    for threads in (2, 3, 64):
        assert torch.equal(kernel(module, threads=threads)(x), whole)
    assert torch.equal(torch.cat([kernel(module)(one[None]) for one in x]), whole)


def test_threads_are_as_many_as_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(kernels, "spread", lambda *given: asked.append(given[-1]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    module, x = quantized("int4", 3, 8), torch.randn(1, 8)
    kernel(module, threads=0)(x)
    kernel(module, threads=2)(x)
    assert asked == [7, 2]


@pytest.mark.parametrize(("count", "threads"), [(0, 1), (0, 4), (1, 4), (7, 3), (12, 4)])
def test_parts_are_the_whole(count: int, threads: int) -> None:
    done: list[int] = []
    spread(lambda first, last: done.extend(range(first, last)), count, threads)
    assert sorted(done) == list(range(count))


def test_an_error_of_a_thread_is_raised() -> None:
    def run(first: int, last: int) -> None:
        if first:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spread(run, 4, 2)


def test_an_error_is_raised_once_no_thread_runs() -> None:
    done: list[int] = []

    def run(first: int, _: int) -> None:
        if first == 0:
            raise ZeroDivisionError
        time.sleep(0.05)
        done.append(first)

    with pytest.raises(ZeroDivisionError):
        spread(run, 4, 4)
    assert sorted(done) == [1, 2, 3]


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512"])
def test_the_largest_sums_do_not_overflow(path: str) -> None:
    if path not in paths():
        require(path, present=False, reason="this CPU has no such instructions")
    many = 1 << 16
    codes = torch.full((2, many + 5), 255, dtype=torch.uint8)
    form = mp.Format.parse("int8a").as_weight()
    zero = torch.tensor([0, 255], dtype=torch.uint8)
    weight = Codes(codes, torch.ones(2).half(), zero, form, tuple(codes.shape))
    module = nn.Linear(many + 5, 2, bias=False)
    store(module, mp.Option.parse("int8a/fp32"), weight, None, torch.float32)
    found = kernel(module, path=path).sums(torch.full((1, many + 5), -3.0))
    assert found.tolist() == [[[-127 * 255 * many, 0], [-127 * 255 * 5, 0]]]


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_no_tokens_give_no_outputs(shape: tuple[int, ...]) -> None:
    assert kernel(quantized("int4", 3, 4))(torch.empty(shape)).shape == (*shape[:-1], 3)


def test_a_view_a_strange_address_and_other_types_are_read_as_they_are() -> None:
    made, x = kernel(quantized("int4g32", 40, 96)), torch.randn(96, 6)
    whole = made(x.T.contiguous())
    assert torch.equal(made(x.T), whole)
    room = torch.empty(6 * 96 + 1)[1:].reshape(6, 96).copy_(x.T)
    assert torch.equal(made(room), whole)
    half = x.T.bfloat16()
    assert torch.equal(made(half), made(half.float()).bfloat16())


def test_a_copy_and_what_was_saved_compute_the_same() -> None:
    made = kernel(quantized("int3", 40, 96))
    x = torch.randn(2, 96)
    assert torch.equal(copy.deepcopy(made)(x), made(x))
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), made(x))  # noqa: S301  (our own)


@pytest.mark.parametrize("change", ["float", "double", "half", "bfloat16"])
@pytest.mark.parametrize("name", ["int3", "int4g32a"])
def test_a_network_s_change_of_type_leaves_what_is_packed(name: str, change: str) -> None:
    made, x = kernel(quantized(name, 40, 96)), torch.randn(2, 96)
    wanted = made(x)
    assert torch.equal(getattr(made, change)()(x), wanted)
    assert torch.equal(made.to("meta")(x), wanted)


def test_an_input_elsewhere_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"layer 'fc' runs on a CPU's kernel, got an input on meta"
    ):
        kernel(quantized("int4", 3, 8))(torch.empty(2, 8, device="meta"))


@pytest.mark.parametrize("option", ["int8/int2", "int4/int4", "int8/int7"])
def test_a_grid_of_few_codes_is_read_where_it_is(option: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 40)), torch.randn(5, 64) + 2
    nn.init.uniform_(model[0].weight, 0, 1)  # type: ignore[arg-type]
    module: Any = quantize(model, {"0": option}, [x])[0]  # type: ignore[index]
    made = Packed(1).kernel(layer(), mp.Option.parse(option), module)
    assert made is not None
    found, wanted = made(x), copy.deepcopy(module).double()(x.double()).detach()
    assert float((found - wanted).abs().max()) < 4e-7 * float(wanted.abs().max())


@pytest.mark.parametrize("option", ["w4a8", "int3g5/fp32"])
def test_a_linear_layer_of_transformers_is_one(option: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Conv1D(6, 10)), torch.randn(2, 3, 10)
    module: Any = quantize(model, {"0": option}, [x])[0]  # type: ignore[index]
    made = Packed(1).kernel(layer(), mp.Option.parse(option), module)
    assert made is not None
    torch.testing.assert_close(made(x), module(x).detach(), rtol=0, atol=0.2)


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="threads is -1; give 1 or more, or 0 for torch's"):
        Packed(-1)


@pytest.mark.parametrize("scale", [1e-45, 1e-41, 1e-38, 1e-34, 1e30])
def test_denormal_and_huge_inputs_are_as_exact_as_others(scale: float) -> None:
    module = quantized("int8", 40, 96)
    module.bias = None
    x = (torch.randn(2, 96) * scale).clamp_min(-3e38)
    read, by = packed.token_codes(x.numpy())
    made = kernel(module)
    found = packed.sums(integers(module.stored()), read, 96)
    np.testing.assert_array_equal(made.sums(x).numpy(), found)
    exact = packed.output(found, module.stored().steps.double().numpy()[:, None], by, np.zeros(40))
    np.testing.assert_allclose(made(x).numpy(), exact, rtol=1e-6, atol=1e-45)


def poked(value: float) -> Tensor:
    x = torch.randn(3, 8)
    x[1, 5] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_is_refused(value: float) -> None:
    wanted = "the input of layer 'fc' holds NaN or infinity in token 1 of 3, which has no 8-bit codes; find"
    with pytest.raises(ValueError, match=wanted):
        kernel(quantized("int4", 3, 8))(poked(value))


def test_on_a_static_grid_infinity_is_clipped_and_nan_refused() -> None:
    _, model, _ = at("w4a8")
    made = Packed(1).kernel(layer("wide"), mp.Option.parse("w4a8"), model.get_submodule("wide"))
    assert made is not None
    x = torch.randn(2, 12)
    x[0, 0] = float("inf")
    assert torch.equal(made(x), made(x.clamp(max=1e30)))
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the input of layer 'wide' holds NaN in token 0 of 2"):
        made(x)


@pytest.mark.parametrize("x", [torch.randn(3, 9), torch.tensor(1.0)])
def test_an_input_of_another_width_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' reads 8 values along axis -1, got an"):
        kernel(quantized("int4", 3, 8))(x)


@pytest.mark.parametrize(
    "option",
    [
        "fp32/fp32",
        "bf16/int8",
        "nf4/fp16",
        "fp8_e4m3/fp16",
        "binary2/fp16",
        "int4o1/fp16",
        "int4r2/fp16",
        "int4/fp8_e4m3",
    ],
)
def test_there_is_no_kernel_for_other_formats(option: str) -> None:
    assert Packed().kernel(layer(), mp.Option.parse(option), nn.Linear(3, 4)) is None


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(3, 4, 1), nn.Embedding(4, 3), PaddedConv(3, 4, 3)],
    ids=lambda m: type(m).__name__,
)
def test_there_is_no_kernel_for_other_operators(module: nn.Module) -> None:
    assert Packed().kernel(layer(), mp.Option.parse("int4/fp16"), module) is None


def test_a_module_without_codes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' at 'int8/int8': its module is a Linear that"):
        Packed().kernel(layer("fc"), mp.Option.parse("w8a8"), nn.Linear(3, 4))


def test_a_group_too_long_for_its_sums_is_refused() -> None:
    form = mp.Format.parse("int8g70000").as_weight()
    codes = Codes(
        torch.zeros(1, 70_001, dtype=torch.int8), torch.ones(2).half(), None, form, (1, 70_001)
    )
    with pytest.raises(
        ValueError, match="groups have at most 65536 inputs here, got 70000; use 65536"
    ):
        Weight(codes)


def test_a_path_this_cpu_lacks_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"this CPU has the paths portable.*, got 'neon'; name one of"
    ):
        Packed(path="neon").kernel(layer(), mp.Option.parse("int4/fp16"), quantized("int4", 3, 8))


def test_without_the_library_the_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError("cpu-packed has no kernels here")

    module = quantized("int4", 3, 8)
    monkeypatch.setattr(kernels, "library", missing)
    with pytest.raises(RuntimeError, match="cpu-packed has no kernels here"):
        Packed().kernel(layer(), mp.Option.parse("int4/fp16"), module)
