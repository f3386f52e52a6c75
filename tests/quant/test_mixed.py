import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant.encoding import encode, round_trip
from mpsearch.quant.low_rank import factors
from mpsearch.quant.outliers import chosen
from tests.quant.weights import MATRICES, WEIGHTS, error, normal
from tests.references import mixed as reference
from tests.references import rounding


@given(MATRICES, st.sampled_from([1, 10, 50.5, 99]))
def test_outliers_are_kept_and_the_others_rounded_as_the_reference_does(
    w: Tensor, percent: float
) -> None:
    found = round_trip(w, Format.parse(f"int8o{percent:g}"), "minmax")
    rows = w.tolist()

    def others(holes: reference.Rows) -> reference.Grid:
        return [rounding.symmetric(row, 8) for row in holes]

    wanted = torch.tensor(reference.outliers(rows, percent, others))
    assert torch.allclose(found, wanted, atol=2**-7 * float(w.abs().max()) + 1e-6)


@given(WEIGHTS, st.sampled_from(["int4", "nvfp4", "nf4", "int3g3a"]))
def test_outliers_are_the_weight_s_own_values(w: Tensor, name: str) -> None:
    codes = encode(w, Format.parse(f"{name}o20"))
    found, flat = codes.dequantize().reshape(-1), w.reshape(-1)
    order = flat.abs().argsort(descending=True, stable=True)[: -(-len(flat) // 5)]
    assert torch.allclose(found[order], flat[order], rtol=2**-7)


def test_what_is_salient_may_be_said() -> None:
    w, gradient = normal(4, 50), normal(4, 50, seed=1)
    codes = encode(w, Format.parse("int3o2"), salience=gradient)
    kept = (codes.dequantize() - w).abs() < 1e-3
    assert bool(kept.reshape(-1)[gradient.abs().reshape(-1).topk(4).indices].all())
    codes = encode(w, Format.parse("pb2"), salience=gradient)
    there = codes.more["mask"].reshape(-1).nonzero().flatten().tolist()
    assert there == sorted(gradient.abs().reshape(-1).topk(4).indices.tolist())
    codes = encode(w, Format.parse("sc20"), salience=torch.arange(50))
    assert codes.more["mask"].tolist() == [0] * 40 + [1] * 10
    with pytest.raises(ValueError, match="salience is one number a channel, 50, got 200"):
        encode(w, Format.parse("sc20"), salience=gradient)


def test_outliers_earn_their_bytes_where_tails_are_long() -> None:
    w = normal(64, 256) ** 3
    plain, kept = Format.parse("int3g32"), Format.parse("int3g128o1")
    assert kept.bytes((64, 256)) < plain.bytes((64, 256)) * 1.05
    assert error(round_trip(w, kept), w) < 0.8 * error(round_trip(w, plain), w)


@given(MATRICES, st.sampled_from([5, 10, 50]))
def test_partial_signs_are_the_reference_s(w: Tensor, percent: int) -> None:
    found = round_trip(w, Format.parse(f"pb{percent}"))
    wanted = torch.tensor(reference.partly_signs(w.tolist(), percent))
    near = (found - wanted).abs() <= 2**-9 * w.abs().max() + 1e-6
    tie = ((found + wanted) / 2 - w).abs() <= 2**-9 * w.abs().max() + 1e-6
    assert bool((near | tie).all())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("percent", [10, 50])
def test_salient_channels_are_the_reference_s(seed: int, percent: int) -> None:
    w = normal(7, 13, seed=seed)
    found = round_trip(w, Format.parse(f"sc{percent}"))
    wanted = torch.tensor(reference.salient_channels(w.tolist(), percent))
    near = (found - wanted).abs() <= 4e-3
    tie = ((found + wanted) / 2 - w).abs() <= 4e-3
    assert bool((near | tie).all())


def test_channels_of_a_convolution_are_whole() -> None:
    w = normal(5, 4, 3, 3)
    w[:, 2] *= 10
    codes = encode(w, Format.parse("sc25"))
    assert codes.more["mask"].tolist() == [0, 0, 1, 0]
    step = w[:, 2].abs().amax((1, 2)) / 7
    assert bool(((codes.dequantize() - w)[:, 2].abs().amax((1, 2)) <= step * 0.51).all())


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_branch_is_nearly_the_best_of_its_rank(rank: int) -> None:
    w = normal(40, 60)
    left, right = factors(w, rank)
    best = reference.best_rank(w.double().numpy(), rank)
    least = float(np.square(best - w.double().numpy()).sum())
    assert error(left @ right, w) <= least * 1.02


@given(MATRICES, st.sampled_from(["int4", "nvfp4", "binary", "int2g4"]), st.integers(1, 12))
def test_a_branch_never_makes_it_worse(w: Tensor, name: str, rank: int) -> None:
    plain, branch = (round_trip(w, Format.parse(n)) for n in (name, f"{name}r{rank}"))
    assert error(branch, w) <= error(plain, w) * (1 + 1e-5) + 1e-12


def test_a_branch_takes_what_is_of_low_rank() -> None:
    w = 10 * normal(64, 4) @ normal(4, 64, seed=1) + normal(64, 64, seed=2)
    plain, branch = (error(round_trip(w, Format.parse(n)), w) for n in ("int4", "int4r4"))
    assert branch < 0.02 * plain
    assert Format.parse("int4r4").bytes((64, 64)) == 64 * 32 + 64 * 2 + 2 * 4 * 128


def test_a_weight_too_large_for_half_precision_keeps_its_branch() -> None:
    w = normal(8, 8) * 1e30
    assert error(round_trip(w / 1e30, Format.parse("int4r2")), w / 1e30) < 1
    found = round_trip(w, Format.parse("int4r2")) / 1e30
    assert error(found, w / 1e30) < 0.3


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=30), st.data())
def test_of_equal_ones_the_first_is_kept(sizes: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    order = sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))[:count]
    assert chosen(torch.tensor(sizes), count).nonzero().flatten().tolist() == sorted(order)


@pytest.mark.parametrize("name", ["int3o2", "pb2"])
def test_says_what_salience_is_not(name: str) -> None:
    w, form = normal(4, 50), Format.parse(name)
    for shape in ((50,), (50, 4)):
        with pytest.raises(ValueError, match=r"one number a weight, of shape \(4, 50\), got \(50"):
            encode(w, form, salience=torch.ones(shape))
    with pytest.raises(ValueError, match="salience holds NaN; give numbers, the largest for"):
        encode(w, form, salience=w.masked_fill(w > 2, torch.nan))
