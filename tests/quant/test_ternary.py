import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.encoding import encode
from mpsearch.quant.recipe import Ranges
from tests.quant.weights import MATRICES
from tests.references import ternary as reference

BY = {"ternary": reference.mean, "ternarym": reference.median}


@given(MATRICES, st.sampled_from(list(BY)), st.sampled_from(["minmax", "mse"]))
def test_rows_are_rounded_as_the_reference_does(w: Tensor, name: str, ranges: Ranges) -> None:
    found = encode(w, Format.parse(name), ranges)
    assert found.scale is not None
    for row, scale, codes in zip(w.tolist(), found.scale.tolist(), found.codes, strict=True):
        wanted, signs = BY[name](row)
        assert scale == pytest.approx(wanted or 1.0, rel=2**-10)
        for value, code, sign in zip(row, codes.tolist(), signs, strict=True):
            middle = abs(abs(value) - wanted / 2) <= 2**-10 * wanted
            assert code == sign or middle


@given(MATRICES, st.integers(1, 6), st.sampled_from(list(BY)))
def test_groups_are_rounded_apart(w: Tensor, group: int, name: str) -> None:
    found = encode(w, Format.parse(f"{name}g{group}")).dequantize()
    for start in range(0, w.shape[1], group):
        part = w[:, start : start + group]
        alone = encode(part, Format.parse(name)).dequantize()
        # 16-bit scales are of one type for a whole weight.
        assert torch.allclose(found[:, start : start + group], alone, rtol=2**-7)


@given(MATRICES)
def test_codes_of_what_was_rounded_are_the_same(w: Tensor) -> None:
    once = encode(w, Format.parse("ternary"))
    assert torch.equal(encode(once.dequantize(), Format.parse("ternary")).codes, once.codes)


def test_bitnet_has_one_scale_for_the_tensor() -> None:
    w = torch.tensor([[1.0, -0.2], [0.5, 0.3]])
    found = encode(w, Format.parse("ternaryt"))
    assert found.codes.tolist() == [[1, 0], [1, 1]]
    assert found.dequantize().tolist() == [[0.5, 0.0], [0.5, 0.5]]


def test_a_median_of_zero_gives_way_to_the_mean() -> None:
    found = encode(torch.tensor([[0.0, 0.0, 0.0, 4.0]]), Format.parse("ternarym"))
    assert found.dequantize().tolist() == [[0, 0, 0, 1]]
