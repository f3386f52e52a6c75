"""Peak memory: closed forms, a literal count of live tensors, patches, and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.hwmodels import Sram
from mpsearch.hwmodels.sram import patch_overhead, patch_sides
from mpsearch.network import Window
from mpsearch.testing import HardwareSuite

OPTIONS = mp.options("w4a4", "w8a8")


class TestSram(HardwareSuite):
    hardware = Sram()


def chain(sizes: list[int]) -> mp.Network:
    layers = tuple(
        mp.Layer(f"l{i}", 1, 1, inputs=a, outputs=b)
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    )
    return mp.Network(layers, tuple((a.name, b.name) for a, b in itertools.pairwise(layers)))


@given(st.lists(st.integers(1, 99), min_size=2, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_chain_s_peak_is_the_largest_input_and_output(sizes: list[int], rng: object) -> None:
    net = chain(sizes)
    table = Sram().costs(net, OPTIONS)["sram"]
    for choice in itertools.product(range(2), repeat=len(net.layers)):
        bits = [(4, 8)[column] for column in choice] + [8]
        stored = [math.ceil(n * b / 8) for n, b in zip(sizes, bits, strict=True)]
        assert table.total(choice) == max(a + b for a, b in itertools.pairwise(stored))


class Residual(nn.Module):
    """Two blocks with additions, the second with a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a1, self.a2 = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 1, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.a2(torch.relu(self.a1(x))))
        x = torch.relu(self.b2(torch.relu(self.b1(x))) + self.down(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_residual_network_s_stages_are_what_is_alive() -> None:
    """Counted by hand, 8-bit tensors of one 8 x 8 image."""
    net = mp.trace(Residual().eval(), torch.zeros(1, 3, 8, 8))
    table = Sram().costs(net, mp.options("w8a8"))["sram"]
    image, x, wide, small = 3 * 64, 4 * 64, 6 * 64, 8 * 16
    by_hand = {
        "stem": image + x,
        "a1": x + wide,  # x is read and kept: once
        "a2": wide + x + x,  # and x kept for the addition
        "b1": x + 2 * small,  # with the shortcut, which it is tied to: both write
        "b2": small + small + 2 * small,  # what of the two is kept is not told apart
        "head": 8 + 5,
    }
    found = {
        layer.name: sum(value for _, _, value in stage)
        for layer, stage in zip(net.layers, table.stages, strict=True)
    }
    assert found == by_hand
    assert table.total([0] * 6) == wide + 2 * x


def test_a_tensor_is_stored_as_its_next_reader_takes_it() -> None:
    net = chain([10, 100, 10])
    table = Sram().costs(net, OPTIONS)["sram"]
    assert table.total([1, 0]) == 10 + 50
    assert table.total([0, 1]) == 100 + 10


def test_what_is_concatenated_is_kept_side_by_side() -> None:
    layers = tuple(
        mp.Layer(n, 1, 1, inputs=i, outputs=o)
        for n, i, o in (("a", 5, 10), ("b", 5, 20), ("c", 5, 1), ("d", 30, 2))
    )
    net = mp.Network(layers, (("a", "d"), ("b", "d")))
    stages = Sram().costs(net, mp.options("w8a8"))["sram"].stages
    assert sum(value for _, _, value in stages[2]) == 5 + 1 + 30


def conv(
    name: str, cin: int, cout: int, side: int, stride: int = 1, *, depthwise: bool = False
) -> mp.Layer:
    groups = cin if depthwise else 1
    out = side // stride
    shape = (cout, cin // groups, 3, 3)
    window = Window((3, 3), (stride,) * 2, (1, 1), (1, 1), groups, (side,) * 2, (out,) * 2)
    macs = math.prod(shape) * out * out
    role = "depthwise" if depthwise else "conv"
    return mp.Layer(
        name,
        math.prod(shape),
        macs,
        "conv2d",
        role,
        (shape,),
        cin * side**2,
        cout * out**2,
        window=window,
    )


def linked(*layers: mp.Layer) -> mp.Network:
    return mp.Network(layers, tuple((a.name, b.name) for a, b in itertools.pairwise(layers)))


def test_a_depthwise_layer_in_place_needs_one_channel_more() -> None:
    net = linked(conv("dw", 16, 16, 8, depthwise=True))
    apart, over = (
        Sram(in_place=flag).costs(net, mp.options("w8a8"))["sram"].total([0])
        for flag in (False, True)
    )
    assert (apart, over) == (2 * 16 * 64, 16 * 64 + 64)


@pytest.mark.parametrize(
    ("scratch", "more"), [("none", 0), ("dsp", 2 * 28 * 2), ("mve", 4 * 2 * 16)]
)
def test_kernels_take_cmsis_nn_s_scratch(scratch: str, more: int) -> None:
    """A 3 x 3 convolution of 3 channels: 27 numbers, rounded up to 28 or to 32."""
    net = linked(conv("first", 3, 4, 8))
    found = Sram(scratch=scratch).costs(net, mp.options("w8a8"))["sram"].total([0])  # type: ignore[arg-type]
    assert found == 3 * 64 + 4 * 64 + more


def test_patches_grow_backwards_through_the_chain() -> None:
    net = linked(conv("a", 3, 8, 32), conv("b", 8, 8, 32, 2), conv("c", 8, 8, 16))
    assert patch_sides(net, 3, 2) == [(23, 23), (21, 21), (10, 10), (8, 8)]
    macs = [layer.macs for layer in net.layers]
    areas = [4 * 21 * 21 / 32**2, 4 * 10 * 10 / 16**2, 4 * 8 * 8 / 16**2]
    expected = sum(m * a for m, a in zip(macs, areas, strict=True)) / sum(macs)
    assert patch_overhead(net, 3, 2) == pytest.approx(expected)
    assert patch_overhead(net, 3, 1) == 1


def test_patched_stages_hold_patches_and_the_output_that_fills_up() -> None:
    net = linked(conv("a", 3, 8, 32), conv("b", 8, 8, 32, 2), conv("c", 8, 8, 16))
    stages = Sram(patched=2, patches=2).costs(net, mp.options("w8a8"))["sram"].stages
    totals = [sum(value for _, _, value in stage) for stage in stages]
    assert patch_sides(net, 2, 2) == [(19, 19), (17, 17), (8, 8)]
    whole = 8 * 16 * 16
    assert totals == [
        3 * 19 * 19 + 8 * 17 * 17 + whole,
        8 * 17 * 17 + 8 * 8 * 8 + whole,
        whole + whole,
    ]


def test_a_peak_is_a_budget_like_any_other() -> None:
    net = chain([30, 80, 50, 70, 10])
    sram = Sram().costs(net, OPTIONS)["sram"]
    loss = mp.Table(net.layers, OPTIONS, np.array([[3.0, 1], [9, 2], [4, 3], [5, 1]]), "loss")
    every = list(itertools.product(range(2), repeat=4))
    for limit in (70, 90, 110, 130):
        fits = [loss.total(c) for c in every if sram.total(c) <= limit]
        if fits:
            best = mp.solve(loss, {sram: limit})
            assert best.loss == min(fits)
            assert "stages" in best.provenance["why"]
        else:
            with pytest.raises(mp.Infeasible):
                mp.solve(loss, {sram: limit})


def test_ten_thousand_layers_are_counted_at_once() -> None:
    table = Sram().costs(chain([4] * 10_001), mp.options(*(f"w4a{b}" for b in range(1, 9))))["sram"]
    assert table.total([7] * 10_000) == 8


def test_what_cannot_be_patched_or_counted_is_refused() -> None:
    net = linked(conv("a", 3, 8, 32), conv("b", 8, 8, 32))
    apart = mp.Network(net.layers)
    with pytest.raises(
        ValueError, match="layers 'a' and 'b' are no chain; patch only the layers be"
    ):
        Sram(patched=2, patches=2).costs(apart, OPTIONS)
    with pytest.raises(
        ValueError, match="layer 'fc' is no convolution that was traced; patch only"
    ):
        Sram(patched=1, patches=2).costs(mp.Network((mp.Layer("fc", shapes=((4, 4),)),)), OPTIONS)
    with pytest.raises(ValueError, match="no scratch is named 'neon'; there are none, dsp and mve"):
        Sram(scratch="neon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patched is 1 and patches 0; wanted at least 0 and 1"):
        Sram(patched=1, patches=0)
    flat = mp.Network((mp.Layer("c", kind="conv2d"),))
    with pytest.raises(ValueError, match="layer 'c' has no weight shape; trace the model"):
        Sram(scratch="dsp").costs(flat, OPTIONS)


def test_the_peak_is_what_a_literal_run_of_any_graph_holds() -> None:
    """Random graphs of additions-free layers: tensors live from their writer to their last reader."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(2, 7))
        outputs = rng.integers(1, 50, count)
        reads = [sorted(rng.choice(i, 1).tolist()) if i else [] for i in range(count)]
        inputs = [int(outputs[r[0]]) if r else 7 for r in reads]
        layers = tuple(
            mp.Layer(f"l{i}", inputs=inputs[i], outputs=int(outputs[i])) for i in range(count)
        )
        edges = tuple((f"l{source}", f"l{i}") for i, r in enumerate(reads) for source in r)
        last = {i: max((j for j, r in enumerate(reads) if i in r), default=i) for i in range(count)}
        peak = 0
        for now in range(count):
            alive = {i for i in range(now + 1) if last[i] >= now}
            peak = max(peak, sum(int(outputs[i]) for i in alive) + (0 if reads[now] else 7))
        found = Sram().costs(mp.Network(layers, edges), mp.options("w8a8"))["sram"]
        assert found.total([0] * count) == peak
