"""What runs on NVIDIA GPUs, on one where it is there, and on torch's operators of CPUs."""

import copy
import re
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mpsearch as mp
from mpsearch import registry
from mpsearch.kernels import cuda, cuda_floats, cuda_integers, cuda_tinygemm
from mpsearch.kernels.cuda import Cuda
from mpsearch.kernels.plain import runs_as
from mpsearch.quant import activations, floats, quantize
from mpsearch.quant.activations import Grid
from mpsearch.quant.integers import Codes
from mpsearch.quant.modules import Stored, store
from tests.kernels.networks import PaddedConv, at, layer, seen

INTEGERS = ["w8a8", "w4a8", "w2a2", "int8t/int8", "int4/int8s", "int5/int3s"]
FLOATS = ["fp8_e4m3/fp8_e4m3", "fp8_e4m3t/fp8_e4m3"]
SIXTEEN = ["int1/fp16", "int2a/bf16", "int3g32/bf16", "int4/fp16", "int7/fp16", "int8/bf16"]
FOUR = ["int4g32/bf16", "int4g64a/bf16", "int4g128/bf16"]
Kind = Literal["tinygemm", "triton"]


def linear(option: str, rows: int = 32, columns: int = 256, tokens: int = 5) -> tuple[Any, Tensor]:
    """A quantized linear layer, and what it was calibrated on."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(columns, rows)), torch.randn(tokens, columns)
    return quantize(model, {"0": option}, [x]).get_submodule("0"), x


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest distance, in parts of the largest output."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize(
    ("option", "kernel"),
    [
        *((option, "_int_mm") for option in INTEGERS),
        *((option, "_scaled_mm") for option in FLOATS),
        *((option, "triton") for option in (*SIXTEEN, "ternary/bf16", "binaryg8/fp16")),
        *((option, "tinygemm") for option in FOUR),
        *((option, "triton") for option in ("int4g32/fp16", "int4g8/bf16", "int4/bf16")),
        *((option, "torch") for option in ("fp32/fp32", "bf16/bf16", "fp16/fp16")),
    ],
)
def test_it_says_what_an_option_runs_on(option: str, kernel: str) -> None:
    assert Cuda().runs(mp.Option.parse(option), linear(option)[0]) == kernel


@pytest.mark.parametrize(
    "option",
    [
        *("int8/fp32", "fp32/bf16", "bf16/int8", "int8a/int8", "int8g32/int8", "int1/int8"),
        *("nf4/bf16", "fp8_e4m3/bf16", "fp8_e5m2/fp8_e5m2", "fp8_e4m3g32/fp8_e4m3", "mxfp4/mxfp4"),
        *("int4o1/bf16", "int4r2/bf16", "int8o1/int8", "binary2/fp16", "int8/fp8_e4m3"),
    ],
)
def test_there_is_no_kernel_for_other_formats(option: str) -> None:
    assert Cuda().kernel(layer(), mp.Option.parse(option), nn.Linear(256, 32)) is None


@pytest.mark.parametrize("option", ["w8a8", "int4g32/bf16", "fp8_e4m3/fp8_e4m3"])
@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(3, 4, 1), nn.Embedding(4, 3), PaddedConv(3, 4, 3)],
    ids=lambda m: type(m).__name__,
)
def test_there_is_no_kernel_for_other_operators(module: nn.Module, option: str) -> None:
    assert Cuda().kernel(layer(), mp.Option.parse(option), module) is None


@pytest.mark.parametrize(("rows", "columns"), [(20, 256), (32, 320), (32, 100)])
def test_shapes_tinygemm_does_not_take_run_on_triton(rows: int, columns: int) -> None:
    option = "int4g128/bf16"
    assert Cuda().runs(mp.Option.parse(option), linear(option, rows, columns)[0]) == "triton"


def test_it_is_told_by_name_what_runs_4_bits() -> None:
    assert registry.make("backends", "cuda") == Cuda("tinygemm")
    ours = registry.make("backends", "cuda:triton")
    assert ours.runs(mp.Option.parse(FOUR[0]), linear(FOUR[0])[0]) == "triton"
    with pytest.raises(ValueError, match="int4 is 'marlin'; wanted 'tinygemm' or 'triton'"):
        registry.make("backends", "cuda:marlin")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", [(0, 255, 0), (0, 255, 97), (-127, 127, 0), (0, 15, 8)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 64, 8), (5, 131, 33)])
def test_sums_of_codes_are_exact(
    shape: tuple[int, int, int], grid: tuple[int, int, int], bits: int
) -> None:
    (tokens, columns, rows), (low, high, zero) = shape, grid
    rng, top = torch.Generator().manual_seed(bits), (1 << (bits - 1)) - 1
    codes = torch.randint(-top, top + 1, (rows, columns), dtype=torch.int8, generator=rng)
    made = cuda_integers.Linear(integers(codes, bits, Grid(1.0, zero, low, high)), "fc")
    x = torch.randint(low - zero, high - zero + 1, (tokens, columns), generator=rng)
    found = made.products(made.read(x.float()))
    assert torch.equal(found.long(), x @ codes.long().T)


def integers(codes: Tensor, bits: int, grid: Grid) -> Any:
    """A quantized layer of these codes, scales 1."""
    module = nn.Linear(codes.shape[1], len(codes), bias=False)
    form = mp.Format.parse(f"int{bits}").as_weight()
    given = Codes(codes, torch.ones(len(codes)).half(), None, form, tuple(codes.shape))
    store(module, mp.Option.parse(f"w{bits}a8"), given, grid, torch.float32)
    return module


def test_the_largest_sums_do_not_overflow() -> None:
    codes = torch.full((1, cuda_integers.MOST), -127, dtype=torch.int8)
    made = cuda_integers.Linear(integers(codes, 8, Grid(1.0, 0, 0, 255)), "fc")
    found = made.products(made.read(torch.full((1, cuda_integers.MOST), 255.0)))
    assert found.item() == -127 * 255 * cuda_integers.MOST


def test_sums_that_could_overflow_are_refused() -> None:
    codes = torch.zeros(1, cuda_integers.MOST + 1, dtype=torch.int8)
    with pytest.raises(ValueError, match="layer 'fc' reads 65537 inputs, of which int32 holds the"):
        cuda_integers.Linear(integers(codes, 8, Grid(1.0, 0, 0, 255)), "fc")


@pytest.mark.parametrize("option", INTEGERS)
def test_integers_compute_what_the_quantized_module_does(option: str) -> None:
    _, model, x = at(option)
    for name in ("wide", "head"):
        read, written = seen(model, x)[name]
        module: Any = model.get_submodule(name)
        made = cuda_integers.Linear(module, name)
        assert made.runs_as == "int8/int8 by _int_mm"
        codes = activations.codes(read, module.grid) - module.grid.zero
        assert torch.equal(made.read(read).short() - made.zero, codes)
        assert off(made(read), written) < 1e-6


def test_nan_stays_in_its_token_and_infinity_is_clipped() -> None:
    module, x = linear("w8a8")
    made: Any = cuda_integers.Linear(module, "0")
    poked = x.clone()
    poked[1, 3], poked[2, 3] = torch.nan, torch.inf
    found, clipped = made(poked), made(poked.clamp(max=1e30))
    assert bool(found[1].isnan().all())
    assert torch.equal(found[[0, 2, 3, 4]], clipped[[0, 2, 3, 4]])


@pytest.mark.parametrize("option", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 131, 5), (24, 256, 16)])
def test_floats_compute_what_the_quantized_module_does(
    shape: tuple[int, int, int], option: str
) -> None:
    module, x = linear(option, *shape)
    made = cuda_floats.Linear(module, "0")
    assert made.runs_as == "fp8_e4m3/fp8_e4m3 by _scaled_mm"
    with torch.no_grad():
        size = x.abs() @ module.weight.abs().T + module.bias.abs()
        assert bool(((made(x) - module(x)).abs() <= 1e-5 * size).all())


def test_floats_are_rounded_as_their_table_says() -> None:
    module, x = linear(FLOATS[0])
    made: Any = cuda_floats.Linear(module, "0")
    levels = module.grid.other
    values = torch.cat([torch.randn(10_000) * x.std(), levels.values, x.flatten() * 100])
    found = made.read(values).float() * (float(levels.values[-1]) / 448)
    torch.testing.assert_close(found, levels.rounded(values), rtol=1e-6, atol=0)
    assert floats.values("fp8_e4m3").nan_to_num().max() == 448


class Asked(TorchDispatchMode):
    """What products are given: (tokens, in), (in, out), and whether the second is transposed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {torch.ops.aten._int_mm.default, torch.ops.aten._scaled_mm.default}:
            assert args[0].is_contiguous()
            assert args[1].T.is_contiguous()
            self.shapes.append((*args[0].shape, args[1].shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 131, 5), (32, 256, 17)])
def test_products_are_given_the_sides_that_gpus_take(shape: tuple[int, int, int]) -> None:
    rows, columns, tokens = shape
    integer, x = linear("w8a8", *shape)
    eight, _ = linear(FLOATS[0], *shape)
    with Asked() as asked:
        cuda_integers.Linear(integer, "0")(x)
        cuda_floats.Linear(eight, "0")(x)
    given, wide = asked.shapes
    assert given == (max(tokens, 17), -(-columns // 8) * 8, -(-rows // 8) * 8)
    assert wide == tuple(-(-n // 16) * 16 for n in (tokens, columns, rows))


def test_nan_stays_nan_in_floats() -> None:
    module, x = linear(FLOATS[0])
    poked = x.clone()
    poked[1, 3], poked[2, 3] = torch.nan, torch.inf
    made: Any = cuda_floats.Linear(module, "0")
    found = made(poked)
    assert found.isnan().any(1).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(("option", "part"), [(FOUR[0], 32), (FOUR[1], 16), (FOUR[2], 32)])
def test_tinygemm_is_within_a_part_of_a_step_of_each_weight(option: str, part: int) -> None:
    module, x = linear(option)
    module.bias = None
    made = cuda_tinygemm.Linear(module, "0")
    assert made.runs_as == f"{option} by tinygemm"
    ones = made(torch.eye(256).bfloat16()).float().T
    codes = module.stored()
    step = codes.steps.reshape(len(ones), -1).repeat_interleave(codes.format.group, 1)
    rounding = 2.0**-8 * module.weight.abs()  # of the output
    assert bool(((ones - module.weight).abs() <= step / part + rounding).all())
    assert off(made(x), module(x)) < 2**-6


KINDS: list[tuple[Any, str]] = [
    (cuda_integers.Linear, "w8a8"),
    (cuda_floats.Linear, FLOATS[0]),
    (cuda_tinygemm.Linear, FOUR[0]),
]


@pytest.mark.parametrize(("kind", "option"), KINDS, ids=lambda k: str(k)[-20:])
def test_axes_types_and_copies_are_kept(kind: Any, option: str) -> None:
    module, x = linear(option)
    made = kind(module, "0")
    whole = made(x)
    assert torch.equal(made(x[None, :, None])[0, :, 0], whole)
    assert made(x[:0]).shape == (0, 32)
    assert made(x.bfloat16()).dtype is torch.bfloat16
    assert torch.equal(copy.deepcopy(made)(x), whole)
    module.bias = None
    assert torch.isfinite(kind(module, "0")(x)).all()
    with pytest.raises(ValueError, match="layer '0' reads 256 values a token, got 255"):
        made(x[:, 1:])


@pytest.mark.parametrize("kind", [cuda_integers.Linear, cuda_floats.Linear])
def test_a_module_of_other_formats_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="a module at 'int4g32/bf16' has no"):
        kind(linear(FOUR[0])[0], "0")


@pytest.mark.parametrize("option", ["w8a8", "int3g32/bf16", FLOATS[0], FOUR[0], "bf16/bf16"])
def test_a_module_on_no_gpu_is_refused(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = linear(option)
    for there, fix in ((False, "torch finds none here: name"), (True, "move the model and its")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        where = f"layer 'fc' at {str(mp.Option.parse(option))!r} is on cpu, and the kernels of cuda"
        with pytest.raises(ValueError, match=f"{re.escape(where)} run on NVIDIA GPUs; {fix}"):
            Cuda().kernel(layer("fc"), mp.Option.parse(option), module)


def test_weights_that_are_not_finite_are_refused_before() -> None:
    first = nn.Linear(4, 3)
    first.weight.data[0, 0] = torch.nan
    model = nn.Sequential(first)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        mp.quantize(model, {"0": "int4/bf16"}, [torch.randn(2, 4)], backend="cuda")


@pytest.fixture
def somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is asked for nothing: modules stay where they are."""
    monkeypatch.setattr(cuda, "_on_gpu", lambda *_: None)


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("w8a8", "int8/int8 by _int_mm"),
        (FLOATS[0], "fp8_e4m3/fp8_e4m3 by _scaled_mm"),
        ("int3g32/fp16", "int3g32/fp16 by Triton, dequantized above 64 tokens"),
        ("int4g32/bf16", "int4g32/bf16 by tinygemm"),
        ("fp16/fp16", "fp16/fp16"),
    ],
)
def test_a_kernel_says_what_it_is(option: str, said: str) -> None:
    given = mp.Option.parse(option)
    made = Cuda().kernel(layer(), given, linear(option)[0])
    assert made is not None
    assert runs_as(made, given) == said


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize("option", ["w8a8", "int3g32/fp16"])
def test_a_module_without_codes_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' at .*: its module is a Linear that holds no"):
        Cuda().kernel(layer("fc"), mp.Option.parse(option), nn.Linear(3, 4))


def test_a_gpu_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))

    class There(nn.Module):
        def buffers(self, recurse: bool = True) -> Any:
            return iter([type("On", (), {"device": torch.device("cuda", 0)})()])

    cuda._on_gpu("layer 'fc'", There(), (8, 0))
    with pytest.raises(ValueError, match=r"needs a GPU of compute capability 8\.9, this one has 8"):
        cuda._on_gpu("layer 'fc'", There(), (8, 9))


@pytest.mark.cuda
@pytest.mark.parametrize("option", [*INTEGERS, *FLOATS, *SIXTEEN, *FOUR])
def test_on_a_gpu_a_layer_computes_what_the_quantized_one_does(option: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 520)).to("cuda"), torch.randn(37, 256, device="cuda")
    wanted = quantize(model, {"0": option}, [x])
    found = mp.quantize(model, {"0": option}, [x], backend="cuda")
    within = 1e-5 if option in INTEGERS else 2**-6
    with torch.no_grad():
        for tokens in (1, 37):
            assert off(found(x[:tokens]), wanted(x[:tokens])) < within
        if option in FLOATS:
            module: Any = wanted.get_submodule("0")
            size = x.abs() @ module.weight.abs().T + module.bias.abs()
            assert bool(((found(x) - wanted(x)).abs() <= 1e-3 * size).all())


@pytest.mark.cuda
def test_on_a_gpu_sums_of_codes_are_exact() -> None:
    for tokens, columns, rows in [(1, 1, 1), (17, 64, 8), (5, 131, 33), (300, 4096, 520)]:
        rng = torch.Generator().manual_seed(tokens)
        codes = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=rng)
        module = integers(codes, 8, Grid(1.0, 97, 0, 255)).to("cuda")
        made = cuda_integers.Linear(module, "fc")
        x = torch.randint(-97, 159, (tokens, columns), generator=rng)
        found = made.products(made.read(x.float().to("cuda")))
        assert torch.equal(found.cpu().long(), x @ codes.long().T)


@pytest.mark.cuda
def test_on_a_gpu_an_input_on_the_cpu_is_refused() -> None:
    module: Any = linear("w8a8")[0].to("cuda")
    assert isinstance(module, Stored)
    with pytest.raises(ValueError, match="layer '0' is on cuda:0 and its input on cpu; move the"):
        cuda_integers.Linear(module, "0")(torch.randn(1, 256))
