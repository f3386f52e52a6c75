from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.blocks import element
from mpsearch.quant.encoding import encode, round_trip
from mpsearch.quant.floats import splits, values
from mpsearch.quant.lookup import table, tables
from tests.quant.weights import MATRICES, error, normal
from tests.references import floats as reference

# Every type of ml_dtypes that has the bias of IEEE 754 and a fraction; fnuz types have another.
THEIRS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e4m3i": ml_dtypes.float8_e4m3,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e5m2i": ml_dtypes.float8_e5m2,
    "fp8_e3m4i": ml_dtypes.float8_e3m4,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
SPLITS = [(e, m, end) for e in range(1, 6) for m in range(8) for end in ("", "i", "f")]
NAMES = [f"fp{1 + e + m}_e{e}m{m}{end}" for e, m, end in SPLITS if (e, m, end) != (1, 0, "i")]


@pytest.mark.parametrize("name", THEIRS)
def test_every_code_is_the_one_of_ml_dtypes_bit_for_bit(name: str) -> None:
    mine = values(name).numpy()
    theirs = np.arange(len(mine), dtype=np.uint8).view(THEIRS[name]).astype(np.float32)
    assert np.array_equal(np.isnan(mine), np.isnan(theirs))
    there = ~np.isnan(theirs)
    assert np.array_equal(mine.view(np.uint32)[there], theirs.view(np.uint32)[there])


@pytest.mark.parametrize("name", THEIRS)
def test_rounding_is_the_one_of_ml_dtypes_bit_for_bit(name: str) -> None:
    by = table(values(name))
    finite = values(name)[values(name).isfinite()].sort().values
    middles = (finite[1:] + finite[:-1]) / 2
    near = [torch.nextafter(middles, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    spread = normal(20000) * by.top / 3
    x = torch.cat([finite, middles, *near, spread]).clamp(-by.top, by.top)
    mine = by.value(by.code(x)).numpy()
    theirs = x.numpy().astype(THEIRS[name]).astype(np.float32)
    assert np.array_equal(mine, theirs)  # but for the sign of zero, of which codes have one


def _special(name: str) -> str:
    if name.endswith("i") or name == "fp8_e5m2":
        return "ieee"
    return "nan" if name == "fp8_e4m3" else ""


@pytest.mark.parametrize("name", NAMES)
def test_every_code_is_the_reference_s(name: str) -> None:
    exponents, fractions = int(name.split("_e")[1][0]), int(name.split("m")[1][0])
    count = 1 << (1 + exponents + fractions)
    special = _special(name)
    wanted = [reference.value(code, exponents, fractions, special) for code in range(count)]
    assert np.array_equal(values(name).numpy(), np.asarray(wanted, np.float32), equal_nan=True)


@given(
    st.sampled_from([n for n in NAMES if len(values(n)) <= 256]), st.floats(-1.25, 1.25, width=32)
)
def test_codes_are_the_reference_s(name: str, share: float) -> None:
    by = table(values(name))
    x = torch.tensor([share * by.top])
    assert int(by.code(x)) == reference.nearest(float(x), values(name).tolist())


@given(
    MATRICES, st.sampled_from([*NAMES, "fp4_exmx", "fp8_exmx"]), st.sampled_from(["", "t", "g3"])
)
def test_rounding_twice_is_rounding_once(w: Tensor, name: str, suffix: str) -> None:
    form = Format.parse(name + suffix)
    once = round_trip(w, form, "minmax")
    assert torch.equal(round_trip(once, form, "minmax"), once)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_the_searched_split_is_the_best_one(bits: int) -> None:
    for power in (1, 3):  # normal weights, and some with longer tails
        w = normal(16, 40) ** power
        found = error(round_trip(w, Format.parse(f"fp{bits}_exmx")), w)
        each = [error(round_trip(w, Format.parse(name)), w) for name in splits(bits).values()]
        assert found == pytest.approx(min(each), rel=1e-12)
    code = encode(normal(16, 40), Format.parse("fp4_exmx")).more["tensor"]
    assert code.tolist() == [2]  # e2m1 for what is normal


@pytest.mark.shared
def test_grids_are_those_of_llm_fp4(shared: Path) -> None:
    """4483 of 4487 numbers; the others are middles of e3m0, which its code rounds up."""
    golden = np.load(shared / "oracles" / "golden" / "llmfp4_formats.npz")
    x, agree, ties = torch.from_numpy(golden["x"]), 0, 0
    for key in (key for key in golden.files if key.startswith("q_")):
        bits, split = int(key[3]), key[5:].lower()
        by = table(values(f"fp{bits}_{split}f"))
        scale = 6.0 / by.top
        mine, wanted = by.value(by.code(x / scale)) * scale, torch.from_numpy(golden[key])
        same = (mine - wanted).abs() <= 6e-6
        agree += int(same.sum())
        ties += int((((mine + wanted) / 2 - x)[~same].abs() < 1e-6).sum())
        literal = [reference.llm_fp4(v, int(split[1]), int(split[3]), 6.0) for v in x.tolist()]
        assert int(((torch.tensor(literal) - wanted).abs() > 1e-5).sum()) <= 16, key  # middles
    assert (agree, ties) == (4483, 4)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("key", "name", "others"), [("fp4", "fp4_e2m1g128", 2), ("fp6_e2m3", "fp6_e2m3g128", 8)]
)
def test_groups_are_rounded_as_bitmod_does(shared: Path, key: str, name: str, others: int) -> None:
    """All of 2048 weights but the few that 16-bit scales put beyond the middle of a step."""
    golden = np.load(shared / "oracles" / "golden" / "bitmod.npz")
    w, wanted = (torch.from_numpy(golden[part]).float() for part in ("W", key))
    found = round_trip(w, Format.parse(name), "minmax")
    differs = (found - wanted).abs() > 1e-3 * w.abs().max()
    assert int(differs.sum()) == others
    middle = ((found + wanted) / 2 - w)[differs].abs()
    assert float(middle.max()) < 2**-11 * float(w.abs().max())


def test_says_what_is_no_float() -> None:
    with pytest.raises(ValueError, match="no float is named 'fp8'; names look like fp5_e2m2"):
        values("fp8")


TABLES = {
    (name, choice): by
    for name in (*NAMES, "fp6_exmx", "nf4", "pot2", "pot8", *(f"power{b}" for b in range(2, 9)))
    for choice, by in tables(Format.parse(name)).items()
} | {(name, 0): element(name) for name in ("mxfp4", "mxint8", "mxfp8_e5m2")}


@pytest.mark.parametrize("of", TABLES, ids=str)
def test_a_code_is_the_one_that_a_search_of_the_bounds_finds(of: tuple[str, int]) -> None:
    by = TABLES[of]
    ends = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3e38, -3e38, 1e-45, -1e-45])
    near = [torch.nextafter(by.bounds, end) for end in (ends[2], ends[3])]
    spread = normal(4000) * by.top / 3
    x = torch.cat([ends, by.bounds, *near, spread, spread * 1e-4])
    wanted = by.codes[torch.bucketize(x, by.bounds)]
    assert torch.equal(by.code(x), wanted)
    assert torch.equal(by.code(x.double()), wanted)
    assert torch.equal(by.rounded(x), by.values[wanted.long()])


def test_a_split_is_searched_on_few_weights_of_a_tensor_with_one_scale() -> None:
    w = normal(600, 600) ** 3
    found = encode(w, Format.parse("fp4_exmxt")).more["tensor"]
    each = {e: error(round_trip(w, Format.parse(f"{n}t")), w) for e, n in splits(4).items()}
    assert found.item() == min(each, key=lambda e: each[e])
