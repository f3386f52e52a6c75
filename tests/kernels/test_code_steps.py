"""Steps on codes beside what they mean, in float64: at most what lies on a tie differs."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.kernels.code_steps import Output, Sum
from mpsearch.kernels.onednn import Conv2d, Fused, Integers, OneDnn
from mpsearch.quant.activations import Grid
from tests.kernels.networks import at, layer, seen

GRIDS = [Grid(0.03, 0, 0, 255), Grid(0.05, 97, 0, 255), Grid(0.2, 128, 1, 255), Grid(0.4, 7, 0, 15)]
CLAMPS = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-0.31, 0.42)]
OUTPUTS = [Output(grid).clamped(*ends) for grid in (None, *GRIDS) for ends in CLAMPS]


def literally(values: Tensor, out: Output) -> Tensor:
    """What an output means, in float64; of codes, what is still to be rounded."""
    clamped = values.double().clamp(out.least, out.most)
    if out.grid is None:
        return clamped
    return (clamped / out.grid.scale + out.grid.zero).clamp(out.grid.low, out.grid.high)


def meant(codes: Tensor, grid: Grid | None) -> Tensor:
    return codes.double() if grid is None else (codes.double() - grid.zero) * grid.scale


def agree(found: Tensor, wanted: Tensor, out: Output) -> None:
    """Floats up to their precision; codes to the nearest, on either side of a tie."""
    if out.grid is None:
        peak = float(wanted.abs().max())
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * peak)
        return
    assert found.dtype is torch.uint8
    if found.numel():
        assert float((found.double() - wanted).abs().max()) <= 0.5 + 1e-4


def codes_of(grid: Grid | None, shape: tuple[int, ...]) -> Tensor:
    if grid is None:
        return torch.randn(shape)
    return torch.randint(grid.low, grid.high + 1, shape, dtype=torch.uint8)


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("grids", [(None,), GRIDS[:1], GRIDS[1:3], (None, GRIDS[3])])
def test_a_sum_is_rounded_once(grids: tuple[Grid | None, ...], out: Output) -> None:
    torch.manual_seed(0)
    tensors = [codes_of(grid, (3, 5, 7, 9)) for grid in grids]
    before = copy.deepcopy(tensors)
    found = Sum(grids, out)(*tensors)
    exact = sum((meant(x, g) for x, g in zip(tensors, grids, strict=True)), torch.tensor(0.0))
    agree(found, literally(exact, out), out)
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_that_are_written_again_are_the_same(grid: Grid) -> None:
    codes = codes_of(grid, (40, 50))
    assert torch.equal(Sum([None], Output(grid))(Sum([grid], Output())(codes)), codes)


def kernels(option: str) -> list[tuple[Integers, Tensor]]:
    """The kernels of every operator, and codes that they read."""
    _, model, x = at(option)
    found = []
    for name, (read, _) in seen(model, x).items():
        made = OneDnn().kernel(layer(name), mp.Option.parse(option), model.get_submodule(name))
        assert made is not None
        found.append((made, made.codes(read)))
    return found


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("option", ["w8a8", "w3a4", "int8t/int4s"])
def test_a_layer_writes_codes_itself(option: str, out: Output) -> None:
    for kernel, codes in kernels(option):
        with torch.no_grad():
            found = Fused(kernel, out)(codes)
        agree(found, literally(kernel.reference(codes), out), out)


@pytest.mark.parametrize("out", OUTPUTS[len(CLAMPS) :])
@pytest.mark.parametrize("of", GRIDS)
def test_a_layer_adds_a_branch_before_it_rounds(of: Grid, out: Output) -> None:
    for kernel, codes in kernels("w8a8"):
        if not isinstance(kernel, Conv2d):
            continue
        other = codes_of(of, tuple(kernel.product(codes).shape))
        other = other.contiguous(memory_format=torch.channels_last)  # as it is written over
        kept, step = other.clone(), Fused(kernel, out, of)
        wanted = literally(kernel.reference(codes) + meant(other, of), out)
        agree(step(codes, other), wanted, out)
        assert torch.equal(other, kept)
        step.over = True
        agree(step(codes, other), wanted, out)


def test_only_codes_are_written_over_codes() -> None:
    kernel, codes = kernels("w8a8")[0]
    assert isinstance(kernel, Conv2d)
    with pytest.raises(ValueError, match="a sum is written over codes; give the grid of its own"):
        kernel.added(codes, codes, GRIDS[0], Output())


@pytest.mark.parametrize("option", ["w8a8", "w2a8", "int4t/int8s"])
def test_a_norm_behind_a_layer_is_part_of_its_scales(option: str) -> None:
    for kernel, codes in kernels(option):
        rows = len(kernel.scale)
        gain, shift = torch.randn(rows).double(), torch.randn(rows).double()
        gain[0] = 0
        axes = (-1, 1, 1) if isinstance(kernel, Conv2d) else (-1,)
        wanted = kernel.reference(codes) * gain.reshape(axes) + shift.reshape(axes)
        before = kernel.product(codes)
        made = kernel.behind(gain.numpy(), shift.numpy())
        assert float((made.reference(codes) - wanted).abs().max()) < 1e-6 * float(
            wanted.abs().max()
        )
        agree(made.product(codes), wanted, Output())
        assert torch.equal(kernel.product(codes), before)
        alike = kernel.behind(np.float64(2.0), np.float64(0.5)).product(codes)
        agree(alike, kernel.reference(codes) * 2 + 0.5, Output())


def test_nothing_is_written_as_codes_too() -> None:
    out = Output(GRIDS[0])
    for kernel, codes in kernels("w8a8"):
        found = Fused(kernel, out)(codes[:0])
        assert found.dtype is torch.uint8
        assert found.shape == kernel.reference(codes[:0]).shape


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (Output(), (1.0, 0, torch.float32, "none", [], "")),
        (Output(least=0), (1.0, 0, torch.float32, "relu", [], "")),
        (Output(GRIDS[0], least=0), (0.03, 0, torch.uint8, "none", [], "")),
        (Output(GRIDS[3], most=2), (0.4, 7, torch.uint8, "hardtanh", [-3.402823466e38, 2.0], "")),
    ],
)
def test_a_clamp_that_codes_make_anyway_is_left_out(out: Output, said: Any) -> None:
    assert out.words[:4] == said[:4]
    assert out.words[4] == pytest.approx(said[4])


def test_a_step_says_what_it_runs() -> None:
    kernel, _ = kernels("w4a4")[0]
    assert isinstance(kernel, nn.Module)
    said = [Fused(kernel, Output(grid), of).runs_as for grid in (None, GRIDS[0]) for of in (None,)]
    assert said == ["int8/int8", "int8/int8 to codes"]
    assert Fused(kernel, Output(GRIDS[0]), GRIDS[1]).runs_as == "int8/int8 + codes to codes"
