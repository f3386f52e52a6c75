"""Columns against the divergence's own Hessian, traces against the whole Hessian's blocks."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

from mpsearch.batches import divergence
from mpsearch.quant.attention import explicit
from mpsearch.sensitivity.gauss_newton import GaussNewton, columns, run, separable
from mpsearch.tracing import module_weight
from tests.quant.networks import mixed, tied
from tests.sensitivity.networks import curved, kinked, network_of, traces_of

OUTPUTS: dict[str, Callable[[], Tensor]] = {
    "logits": lambda: torch.randn(3, 4),
    "sure logits": lambda: torch.tensor([[40.0, 0.0, -5.0], [0.0, 0.0, 30.0]]),
    "tokens": lambda: torch.randn(2, 3, 4),
    "an image": lambda: torch.randn(2, 3, 2, 2),
    "one number": lambda: torch.randn(3),
}


def _random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _wanted(output: Tensor) -> Tensor:
    """(N, D, D) Hessian of each sample's divergence from the output, at the output."""
    count = len(output)

    def each(sample: Tensor, number: int) -> Tensor:
        shaped = sample.reshape(output[number : number + 1].shape)
        return divergence(output[number : number + 1], shaped).sum()

    found = [hessian(partial(each, number=n), output[n].flatten()) for n in range(count)]
    return torch.stack([torch.as_tensor(one) for one in found])


def _gram(output: Tensor, groups: int | None, seed: int = 0) -> Tensor:
    s = torch.stack([*columns(output, len(output), groups, _random(seed))])
    flat = s.reshape(len(s), len(output), -1)
    return torch.einsum("cni,cnj->nij", flat, flat)


@pytest.mark.parametrize("name", OUTPUTS)
def test_columns_make_the_hessian_of_the_divergence(name: str) -> None:
    torch.manual_seed(0)
    output = OUTPUTS[name]().double()
    torch.testing.assert_close(_gram(output, None), _wanted(output), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OUTPUTS)
def test_as_many_groups_as_columns_are_exact(name: str) -> None:
    torch.manual_seed(0)
    output = OUTPUTS[name]().double()
    size = output[0].numel()
    torch.testing.assert_close(_gram(output, size), _gram(output, None), rtol=1e-12, atol=0)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("name", ["logits", "tokens", "an image"])
def test_fewer_groups_are_right_on_average(name: str, groups: int) -> None:
    torch.manual_seed(0)
    output = OUTPUTS[name]().double()
    drawn = torch.stack([_gram(output, groups, seed) for seed in range(2000)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert len([*columns(output, len(output), groups, _random())]) == groups
    assert ((drawn.mean(0) - _wanted(output)).abs() <= 5 * error + 1e-12).all()


def test_the_likeliest_classes_are_in_different_groups() -> None:
    output = torch.full((2, 50), -20.0, dtype=torch.float64)
    output[0, [3, 5, 9]] = output[1, [4, 6, 2]] = torch.tensor([1.0, 2.0, 0.0]).double()
    wanted = _gram(output, None)
    for groups, good in ((3, True), (2, False)):
        error = (_gram(output, groups) - wanted).norm() / wanted.norm()
        assert bool(error < 0.01) is good


def test_samples_with_several_rows_take_their_mean() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 4, dtype=torch.float64)  # two samples of three tokens
    apart = torch.stack([*columns(rows, 2, None, _random())])
    together = torch.stack([*columns(rows.reshape(2, 3, 4), 2, None, _random())])
    one, other = (torch.einsum("ci,cj->ij", s.flatten(1), s.flatten(1)) for s in (apart, together))
    torch.testing.assert_close(one, other)


def _weights(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.dim() > 1]


@pytest.mark.parametrize("make", [curved, kinked])
@pytest.mark.parametrize("together", [True, False])
def test_traces_are_those_of_the_whole_hessian(
    make: Callable[[], tuple[nn.Module, Tensor]], together: bool
) -> None:
    model, x = make()
    network = network_of(model, x)
    reference = model(x).detach()
    wanted = traces_of(model, network, lambda out: divergence(reference, out).mean(), x)
    weights = [module_weight(model, layer.name) for layer in network.layers]
    assert separable(model, x, weights)
    found = GaussNewton(model, weights, together=together).traces(x, _random())
    assert found.shape == (len(x), len(weights))
    torch.testing.assert_close(found.mean(0).tolist(), wanted, rtol=1e-9, atol=1e-12)


def test_traces_in_single_precision_are_good_to_five_digits() -> None:
    model, x = kinked()
    weights = _weights(model)
    wanted = GaussNewton(model, weights).traces(x, _random()).mean(0)
    model = model.float()
    found = GaussNewton(model, _weights(model)).traces(x.float(), _random()).mean(0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("make", [mixed, tied])
def test_all_samples_at_once_is_each_alone(
    make: Callable[[], tuple[nn.Module, list[Tensor], list[str]]],
) -> None:
    model, (x, *_), _ = make()
    model = explicit(model).double()
    x = x.double() if x.is_floating_point() else x
    assert separable(model, x, _weights(model))
    once, apart = (
        GaussNewton(model, _weights(model), together=flag).traces(x, _random())
        for flag in (True, False)
    )
    torch.testing.assert_close(once, apart, rtol=1e-9, atol=1e-15)


class _TimeFirst(nn.Module):
    """Its layer reads (time, samples, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.tanh(self.inner(x.transpose(0, 1))).transpose(0, 1)
        out: Tensor = self.head(inner.mean(1))
        return out


class _Coupled(nn.Module):
    """Each sample sees the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x - x.mean(0) / 2)
        return out


class _Written(nn.Linear):
    """A product that is no call this knows."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        return input @ self.weight.t()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (_TimeFirst(), (2, 2, 4)),
        (_TimeFirst(), (2, 3, 4)),
        (_Coupled(), (2, 4)),
        (_Written(4, 3), (2, 4)),
    ],
)
def test_sees_where_samples_cannot_go_together(model: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    assert not separable(model, x, _weights(model))


def test_one_sample_goes_alone() -> None:
    assert not separable(nn.Linear(4, 3), torch.randn(1, 4), [])


def test_a_weight_the_output_does_not_depend_on_has_trace_zero() -> None:
    class Aside(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.aside = nn.Linear(4, 3)

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            self.aside(input)
            return super().forward(input)

    model, x = Aside(), torch.randn(2, 4)
    for together in (True, False):
        found = GaussNewton(model, _weights(model), together=together).traces(x, _random())
        assert (found[:, 0] > 0).all()
        assert (found[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda z: z / 0, "holds NaN or infinity"),
        (lambda z: z.detach(), "has no gradient in any layer's weight"),
        (lambda z: z.sum(), "has shape .. for 2 samples; wanted the samples along its first axis"),
        (lambda z: z[:1].expand(3, 3), r"has shape \(3, 3\) for 2 samples"),
    ],
)
def test_an_output_without_a_hessian_is_an_error(
    forward: Callable[[Tensor], Tensor], message: str
) -> None:
    class Ending(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            return forward(super().forward(input))

    model = Ending(4, 3)
    with pytest.raises(ValueError, match=message):
        run(model, torch.randn(2, 4), [model.weight])
