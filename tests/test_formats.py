"""Formats and options: names, bytes, and what is refused."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpsearch as mp
from mpsearch.families import FAMILIES, OVERFLOW, ROUNDING, family
from mpsearch.testing import FormatSuite

SUFFIXES = ("", "a", "s", "t", "ta", "ts", "g8", "g128", "g128a", "g32s")
INTEGERS = [f"int{bits}{suffix}" for bits in range(2, 9) for suffix in SUFFIXES]
NAMES = [
    f"{base}{suffix}"
    for base, family in FAMILIES.items()
    for suffix in (SUFFIXES if family.suffixed else ("",))
    if suffix != f"g{family.group}"
]
BARE = tuple(FAMILIES)
MIXED = (
    "int4o1", "int3g128o0.5", "int4g64r32", "int3ao12.25", "nvfp4o1", "mxfp4r16", "nf4o0.05",
    "ternaryr8", "pb10", "pb5g128", "pb0.5", "sc20", "sc12.5",
)  # fmt: skip
GENERIC = (
    *(f"fp{1 + e + m}_e{e}m{m}{end}" for e in range(1, 6) for m in range(8) for end in ("", "f")),
    *(f"fp{1 + e + m}_e{e}m{m}i" for e in range(2, 6) for m in range(8)),
    *(f"fx8.4_{rounding}_{overflow}" for rounding in ROUNDING for overflow in OVERFLOW),
    "fx8.4", "fx16.16", "fx1.0", "fx32.31",
)  # fmt: skip


class TestIntegers(FormatSuite):
    formats = INTEGERS


class TestFull(FormatSuite):
    formats = ("fp16", "bf16", "fp32")


class TestOthers(FormatSuite):
    formats = (*(name for name in NAMES if name.endswith(BARE)), *MIXED, *GENERIC)


@pytest.mark.parametrize("name", [*NAMES, *MIXED, *GENERIC])
def test_every_name_is_read_back(name: str) -> None:
    assert str(mp.Format.parse(name)) == name
    assert mp.Format.parse(name).as_weight().bytes((3, 5)) > 0


@pytest.mark.parametrize(
    "name",
    ["", "int9", "int0", "INT4", "int4x", "int4g0", "int4g", "int4tg8", "int4as", "int4 ", "fp8",
     "fx8.9", "fx33.4", "fx0.0", "int4g12345678", "int4g8t", "nope", "mxfp4_e2", "int٤",
     "int4g1٦", "fx16.1٢",
     "fx8.04", "fp5_e2m1", "fp2_e1m0i", "fp7_e6m0", "fp11_e2m8", "fx8.4_rnd", "fx8.4_sat",
     "pb0", "pb100", "pb10.10", "sc", "sc010", "int4o0", "int4o", "int4r0", "int4o1r2",
     "int4o1g8", "log9", "pot1", "power9"],
)  # fmt: skip
def test_no_format_is_named_otherwise(name: str) -> None:
    with pytest.raises(ValueError, match=r"no format is named '.*'; names are int1, int2, .*fx8.4"):
        mp.Format.parse(name)


@pytest.mark.parametrize(
    "name",
    [
        "fp16g8",
        "mxfp4t",
        "nvfp4a",
        "bf16s",
        "log4t",
        "fx8.4g8",
        "pb10t",
        "sc20g8",
        "pb10o1",
        "fp16r8",
        "fx8.4o1",
    ],
)
def test_some_formats_take_no_suffix(name: str) -> None:
    with pytest.raises(ValueError, match=r"takes no suffix, got '.*'; write '"):
        mp.Format.parse(name)


def test_a_name_without_suffixes_is_a_family_s() -> None:
    assert family("nvfp4") == FAMILIES["nvfp4"]
    assert family("int4g128") is None
    with pytest.raises(ValueError, match=r"no format is named 'int4g128'; use Format\.parse"):
        _ = mp.Format("int4g128", 4).family


def test_a_part_in_16_bits_is_no_integer_s_business() -> None:
    assert mp.Format.parse("int4").kind == "int"
    assert mp.Format.parse("int4o1").kind == mp.Format.parse("int4r8").kind == "mixed"
    assert mp.Format.parse("int4ao1").as_weight().symmetric is False


def test_defaults_are_those_of_the_role() -> None:
    bare = mp.Format.parse("int4")
    weight, activation = bare.as_weight(), bare.as_activation()
    assert (weight.per, weight.symmetric) == ("channel", True)
    assert (activation.per, activation.symmetric) == ("tensor", False)
    said = mp.Format.parse("int4g32a").as_weight()
    assert (said.per, said.group, said.symmetric) == ("group", 32, False)
    assert mp.Format.parse("fp8_e4m3a").as_weight().symmetric


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("int4", (10, 3), 15 + 20),  # 30 codes, 10 scales
        ("int4a", (10, 3), 15 + 20 + 5),  # and 10 zero points of 4 bits
        ("int3t", (5, 5), 10 + 2),  # 75 bits are 10 bytes
        ("int3a", (3, 3), 4 + 6 + 2),  # 27 bits, 3 scales, 9 bits: each stream ends on a byte
        ("int2g64", (4, 65), 65 + 4 * 2 * 2),  # a short second group has its scale
        ("int8g128a", (2, 128), 256 + 4 + 2),
        ("mxfp4", (4, 32), 64 + 4),  # 8-bit scales
        ("nvfp4", (4, 32), 64 + 8 + 4),  # and 32 bits for the tensor
        ("nf4", (2, 64), 64 + 4),
        ("fp16", (3, 5), 30),
        ("bf16", (3, 5), 30),
        ("fp32", (3, 5), 60),
        ("fx8.4", (3, 5), 15),
        ("binary", (2, 9), 3 + 4),
        ("binary2", (2, 9), 5 + 2 * 3 * 2),  # a mean and two scales a row
        ("fp4_exmx", (2, 8), 8 + 4 + 1),  # and the split
        ("mxfp6_e2m3", (2, 33), 50 + 4),  # a short second block has its scale
        ("fp13_e5m7", (2, 3), 10 + 4),
        ("int4o10", (4, 10), 20 + 8 + 2 + 2 + 8),  # counts and columns of 4 bits, 4 kept
        ("int4r2", (10, 6), 30 + 20 + 40 + 24),
        ("pb10", (4, 10), 5 + 5 + 16 + 4 + 8),  # 36 signs, the mask, two scales a row, 4 bytes
        ("sc20", (4, 10), 4 + 2 + 8 + 16 + 4 + 8),  # 8 columns of signs and 2 of 4 bits
        ("int4", (7,), 4 + 14),  # a vector is a row an entry
        ("int4", (4, 2, 3, 3), 36 + 8),
    ],
)
def test_bytes_as_counted_by_hand(name: str, shape: tuple[int, ...], expected: int) -> None:
    form = mp.Format.parse(name)
    assert form.bytes(shape) == expected
    assert form.bits_per_weight(shape) == Fraction(8 * expected, math.prod(shape))


@pytest.mark.parametrize(
    ("text", "same"),
    [("w4a8", "int4/int8"), ("w4a16", "int4/fp16"), ("w32a32", "fp32/fp32"),
     ("int2g64/fp16+gptq", "int2g64/fp16+gptq"), ("k:int4/v:int2", "k:int4/v:int2"),
     ("w4a8+awq", "int4/int8+awq"), ("weight:int4/activation:int8", "int4/int8")],
)  # fmt: skip
def test_options_are_read_back(text: str, same: str) -> None:
    option = mp.Option.parse(text)
    assert str(option) == same
    assert mp.Option.parse(same) == option
    assert hash(mp.Option.parse(same)) == hash(option)


@pytest.mark.parametrize(
    "text", ["", "int4", "int4/int8/int4", "//", "k:int4/int8", "int4/int8+", "k:/v:int2",
             "k:int4/k:int8", "w4", ":int4/v:int4"]
)  # fmt: skip
def test_no_option_is_written_otherwise(text: str) -> None:
    with pytest.raises(ValueError, match=r"no option is written '.*'; write weight/activation"):
        mp.Option.parse(text)


def test_an_option_names_its_formats_and_says_what_it_lacks() -> None:
    option = mp.Option.parse("int4g128/int8")
    assert (option.weight.bits, option.weight.group, option.activation.bits) == (4, 128, 8)
    with pytest.raises(ValueError, match="option 'k:int4/v:int4' names no weight format; write"):
        _ = mp.Option.parse("k:int4/v:int4").weight
    with pytest.raises(ValueError, match="option 'Q4_K_M' names no activation format"):
        _ = mp.Option.read("Q4_K_M").activation


@given(st.text(max_size=30))
def test_any_label_is_read_and_written_again(label: str) -> None:
    option = mp.Option.read(label)
    assert mp.Option.read(str(option)) == option
    if option.label is not None:
        assert str(option) == label


def test_options_are_named_once_and_at_least_one() -> None:
    assert [str(o) for o in mp.options("w4a8", mp.Option.parse("w8a8"))] == [
        "int4/int8",
        "int8/int8",
    ]
    with pytest.raises(
        ValueError, match="option 'int4/int8' is named twice; name each option once"
    ):
        mp.options("w4a8", "int4/int8")
    with pytest.raises(ValueError, match="no option given; name at least one, such as int4/int8"):
        mp.options()


@pytest.mark.parametrize(
    ("one", "other"),
    [("int4/int8", "activation:int8/weight:int4"), ("k:int4/v:int2", "v:int2/k:int4")],
)
def test_equal_options_are_found_by_each_other(one: str, other: str) -> None:
    first, second = mp.Option.parse(one), mp.Option.parse(other)
    assert first == second
    assert {first: 1}[second] == 1
    assert str(mp.Option.parse("activation:int8/weight:int4")) == "int4/int8"


def test_says_that_no_weights_take_no_bits() -> None:
    assert mp.Format.parse("int4").bytes((0, 3)) == 0
    with pytest.raises(ValueError, match=r"a weight of shape \(0, 3\) holds no values"):
        mp.Format.parse("int4").bits_per_weight((0, 3))
