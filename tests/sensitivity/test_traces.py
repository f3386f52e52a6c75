"""Which way each loss and network goes, and that every way gives the Hessian's trace."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.batches import divergence
from mpsearch.sensitivity.traces import Method, Traces
from mpsearch.sweep import Sweep
from mpsearch.task import Task
from tests.quant.networks import tied
from tests.sensitivity.networks import curved, kinked, network_of, traces_of

LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
Made = tuple[nn.Module, Tensor]


def _labelled(output: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(output, LABELS[: len(output)])


def _squared(output: Tensor, batch: Any) -> Tensor:
    return (output - 1).square().mean()


def _traces(made: Made, loss: Callable[[Any, Any], Any] | None = None) -> Traces:
    model, x = made
    return Traces.of(Task(model, [x], loss=loss), network_of(model, x))


@pytest.mark.parametrize(
    ("make", "loss", "method"),
    [
        (curved, None, "exact"),
        (kinked, None, "exact"),
        (kinked, _labelled, "exact"),
        (curved, _labelled, "hutchinson"),
        (kinked, _squared, "hutchinson"),
    ],
)
def test_takes_the_first_method_that_applies(
    make: Callable[[], Made], loss: Callable[[Any, Any], Any] | None, method: Method
) -> None:
    assert _traces(make(), loss).method("auto", 3) == method


def test_samples_where_an_output_has_more_elements_than_probes() -> None:
    traces = _traces(kinked())
    assert traces.outputs == 3
    assert traces.method("auto", 2) == "sampled"
    assert traces.method("exact", 2) == "exact"
    assert traces.method("hutchinson", 8) == "hutchinson"


@pytest.mark.parametrize(
    ("make", "loss", "message"),
    [
        (curved, _labelled, "not piecewise linear: it uses aten.gelu, aten.tanh; use 'hutchinson'"),
        (kinked, _squared, "the loss is not softmax cross-entropy, averaged over samples"),
    ],
)
def test_a_method_that_does_not_apply_is_an_error(
    make: Callable[[], Made], loss: Callable[[Any, Any], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"method 'exact' does not apply: .*{message}"):
        _traces(make(), loss).method("exact", 8)


def test_a_weight_used_twice_is_not_linear_in_itself() -> None:
    layer = nn.Linear(3, 3).double()
    made = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(6, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="a weight is used more than once; use 'hutchinson'"):
        _traces(made, _labelled).method("sampled", 8)
    assert _traces(made, _labelled).method("auto", 8) == "hutchinson"
    assert _traces(made).method("auto", 8) == "exact"


def test_every_batch_must_have_the_hessian_of_cross_entropy() -> None:
    model, x = kinked()

    def sometimes(output: Tensor, batch: Tensor) -> Tensor:
        return _squared(output, batch) if batch is batches[1] else _labelled(output, batch)

    batches = [x[:3], x[3:]]
    traces = Traces.of(Task(model, batches, loss=sometimes), network_of(model, x))
    assert traces.method("auto", 8) == "hutchinson"


def test_cross_entropy_has_the_traces_of_kl_where_the_network_is_piecewise_linear() -> None:
    model, x = kinked()
    wanted = traces_of(model, network_of(model, x), lambda out: _labelled(out, x), x)
    found = _traces((model, x), _labelled).by_sample(None, 0, Sweep()).mean(axis=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


SMALL = 60_000  # bytes, in which some of the samples can be run


@pytest.mark.parametrize("groups", [None, 2])
def test_parts_of_any_size_give_the_same(groups: int | None) -> None:
    cache: dict[str, Any] = {}
    whole = _traces(kinked()).by_sample(groups, 0, Sweep(cache=cache))
    counts = []
    for memory in (SMALL, 1):
        sweep = Sweep(cache=dict(cache), memory=memory)
        parts = _traces(kinked()).by_sample(groups, 0, sweep)
        counts.append(len(sweep.cache) - len(cache))
        np.testing.assert_allclose(parts, whole, rtol=1e-12)
    assert 1 < counts[0] < counts[1] == 6


def test_products_are_taken_of_parts_that_fit() -> None:
    cache: dict[str, Any] = {}
    model, x = curved()
    wanted = _traces((model, x)).by_product(200, 0, Sweep(cache=cache)).mean(axis=0)
    before = len(cache)
    small = Sweep(cache=cache, memory=4 * sum(p.nbytes for p in model.parameters()))
    found = _traces((model, x)).by_product(200, 0, small)
    assert len(cache) > before + 100  # no unit of another size is taken for one of these
    error = found.std(axis=0, ddof=1) / len(found) ** 0.5
    assert (abs(found.mean(axis=0) - wanted) < 4 * error + 1e-9).all()


def test_one_group_is_right_on_average_for_tokens() -> None:
    model, (x, *_), _ = tied()
    traces = Traces.of(Task(model.double(), [x]), network_of(model, x))
    wanted = traces.by_sample(None, 0, Sweep()).mean(axis=0)
    found = np.array([traces.by_sample(2, seed, Sweep()).mean(axis=0) for seed in range(60)])
    error = found.std(axis=0, ddof=1) / 60**0.5
    assert (abs(found.mean(axis=0) - wanted) < 4 * error).all()


@pytest.mark.parametrize("loss", [None, _labelled, _squared])
def test_products_agree_with_the_whole_hessian(loss: Callable[[Any, Any], Any] | None) -> None:
    model, x = curved()
    network = network_of(model, x)
    reference = model(x).detach()

    def whole(output: Tensor) -> Tensor:
        return loss(output, x) if loss else divergence(reference, output).mean()

    wanted = traces_of(model, network, whole, x)
    found = _traces((model, x), loss).by_product(200, 0, Sweep())
    assert found.shape == (100, len(network.layers))
    error = found.std(axis=0, ddof=1) / 10
    assert (abs(found.mean(axis=0) - wanted) < 4 * error + 1e-9).all()


def test_products_weigh_batches_by_their_samples() -> None:
    model, x = curved()

    def loss(output: Tensor, batch: Tensor) -> Tensor:  # a mean over samples
        return (output - batch[:, :3]).square().sum(1).mean()

    network = network_of(model, x)
    one, two = (  # so many products leave nothing to chance
        Traces.of(Task(model, batches, loss=loss), network).by_product(200, 0, Sweep())
        for batches in ([x], [x[:1], x[1:]])
    )
    np.testing.assert_allclose(one.mean(axis=0), two.mean(axis=0), rtol=1e-9)


class _Routed(nn.Module):
    """Each sample goes to one of two experts, by the sign of a number."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            chosen = (x[:, 0] > 0) == bool(number)
            if self.masked:
                out[chosen] = expert(x[chosen])
            else:
                (rows,) = torch.where(chosen)
                out = out.index_add(0, rows, expert(x.index_select(0, rows)))
        return out


@pytest.mark.parametrize("masked", [True, False])
def test_routed_samples_go_one_by_one(masked: bool) -> None:
    torch.manual_seed(0)
    model, x = _Routed(masked).double(), torch.randn(6, 4, dtype=torch.float64)
    x[:, 0] = torch.tensor([1.0, 1, -1, 1, -1, 1])  # the first two go together all the same
    network = network_of(model, x)
    reference = model(x).detach()
    wanted = traces_of(model, network, lambda out: divergence(reference, out).mean(), x)
    found = Traces.of(Task(model, [x]), network).by_sample(None, 0, Sweep())
    np.testing.assert_allclose(found.mean(axis=0), wanted, rtol=1e-9)


def test_what_was_computed_is_kept_when_it_is_stopped() -> None:
    traces = _traces(kinked())
    wanted = traces.by_sample(2, 0, Sweep())

    class Stopping(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            raise KeyboardInterrupt

    sweep = Sweep(cache=Stopping(), memory=SMALL)
    with pytest.raises(KeyboardInterrupt):
        traces.by_sample(2, 0, sweep)
    assert len(sweep.cache) == 1
    resumed = Sweep(cache=dict(sweep.cache), memory=SMALL)
    np.testing.assert_allclose(traces.by_sample(2, 0, resumed), wanted, rtol=1e-12)
    assert 1 < len(resumed.cache) < 6
