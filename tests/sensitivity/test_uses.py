"""Squared norms of each sample's weight gradient against autograd, one sample at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.sensitivity.uses import Uses, squared_norms

SAMPLES = 3


def _autograd(run: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor, s: Tensor) -> list[float]:
    """One backward pass for each sample and column."""
    norms = []
    for number in range(SAMPLES):
        each = len(x) // SAMPLES
        one = x[number * each : (number + 1) * each]
        output = run(one)
        per = s.shape[1] // SAMPLES
        total = 0.0
        for column in s[:, number * per : (number + 1) * per]:
            (g,) = torch.autograd.grad(output, weight, column, retain_graph=True)
            total += float(g.square().sum())
        norms.append(total)
    return norms


def _by_uses(run: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor, s: Tensor) -> Tensor:
    with Uses([weight]) as uses:
        output = run(x)
    found = uses.found[0]
    assert found
    edges = [use.edge for use in found]
    passes = [torch.autograd.grad(output, edges, column, retain_graph=True) for column in s]
    return squared_norms(list(zip(found, zip(*passes, strict=True), strict=True)), SAMPLES)


def _check(run: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(2, *run(x).shape, generator=generator, dtype=torch.float64)
    wanted = torch.tensor(_autograd(run, weight, x, s), dtype=torch.float64)
    torch.testing.assert_close(_by_uses(run, weight, x, s), wanted, rtol=1e-10, atol=0)


def _input(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 4), (SAMPLES, 5)),
    "linear over few tokens": (lambda: nn.Linear(5, 4), (SAMPLES, 2, 5)),
    "linear over many tokens": (lambda: nn.Linear(2, 2), (SAMPLES, 3, 7, 2)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), (SAMPLES, 2, 11)),
    "conv2d of a small image": (lambda: nn.Conv2d(4, 8, 3, padding=1), (SAMPLES, 4, 3, 3)),
    "conv2d of a large image": (lambda: nn.Conv2d(2, 3, 3, stride=2), (SAMPLES, 2, 13, 11)),
    "conv2d one by one": (lambda: nn.Conv2d(4, 3, 1, stride=2), (SAMPLES, 4, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2), (SAMPLES, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), (SAMPLES, 4, 6, 6)),
    "padded to the same size": (
        lambda: nn.Conv2d(2, 3, (4, 3), padding="same"),
        (SAMPLES, 2, 6, 5),
    ),
    "padded in a circle": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        (SAMPLES, 2, 5, 5),
    ),
    "valid": (lambda: nn.Conv1d(2, 3, 4, padding="valid"), (SAMPLES, 2, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, stride=(1, 2, 1), padding=1), (SAMPLES, 2, 3, 4, 3)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (SAMPLES, 4, 4, 3),
    ),
    "transposed and dilated": (
        lambda: nn.ConvTranspose1d(3, 2, 2, stride=2, dilation=3, output_padding=2),
        (SAMPLES, 3, 5),
    ),
    "transposed in three axes": (lambda: nn.ConvTranspose3d(2, 3, 2), (SAMPLES, 2, 2, 3, 2)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_is_what_autograd_gives_one_sample_at_a_time(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    _check(layer, weight, _input(*shape))


def test_counts_a_layer_stored_inputs_first() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    layer = transformers.Conv1D(4, 5).double()
    _check(layer, layer.weight, _input(SAMPLES, 2, 5))


def test_adds_what_two_uses_contribute_before_it_squares() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    _check(lambda x: layer(torch.tanh(layer(x))), layer.weight, _input(SAMPLES, 2, 4))


def test_adds_a_lookup_in_the_table_a_head_shares() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(7, 4).double()
    ids = torch.randint(0, 7, (SAMPLES, 5))
    run = lambda x: F.linear(torch.tanh(table(x)), table.weight)  # noqa: E731
    _check(run, table.weight, ids)


def test_a_sample_may_be_several_rows() -> None:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(2, 3, 3).double(), nn.Linear(12, 2).double()

    def run(frames: Tensor) -> Tensor:  # each sample has four frames
        out: Tensor = head(conv(frames).flatten(1))
        return out

    _check(run, conv.weight, _input(SAMPLES * 4, 2, 4, 4))


def test_an_output_that_is_changed_in_place_keeps_its_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    _check(lambda x: F.relu_(layer(x)).exp(), layer.weight, _input(SAMPLES, 4))


def test_a_weight_read_without_gradients_is_an_error() -> None:
    layer = nn.Linear(4, 4)
    with (
        pytest.raises(ValueError, match=r"under torch\.no_grad.*or use 'kl'"),
        torch.no_grad(),
        Uses([layer.weight]),
    ):
        layer(torch.zeros(1, 4))
