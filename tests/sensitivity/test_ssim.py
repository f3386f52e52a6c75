"""SSIM against its formula written out window by window, closed forms, and what it refuses."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from mpsearch.sensitivity.ssim import SSIM
from mpsearch.tables import Floats


def _images(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    seeded = torch.Generator().manual_seed(seed)
    t = torch.rand(*shape, generator=seeded)
    return t, t + 0.3 * torch.randn(*shape, generator=seeded)


def _literal(t: Floats, q: Floats, made: SSIM, data_range: float) -> float:
    """1 - SSIM of two images of one channel, one window after another."""
    c1, c2 = (made.k1 * data_range) ** 2, (made.k2 * data_range) ** 2
    found = []
    for i, j in itertools.product(*(range(side - made.window + 1) for side in t.shape)):
        x, y = (each[i : i + made.window, j : j + made.window].ravel() for each in (t, q))
        (sxx, sxy), (_, syy) = np.cov(x, y)
        above = (2 * x.mean() * y.mean() + c1) * (2 * sxy + c2)
        found.append(above / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (sxx + syy + c2)))
    return 1 - float(np.mean(found))


@pytest.mark.parametrize(
    "made", [SSIM(), SSIM(window=3, k1=0.2, k2=0.1), SSIM(window=9, data_range=2.0)]
)
def test_is_the_mean_over_windows_and_channels_written_out(made: SSIM) -> None:
    t, q = _images(2, 3, 12, 10)
    found = made.dissimilarity([t], [q])
    spread = made.data_range or float(t.max() - t.min())
    each = [
        [
            _literal(a.double().numpy(), b.double().numpy(), made, spread)
            for a, b in zip(*pair, strict=True)
        ]
        for pair in zip(t, q, strict=True)
    ]
    np.testing.assert_allclose(found, np.mean(each, axis=1), rtol=1e-10)


@pytest.mark.parametrize("window", [3, 7, 11])
def test_is_what_filters_over_the_image_without_its_border_give(window: int) -> None:
    t, q = (x[0, 0].double().numpy() for x in _images(1, 1, 31, 24, seed=1))
    n = window**2
    ux, uy, uxx, uyy, uxy = (uniform_filter(each, window) for each in (t, q, t * t, q * q, t * q))
    vx, vy, vxy = (n / (n - 1) * v for v in (uxx - ux * ux, uyy - uy * uy, uxy - ux * uy))
    c1, c2 = 0.01**2, 0.03**2
    whole = ((2 * ux * uy + c1) * (2 * vxy + c2)) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    edge = (window - 1) // 2
    wanted = 1 - whole[edge:-edge, edge:-edge].mean()
    made = SSIM(window=window, data_range=1.0)
    found = made.dissimilarity([torch.tensor(t)[None, None]], [torch.tensor(q)[None, None]])
    assert float(found) == pytest.approx(wanted, rel=1e-10)


def test_flat_images_differ_by_their_level_and_opposite_ones_by_more_than_one() -> None:
    made = SSIM(data_range=1.0)
    a, b = torch.full((1, 1, 8, 8), 0.25), torch.full((1, 1, 8, 8), 0.75)
    wanted = 1 - (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert float(made.dissimilarity([a], [b])) == pytest.approx(wanted, rel=1e-12)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert 1 < float(made.dissimilarity([5 + stripes], [5 - stripes])) < 2


def test_the_same_images_differ_by_exactly_nothing() -> None:
    t, _ = _images(3, 2, 9, 9)
    for x in (t, t.half(), 1e4 + t):
        assert not SSIM().dissimilarity([x], [x]).any()


def test_is_of_each_sample_whatever_the_batches_with_one_range_for_all() -> None:
    t, q = _images(5, 2, 9, 8)
    whole = SSIM().dissimilarity([t], [q])
    apart = SSIM().dissimilarity(t.split(2), q.split(2))
    assert whole.shape == (5,)
    assert torch.equal(whole, apart)
    alone = SSIM().dissimilarity([t[:2]], [q[:2]])
    assert not torch.equal(whole[:2], alone)  # its range is another


def test_axes_between_samples_and_images_are_channels() -> None:
    t, q = _images(2, 6, 9, 8)
    video = [x.reshape(2, 2, 3, 9, 8) for x in (t, q)]
    assert torch.equal(SSIM().dissimilarity([t], [q]), SSIM().dissimilarity(video[:1], video[1:]))


def test_scaling_images_and_range_together_changes_nothing() -> None:
    t, q = (x.double() for x in _images(2, 1, 9, 9))
    one, other = SSIM().dissimilarity([t], [q]), SSIM().dissimilarity([256 * t], [256 * q])
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_a_window_of_nearly_the_whole_image_is_taken() -> None:
    t, q = _images(1, 1, 512, 512)
    made = SSIM(window=511, data_range=1.0)  # MixDQ's: four windows
    wanted = _literal(t[0, 0].double().numpy(), q[0, 0].double().numpy(), made, 1.0)
    assert float(made.dissimilarity([t], [q])) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 8}, "window is 8; wanted an odd number from 3 up"),
        ({"window": 1}, "window is 1; wanted"),
        ({"k1": 0.0}, "k1 is 0.0; wanted a positive number"),
        ({"k2": float("nan")}, "k2 is nan; wanted"),
        ({"data_range": -1.0}, "data_range is -1.0; wanted"),
        ({"data_range": float("inf")}, "data_range is inf; wanted"),
    ],
)
def test_settings_it_cannot_work_with_are_errors(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSIM(**settings)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4, 10), r"the output has shape \(4, 10\); SSIM compares images .* 'sqnr'"),
        (torch.rand(1, 1, 9, 5), "window is 7 and the output images have 9 x 5 pixels; give a"),
        (torch.ones(2, 1, 9, 9), "every pixel of the float output is 1.0, so it has no range"),
    ],
)
def test_outputs_that_are_no_images_are_errors(image: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSIM().dissimilarity([image], [image])
