"""Formats mixed inside a weight: what is predicted of places is what runs."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.batches import divergence
from mpsearch.formats import Format, options
from mpsearch.network import Layer, Network
from mpsearch.places import Places, finer
from mpsearch.quant.bench import Bench
from mpsearch.quant.places import KEPT, Mixed, mixed, rounded_apart, sums
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.unfusing import unfused
from mpsearch.tracing import module_weight, output_first, trace
from tests.quant import networks
from tests.references.rounding import grouped, symmetric

PLAIN = Recipe(ranges="minmax", corrections=())
FORMATS = [Format.parse(name) for name in ("int2", "int4", "int8")]
Made = Callable[[], tuple[nn.Module, list[Tensor], list[str]]]


def _weight(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_each_row_has_its_own_format() -> None:
    weight = _weight(4, 2, 3)
    found = mixed(weight, [2, 0, KEPT, 1], FORMATS, 6, "minmax")
    rows = weight.reshape(4, 6).tolist()
    wanted = [symmetric(rows[0], 8), symmetric(rows[1], 2), rows[2], symmetric(rows[3], 4)]
    torch.testing.assert_close(found.reshape(4, 6), torch.tensor(wanted))
    assert torch.equal(found[2], weight[2])


def test_each_group_has_its_own_format_and_a_short_one_its_own_scale() -> None:
    weight = _weight(2, 7)
    choice = [0, 1, 2, KEPT, 2, 0]
    found = mixed(weight, choice, FORMATS, 3, "minmax")
    for place, number in enumerate(choice):
        row, part = divmod(place, 3)
        own = weight[row, 3 * part : 3 * part + 3].tolist()
        wanted = own if number == KEPT else symmetric(own, FORMATS[number].bits)
        torch.testing.assert_close(found[row, 3 * part : 3 * part + 3], torch.tensor(wanted))


def test_groups_of_a_format_begin_anew_in_each_place() -> None:
    weight = _weight(3, 10)
    found = rounded_apart(weight, Format.parse("int4g2"), 5, "minmax")
    wanted = [grouped(r[:5], 2, 4) + grouped(r[5:], 2, 4) for r in weight.tolist()]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_a_tensor_format_has_a_scale_for_each_place() -> None:
    weight = _weight(3, 5)
    each = rounded_apart(weight, Format.parse("int4t"), 5)
    assert torch.equal(each, rounded_apart(weight, Format.parse("int4"), 5))


def test_the_type_is_kept_and_32_bits_change_nothing() -> None:
    weight = _weight(2, 4).double()
    assert mixed(weight, [0, 1], FORMATS, 4).dtype == torch.float64
    assert torch.equal(mixed(weight, [0, 0], [Format.parse("fp32")], 4), weight)


def test_sums_are_of_places() -> None:
    values = torch.arange(14.0).reshape(2, 7)
    assert sums(values, 3).tolist() == [3, 12, 6, 24, 33, 13]


@pytest.mark.parametrize("make", [networks.mixed, networks.tied])
@pytest.mark.parametrize("recipe", [PLAIN, Recipe()])
@pytest.mark.parametrize("option", ["w4a32", "w3a8"])
def test_all_channels_of_some_layers_at_one_option_are_those_layers_at_it(
    make: Made, recipe: Recipe, option: str
) -> None:
    model, batches, _ = make()
    network, chosen = trace(model, batches[0]), options(option)
    fine = finer(network, "channel")
    assert isinstance(fine.layers, Places)
    bench = Bench(model, batches, [n for one in network.layers for n in one.modules], recipe)
    layers = [0, len(network.layers) - 1]
    choice = np.full(len(fine.layers), KEPT)
    for row in layers:
        choice[fine.layers.rows(row)] = 0
    names = [name for row in layers for name in network.layers[row].modules]
    ours = Mixed.of(model, batches, fine, recipe)
    with torch.no_grad():
        with bench.at(dict.fromkeys(names, chosen[0])) as whole:
            wanted = whole(batches[-1])
        with ours.at(choice, chosen) as places:
            assert torch.equal(places(batches[-1]), wanted)
        with ours.at(choice, chosen, layers) as places:
            assert torch.equal(places(batches[-1]), wanted)
        assert torch.equal(ours.bench.model(batches[-1]), bench.model(batches[-1]))


@pytest.mark.parametrize("group", [3, 8])
def test_the_measured_loss_is_that_of_weights_rounded_by_hand(group: int) -> None:
    model, batches, _ = networks.mixed()
    network, chosen = trace(model, batches[0]), options("w2a32", "w4a32", "w8a32")
    fine = finer(network, "group", group=group)
    assert isinstance(fine.layers, Places)
    choice = np.random.default_rng(0).integers(KEPT, 3, len(fine.layers))
    by_hand = copy.deepcopy(model)
    numbers = iter(choice)
    for layer in network.layers:
        module, weight = by_hand.get_submodule(layer.name), module_weight(by_hand, layer.name)
        first = output_first(weight.detach(), module)
        rows = first.reshape(len(first), -1).tolist()
        for row in rows:
            for start in range(0, len(row), group):
                number = next(numbers)
                if number != KEPT:
                    own = row[start : start + group]
                    row[start : start + group] = symmetric(own, (2, 4, 8)[number])
        made = torch.tensor(rows).reshape(first.shape)
        weight.data = output_first(made, module).contiguous()
    assert next(numbers, None) is None
    with torch.no_grad(), Mixed.of(model, batches, fine, PLAIN).at(choice, chosen) as places:
        found = divergence(model(batches[0]), places(batches[0]))
        wanted = divergence(model(batches[0]), by_hand(batches[0]))
    assert float(wanted.min()) > 0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_everything_is_put_back_when_the_work_inside_fails() -> None:
    model, batches, _ = networks.mixed()
    fine = finer(trace(model, batches[0]), "channel")
    ours = Mixed.of(model, batches, fine, Recipe())
    before = {k: v.clone() for k, v in ours.bench.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), ours.at([0] * len(fine.layers), options("w2a4")):
        raise KeyboardInterrupt
    after = ours.bench.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(not m._forward_pre_hooks for m in ours.bench.model.modules())


def test_places_of_a_layer_read_one_format() -> None:
    model, batches, _ = networks.mixed()
    fine = finer(trace(model, batches[0]), "channel")
    choice = [KEPT] * len(fine.layers)
    choice[:2] = [0, 1]
    ours = Mixed.of(model, batches, fine, PLAIN)
    with (
        pytest.raises(ValueError, match=r"places of layer 'stem' were given int8.* and none for"),
        ours.at(choice, options("w2a8", "w4a8")),
    ):
        pass
    with ours.at(choice, options("w2a16", "w4a32")):
        pass


def test_what_does_not_fit_is_an_error() -> None:
    model, batches, _ = networks.mixed()
    network = trace(model, batches[0])
    with pytest.raises(
        ValueError, match=r"the choice is of shape \(3,\) for 2 rows of 2 places each"
    ):
        mixed(_weight(2, 4), [0, 0, 0], FORMATS, 2)
    with pytest.raises(ValueError, match="it holds NaN or infinity"):
        mixed(torch.tensor([[torch.nan]]), [0], FORMATS, 1)
    with pytest.raises(ValueError, match="the network's layers are no channels or groups"):
        Mixed.of(model, batches, network, PLAIN)
    fine = finer(network, "channel")
    ours = Mixed.of(model, batches, fine, PLAIN)
    with pytest.raises(
        ValueError, match=r"of shape \(2,\); wanted an option for each of 43 places"
    ):
        ours.at([0, 0], options("w4a16")).__enter__()
    other = finer(Network((Layer("stem", 6, shapes=((2, 3),), members=("stem",)),)), "channel")
    with pytest.raises(ValueError, match=r"'stem' stores weights of .* the network says"):
        Mixed.of(model, batches, other, PLAIN).at([0, 0], options("w4a16")).__enter__()


class Fused(nn.Module):
    """Experts in two parameters, asked as Hugging Face's are."""

    def __init__(self, *, swapped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_up_proj = nn.Parameter(torch.randn(3, 10, 4))
        self.down_proj = nn.Parameter(torch.randn(3, 4, 5))
        self.act_fn, self.swapped = nn.SiLU(), swapped

    def forward(self, x: Tensor, index: Tensor, share: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for token, place in np.ndindex(*index.shape):
            expert = int(index[token, place])
            gate, up = F.linear(x[token], self.gate_up_proj[expert]).chunk(2)
            gate, up = (up, gate) if self.swapped else (gate, up)
            said = F.linear(self.act_fn(gate) * up, self.down_proj[expert])
            out[token] += share[token, place] * said
        return out


class Mixture(nn.Module):
    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 3), experts

    def forward(self, x: Tensor) -> Tensor:
        share, index = self.router(x).softmax(-1).topk(2)
        out: Tensor = self.experts(x, index, share)
        return out


def test_unfused_experts_are_layers_and_compute_the_same() -> None:
    model, x = Mixture(Fused()), _weight(16, 4)
    new = unfused(model)
    with torch.no_grad():
        torch.testing.assert_close(new(x), model(x))
    names = [layer.name for layer in finer(trace(new, x), "expert").layers]
    assert names == ["router", "experts.0", "experts.1", "experts.2"]
    assert isinstance(model.experts, Fused)
    assert model.experts.gate_up_proj.shape == (3, 10, 4)


def test_unfused_experts_that_no_token_asks_for_are_not_called() -> None:
    new = unfused(Mixture(Fused()))
    called: list[Any] = []
    new.get_submodule("experts.1").register_forward_hook(lambda *_: called.append(1))
    x = torch.ones(2, 4)
    experts = new.get_submodule("experts")
    experts(x, torch.tensor([[0, 2], [2, 0]]), torch.ones(2, 2))
    assert not called


def _broken(change: Callable[[Fused], Any], **settings: bool) -> nn.Module:
    experts = Fused(**settings)
    change(experts)
    return Mixture(experts)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "no module of this model has a parameter 'gate_up_proj' of three axes"),
        (_broken(lambda m: delattr(m, "act_fn")), "wanted 'gate_up_proj', 'down_proj' and 'act_fn'"),
        (
            _broken(lambda m: setattr(m, "down_proj", nn.Parameter(torch.ones(3, 5, 4)))),
            r"shapes are \(3, 10, 4\) and \(3, 5, 4\); wanted \(experts, 2 inner, width\)",
        ),
        (_broken(Fused.eval, swapped=True), "experts 'experts' .* compute something else"),
    ],
)  # fmt: skip
def test_experts_that_are_not_known_are_an_error(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unfused(model)
