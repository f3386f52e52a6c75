"""What holds for every format, whatever its family."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.families import FAMILIES
from mpsearch.formats import Format
from mpsearch.quant.codes import Codes, grouped
from mpsearch.quant.encoding import encode, round_trip, supported
from mpsearch.quant.recipe import Ranges
from tests.quant.weights import WEIGHTS, error, normal

WHOLE = [name for name, family in FAMILIES.items() if family.kind != "log"]
SUFFIXED = [name for name in WHOLE if FAMILIES[name].suffixed]
NAMES = [
    *WHOLE,
    *(f"{name}{suffix}" for name in SUFFIXED for suffix in ("t", "g3", "g50")),
    *(f"int{bits}{suffix}" for bits in range(1, 9) for suffix in ("a", "ta", "g4a")),
    *(f"{name}{end}" for name in ("int3", "nvfp4", "mxfp6_e2m3", "nf4", "ternary", "power4")
      for end in ("o1", "o12.5", "r1", "r7")),
    "int4g3ao10", "int3g4r2", "fp13_e5m7", "fp9_e1m7g2", "fp2_e1m0", "fp3_e1m1i",
    "pb10", "pb1g3", "pb99", "sc20", "sc0.5", "sc99",
    "fx8.4", "fx1.0", "fx32.16", "fx12.12", "fx7.3_trn_wrap",
]  # fmt: skip
ANY = st.sampled_from(NAMES)
RANGES = st.sampled_from(["minmax", "mse"])


def _size(codes: Codes) -> int:
    return sum(part.numel() * part.element_size() for part in codes.stored().values())


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7,), (2, 3, 3, 2), (4, 33), (1, 130), ()])
def test_what_is_stored_has_the_bytes_the_format_counts(shape: tuple[int, ...]) -> None:
    for form in map(Format.parse, NAMES):
        codes = encode(normal(*shape), form, "minmax")
        assert set(codes.stored()) == set(form.streams(shape)), str(form)
        assert _size(codes) == form.bytes(shape), str(form)


@given(WEIGHTS, ANY, RANGES)
def test_what_is_stored_is_read_back(w: Tensor, name: str, ranges: Ranges) -> None:
    codes = encode(w, Format.parse(name), ranges)
    found = codes.dequantize()
    assert found.shape == w.shape
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    assert _size(codes) == Format.parse(name).bytes(tuple(w.shape))
    back = Codes.read(codes.stored(), Format.parse(name), tuple(w.shape))
    assert torch.equal(back.dequantize(), found)


@given(WEIGHTS, ANY, RANGES)
def test_zeros_stay_zero_and_rows_of_them_too(w: Tensor, name: str, ranges: Ranges) -> None:
    assert not round_trip(torch.zeros_like(w), Format.parse(name), ranges).any()
    form = Format.parse(name)
    if form.as_weight().per == "tensor" or form.outliers or form.rank or form.kind == "salient":
        return  # a scale, a choice or a branch is shared with other rows
    w = w.clone()
    w[0] = 0
    if form.kind != "partial":
        assert not round_trip(w, form, ranges)[0].any()


@given(WEIGHTS, ANY.filter(lambda n: not n.startswith("fx")), RANGES, st.integers(-3, 5))
@example(torch.tensor([[-1, 0, -0.5], [0, -1.5, 0], [3, -1, 0]]), "nvfp4r1", "minmax", 5)
def test_scaling_by_powers_of_two_commutes(w: Tensor, name: str, ranges: Ranges, k: int) -> None:
    form = Format.parse(name)
    scaled, plain = round_trip(w * 2.0**k, form, ranges) / 2.0**k, round_trip(w, form, ranges)
    if not form.rank:  # whose factors may be subnormal in 16 bits
        assert torch.equal(scaled, plain)
    assert abs(error(scaled, w) - error(plain, w)) <= 0.05 * error(plain, w) + 1e-5


@given(WEIGHTS, ANY)
@example(
    torch.tensor(
        [
            [0, 1, 1.5, 0, 1.5, 2, 1, 0, 1],
            [0, 2.625, 0.75, 2, 0.125, 0, 1, 2, 0],
        ]
    ),
    "int4r1",
)
def test_clipping_never_loses_to_the_whole_range(w: Tensor, name: str) -> None:
    form = Format.parse(name)
    clipped, whole = (error(round_trip(w, form, r), w) for r in ("mse", "minmax"))
    assert clipped <= whole * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e20, 3.4e38])
@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_extreme_weights_have_finite_codes(size: float, ranges: Ranges) -> None:
    w = normal(3, 20).sign() * size
    w[1] = 0
    for form in map(Format.parse, NAMES if ranges == "minmax" else WHOLE):
        codes = encode(w, form, ranges)
        assert bool(codes.dequantize().isfinite().all()), str(form)
        assert _size(codes) == form.bytes((3, 20)), str(form)


def test_says_what_is_not_finite_or_empty() -> None:
    for form in map(Format.parse, NAMES):
        for bad in (torch.nan, torch.inf, -torch.inf):
            with pytest.raises(ValueError, match="it holds NaN or infinity; quantize a network"):
                encode(torch.tensor([[1.0, bad]]), form)
        with pytest.raises(ValueError, match=r"it holds no values, its shape is \(0, 3\); leave"):
            encode(torch.empty(0, 3), form)


@pytest.mark.parametrize("name", ["fp8_e4m3", "nvfp4", "ternary", "binary", "int1", "pb10"])
def test_half_precision_weights_keep_their_type(name: str) -> None:
    w = torch.tensor([[0.875, -0.25]], dtype=torch.bfloat16)
    assert round_trip(w, Format.parse(name)).dtype == torch.bfloat16


def test_more_bits_are_nearer() -> None:
    w = normal(32, 128)
    ladders = [
        ["binary", "ternary", "int3", "int4", "int6", "int8", "fp16"],
        ["fp4_e2m1", "fp6_e2m3", "fp8_e3m4", "fp10_e3m6"],
        ["mxfp4", "mxfp6_e2m3", "mxint8"],
        ["binary", "pb10", "pb50"],
        ["binary", "sc20", "sc50"],
        ["int3", "int3o1", "int3o10"],
        ["int3", "int3r8", "int3r32"],
        ["pot2", "pot3", "pot4"],
    ]
    for names in ladders:
        errors = [error(round_trip(w, supported(Format.parse(name))), w) for name in names]
        assert errors == sorted(errors, reverse=True), names


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_laid_out_otherwise_has_the_same_codes(name: str) -> None:
    form, w = Format.parse(name), normal(4, 3, 2, 5)
    wanted = round_trip(w, form, "minmax")
    strided = torch.stack([w, w], 4)[..., 0]
    for same in (w.contiguous(memory_format=torch.channels_last), strided, w.clone().double()):
        assert torch.equal(round_trip(same, form, "minmax").float(), wanted)
    turned = normal(9, 5).t()
    wanted = round_trip(turned.contiguous(), form, "minmax")
    assert torch.equal(round_trip(turned, form, "minmax"), wanted)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_8_bits_are_floats_too(kind: torch.dtype) -> None:
    w = torch.tensor([[0.5, -1.0, 0.25]]).to(kind)
    for name in ("int8", "fp8_e5m2", "int4r1"):
        found = round_trip(w, Format.parse(name))
        assert found.dtype == kind
        assert torch.allclose(found.float(), w.float(), atol=0.07)
    assert torch.equal(round_trip(w, Format.parse("fp8_e4m3")).float(), w.float())


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_says_what_is_no_float(kind: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"it holds {kind}, wanted floats; leave the layer out"):
        encode(torch.ones(2, 3).to(kind), Format.parse("int4"))


def test_says_what_float32_cannot_hold() -> None:
    w = torch.tensor([[1e300, 1.0]], dtype=torch.float64)
    for form in map(Format.parse, NAMES):
        with pytest.raises(ValueError, match="it holds numbers beyond float32; quantize a network"):
            encode(w, form)


@pytest.mark.parametrize("name", ["binary", "binary2", "int1", "pb10", "sc20", "int4", "nf4"])
def test_weights_next_to_zero_stay_there(name: str) -> None:
    w = normal(3, 40) * 1e-41
    assert error(round_trip(w, Format.parse(name)), w) <= error(torch.zeros_like(w), w)


def test_a_group_longer_than_the_row_is_the_row() -> None:
    w = normal(64, 64)
    for name in ("int4", "int1", "nf4", "ternary", "binary2", "fp4_e2m1", "pb10"):
        long = Format.parse(f"{name}g9999999")
        assert grouped(w, long.as_weight()).shape == w.shape
        assert torch.equal(encode(w, long).dequantize(), round_trip(w, Format.parse(f"{name}g64")))
