"""Deviations moved back by the scales that weights are stored with."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.places import finer
from mpsearch.quant.bench import Bench
from mpsearch.quant.model import packed, quantize, quantized_like
from mpsearch.quant.places import Mixed
from mpsearch.quant.recipe import Correction, Recipe
from mpsearch.quant.spreading import ratio
from mpsearch.sensitivity.noise import Noise
from mpsearch.sweep import Sweep
from mpsearch.task import Task
from mpsearch.tracing import module_weight, trace
from tests.quant.networks import mixed, tied

LOW = Option.parse("w2a32")
SPREAD = Recipe(corrections=("spread",))
LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 4), (5, 7, 6)),
    (nn.Linear(6, 4, bias=False), (30, 6)),
    (nn.Conv2d(3, 5, 2), (8, 3, 5, 5)),
    (nn.Conv2d(6, 6, 3, padding=1, groups=6), (8, 6, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 2, groups=2), (8, 4, 5, 5)),
]
SCALED = ("w2a32", "w4a4", "int3a/fp32", "int3g2/fp32")


def _filled(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) + 0.5


def _random(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module.eval()


def _moments(x: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    axis = -1 if isinstance(module, nn.Linear) else 1
    rows = x.movedim(axis, 0).flatten(1).double()
    return rows.mean(1), rows.std(1, correction=0)


@pytest.mark.parametrize("option", SCALED)
@pytest.mark.parametrize(("module", "shape"), LAYERS)
def test_an_output_keeps_its_float_mean_and_deviation(
    module: nn.Module, shape: tuple[int, ...], option: str
) -> None:
    model, x = nn.Sequential(_random(module)), _filled(*shape)
    bench = Bench(model, [x], ["0"], SPREAD)
    with torch.no_grad(), bench.at({"0": Option.parse(option)}) as changed:
        wanted, got = (_moments(network(x), module) for network in (model, changed))
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[1], wanted[1], rtol=2**-11 + 1e-6, atol=0)  # as scales round
    bench = Bench(model, [x], ["0"], Recipe(corrections=("bias",)))
    with torch.no_grad(), bench.at({"0": Option.parse(option)}) as one:
        other = _moments(one(x), module)[1]
    assert float((other / wanted[1] - 1).abs().max()) > 0.01


@pytest.mark.parametrize("option", SCALED)
@pytest.mark.parametrize(("module", "shape"), LAYERS)
def test_by_default_convolutions_keep_both_and_linear_layers_their_mean(
    module: nn.Module, shape: tuple[int, ...], option: str
) -> None:
    model, x = nn.Sequential(_random(module)), _filled(*shape)
    like = Recipe(corrections=("bias",)) if isinstance(module, nn.Linear) else SPREAD
    with torch.no_grad():
        found, wanted = (
            quantize(model, {"0": option}, [x], recipe)(x) for recipe in (Recipe(), like)
        )
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_convolution_that_a_batch_norm_reads_is_left_to_the_norm() -> None:
    convolution = _random(nn.Conv2d(3, 4, 3))
    model, x = nn.Sequential(convolution, nn.BatchNorm2d(4)).eval(), _filled(8, 3, 7, 7)
    plain = quantize(model, {"0": LOW}, [x], Recipe(corrections=())).get_submodule("0")
    for recipe in (Recipe(), Recipe(corrections=("moments", "spread"))):
        found = quantize(model, {"0": LOW}, [x], recipe)
        torch.testing.assert_close(found.get_submodule("0")(x), plain(x), rtol=0, atol=0)
        assert not torch.equal(found(x), plain(x))


def test_each_layer_s_scales_and_bias_follow_those_before_it() -> None:
    model = nn.Sequential(_random(nn.Linear(6, 5)), nn.ReLU(), _random(nn.Linear(5, 4)))
    x, names = _filled(40, 6), ["0", "2"]
    bench = Bench(model, [x], names, SPREAD)
    with bench.at(dict.fromkeys(names, LOW)) as changed:
        found = {name: value.clone() for name, value in changed.state_dict().items()}
    real, now = x, x
    for name in names:
        weight, bias = (model.get_parameter(f"{name}.{part}") for part in ("weight", "bias"))
        codes = bench.codes(name, LOW.weight)
        assert codes.scale is not None
        wanted, got = real @ weight.T + bias, now @ codes.dequantize().T + bias
        gain = (wanted.std(0) / got.std(0)).clamp(0.25, 4)
        rows = codes.codes.float() * (codes.scale.float() * gain).half().float()[:, None]
        error = wanted.mean(0) - (now @ rows.T + bias).mean(0)
        assert torch.equal(found[f"{name}.weight"], rows)
        torch.testing.assert_close(found[f"{name}.bias"], bias + error, rtol=1e-6, atol=1e-6)
        real, now = wanted.relu(), (now @ rows.T + bias + error).relu()


@pytest.mark.parametrize(
    ("other", "dtype"),
    [
        *((other, torch.float32) for other in ("spread", "moments", "bias", "batchnorm")),
        ("moments", torch.bfloat16),
        ("moments", torch.float64),
    ],
)
@pytest.mark.parametrize("make", [mixed, tied])
def test_the_network_returned_has_the_scales_that_were_measured(
    make: Any, other: Correction, dtype: torch.dtype
) -> None:
    model, batches, names = make()
    if make is mixed:
        batches = [batch.to(dtype) for batch in batches]
    model = model.to(dtype)
    options = {n: Option.parse(SCALED[i % 4]) for i, n in enumerate(names)}
    if make is tied:
        options |= dict.fromkeys(("embed", "head"), Option.parse("w3a32"))
    recipe = Recipe(corrections=tuple({other, "spread"}))
    bench = Bench(model, batches, names, recipe)
    new = quantize(model, options, batches, recipe)
    restored = quantized_like(model, options)
    restored.load_state_dict(new.state_dict())
    trained = quantize(model, options, batches, recipe, trainable=True)
    output, corrected = bench.corrected(options)
    replay = bench.remembered(batches[0])
    with torch.no_grad(), bench.at(options) as lent:
        wanted, all_of = lent(batches[0]), lent(bench.batch)
        weights = {n: module_weight(lent, n).clone() for n in names}
    assert torch.equal(output, all_of)
    assert torch.equal(bench.returned(options, corrected, replay), wanted)
    for each in (new, restored, trained, packed(trained)):
        assert torch.equal(each(batches[0]), wanted)
        for name in names:
            layer = each.get_submodule(name)
            assert torch.equal(cast("Tensor", layer.weight), weights[name])


class Shared(nn.Module):
    """One weight in two layers, a layer called twice, and one that a batch norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.twice = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.read, self.norm, self.free = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.two(self.one(x).tanh()).tanh()))
        out: Tensor = self.free(self.norm(self.read(x)))
        return out


@pytest.mark.parametrize("mean", ["bias", "moments"])
def test_scales_of_shared_weights_and_below_batch_norms_stay(mean: Correction) -> None:
    model, x = _random(Shared()), _filled(20, 6)
    names = ["one", "two", "twice", "read", "free"]
    options = dict.fromkeys(names, LOW)
    found, recipes = [], [Recipe(corrections=(mean,)), Recipe(corrections=(mean, "spread"))]
    for recipe in recipes:
        with Bench(model, [x], names, recipe).at(options) as changed:
            found.append({name: value.clone() for name, value in changed.state_dict().items()})
    assert {n for n in found[0] if not torch.equal(found[0][n], found[1][n])} == {
        "free.weight",
        "free.bias",
    }


@pytest.mark.parametrize("option", ["int3t/fp32", "nf4/fp32", "int3o5/fp32", "w16a4", "w32a4"])
def test_where_outputs_have_no_scale_of_their_own_only_means_are_kept(option: str) -> None:
    model, x = nn.Sequential(_random(nn.Linear(6, 4))), _filled(40, 6)
    found = []
    for recipe in (Recipe(), SPREAD):
        with Bench(model, [x], ["0"], recipe).at({"0": Option.parse(option)}) as changed:
            found.append({name: value.clone() for name, value in changed.state_dict().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[1]["0.bias"], model.get_parameter("0.bias"))


def test_constant_channels_keep_their_scales() -> None:
    layer, x = _random(nn.Linear(6, 5)), _filled(40, 6)
    x[:, 5] = 3
    with torch.no_grad():
        layer.get_parameter("weight")[0] = 0
        layer.get_parameter("weight")[1] = torch.tensor([0, 0, 0, 0, 0, 0.7])
        layer.get_parameter("weight")[2] = torch.tensor([0.1, 0.1, 0, 0, 0, 7])
        layer.get_parameter("weight")[3] = torch.tensor([1e-4, 0, 0, 0, 0, 100])
        layer.get_parameter("weight")[4] = torch.tensor([0.51, 0, 0, 0, 0, 1])
    recipe = Recipe(ranges="minmax", corrections=("spread",))
    bench = Bench(nn.Sequential(layer), [x], ["0"], recipe)
    with bench.stored({"0": LOW}) as codes:
        moved = codes["0"].steps
    before = bench.codes("0", LOW.weight).steps
    assert torch.equal(moved[:4], before[:4])
    assert float(moved[4] / before[4]) == pytest.approx(0.51, rel=1e-3)


def test_ratios_are_clamped() -> None:
    one = torch.ones(4, dtype=torch.float64)
    got = torch.tensor([1e-3, 0.5, 100, 0], dtype=torch.float64)
    assert ratio(one, got, 0 * one).tolist() == [4, 2, 0.25, 1]
    assert ratio(one * 1e-7, one, one).tolist() == [1, 1, 1, 1]
    assert ratio(one * torch.nan, one, one).tolist() == [1, 1, 1, 1]


def test_moved_scales_are_undone_when_a_run_breaks_off() -> None:
    model, batches, names = mixed()
    bench = Bench(model, batches, names, Recipe(corrections=("moments", "spread")))
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    options = dict.fromkeys(names, LOW)

    def same() -> bool:
        after = bench.model.state_dict()
        return after.keys() == before.keys() and all(
            torch.equal(after[name], before[name]) for name in before
        )

    steps = {name: bench.codes(name, LOW.weight).steps.clone() for name in names}
    with pytest.raises(KeyboardInterrupt), bench.at(options):
        raise KeyboardInterrupt
    assert same()
    bench.outputs(options)
    stop = bench.model.get_submodule("odd").register_forward_hook(_stop)
    with pytest.raises(InterruptedError), bench.at(options):
        pass
    with pytest.raises(InterruptedError):
        bench.outputs(options)
    stop.remove()
    assert same()
    assert all(torch.equal(bench.codes(n, LOW.weight).steps, steps[n]) for n in names)


def _stop(*_: object) -> None:
    raise InterruptedError


def test_says_where_there_are_no_scales_to_move() -> None:
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.rand(3, 6)
    network = trace(model, x)
    with pytest.raises(
        ValueError, match=r"'spread' moves .* places inside a weight have scales of"
    ):
        Mixed.of(model, [x], finer(network, "channel"), SPREAD)
    with pytest.raises(ValueError, match=r"'spread' moves .* weights with noise on them have none"):
        Noise().estimate(Task(model, [x]), network, [LOW], recipe=SPREAD, sweep=Sweep())
