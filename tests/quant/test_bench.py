import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.formats import Format, Option
from mpsearch.quant import corrections
from mpsearch.quant.bench import Bench
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from tests.quant.networks import mixed, tied

PLAIN = Recipe(corrections=())
W4 = Option.parse("w4a8")


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    same = all(torch.equal(after[name], value) for name, value in before.items())
    hooks = any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    return same and set(after) == set(before) and not hooks


@pytest.mark.parametrize("make", [mixed, tied])
@pytest.mark.parametrize("recipe", [Recipe(), PLAIN, Recipe(corrections=("bias", "spread"))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_the_network_it_lends(
    make: type, recipe: Recipe, dtype: torch.dtype
) -> None:
    model, batches, names = make()
    model = model.to(dtype)
    batches = [x.to(dtype) if x.is_floating_point() else x for x in batches]
    bench = Bench(model, batches, names, recipe)
    assert bench.replay.whole == ""
    choices = [{name: Option.parse("w3a4")} for name in names]
    for options in [*choices, dict.fromkeys(names, Option.parse("w4a8")), {}]:
        with torch.no_grad(), bench.at(options) as changed:
            wanted = changed(bench.batch)
        assert torch.equal(bench.outputs(options), wanted)


def test_a_layer_whose_operation_adds_no_bias_is_left_without() -> None:
    class Bare(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            return F.linear(input, self.weight)

    torch.manual_seed(0)
    model, x = nn.Sequential(Bare(6, 4, bias=False)), torch.rand(9, 6)
    for recipe in (Recipe(), Recipe(corrections=("spread",))):
        bench = Bench(model, [x], ["0"], recipe)
        with torch.no_grad(), bench.at({"0": W4}) as changed:
            assert torch.equal(bench.outputs({"0": W4}), changed(x))
            assert changed.get_submodule("0").bias is None


@torch.inference_mode()
def test_says_that_inference_mode_is_on() -> None:
    model, batches, names = mixed()
    with pytest.raises(ValueError, match=r"torch.inference_mode is on: .* call this outside of it"):
        Bench(model, batches, names, Recipe())


@pytest.mark.parametrize("make", [mixed, tied])
def test_the_reference_is_the_model_s_own_output(make: type) -> None:
    model, batches, names = make()
    with torch.no_grad():
        wanted = model(torch.cat(batches))
    torch.testing.assert_close(Bench(model, batches, names, Recipe()).reference, wanted)


@pytest.mark.parametrize("recipe", [Recipe(), PLAIN])
def test_everything_is_put_back_also_when_a_run_breaks_off(recipe: Recipe) -> None:
    model, batches, names = mixed()
    before = _state(model)
    bench = Bench(model, batches, names, recipe)
    own, options = _state(bench.model), dict.fromkeys(names, Option.parse("w2a4"))
    with pytest.raises(KeyboardInterrupt), bench.at(options) as changed:  # noqa: PT012
        assert not _unchanged(changed, own)
        raise KeyboardInterrupt
    assert _unchanged(bench.model, own)
    bench.outputs(options)  # from here on only what is quantized is run
    stop = bench.model.get_submodule("up").register_forward_hook(_stop)
    with pytest.raises(InterruptedError):
        bench.outputs(options)
    if recipe.corrections:
        with pytest.raises(InterruptedError), bench.at(options):
            pass
    stop.remove()
    assert _unchanged(bench.model, own)
    assert _unchanged(model, before)


def _stop(*_: object) -> None:
    raise InterruptedError


def test_weights_and_inputs_are_on_their_grids() -> None:
    model, batches, _ = mixed()
    bench = Bench(model, batches, ["grouped"], PLAIN)
    seen: list[Tensor] = []
    with torch.no_grad(), bench.at({"grouped": Option.parse("int3/int4")}) as changed:
        layer = changed.get_submodule("grouped")
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        changed(bench.batch)
        weight = layer.get_parameter("weight").clone()
    original = model.get_parameter("grouped.weight")
    assert torch.equal(weight, round_trip(original, Format.parse("int3")))
    assert len(seen[0].unique()) <= 16


def test_channels_of_a_transposed_convolution_are_its_outputs() -> None:
    model, batches, _ = mixed()
    bench = Bench(model, batches, ["up"], PLAIN)
    with bench.at({"up": Option.parse("w4a32")}) as changed:
        weight = changed.get_parameter("up.weight").clone()
    for group in range(3):
        for out in range(2):
            channel = weight[group * 4 : group * 4 + 4, out]
            assert len(channel.unique()) <= 15
    scale = bench.codes("up", Format.parse("int4")).scale
    assert scale is not None
    assert len(scale) == 6


def test_modules_that_share_a_weight_both_see_it_quantized() -> None:
    model, batches, names = tied()
    bench = Bench(model, batches, names, Recipe())
    with bench.at({"head": Option.parse("w2a32")}) as changed:
        assert len(changed.get_parameter("embed.weight")[0].unique()) <= 3
    both = {"head": Option.parse("w4a8"), "embed": Option.parse("w8a8")}
    with pytest.raises(
        ValueError, match="share one weight and were given 'int4/int8' and 'int8/int8'"
    ):
        bench.outputs(both)


def test_16_and_32_bits_are_not_quantized() -> None:
    model, batches, names = mixed()
    bench = Bench(model, batches, names, Recipe())
    options = dict.fromkeys(names, Option.parse("w32a16"))
    assert torch.equal(bench.outputs(options), bench.reference)
    with bench.at({"head": Option.parse("w16a16")}) as changed:
        half = changed.get_parameter("head.weight").clone()
    assert torch.equal(half, model.get_parameter("head.weight").half().float())


def test_a_model_in_half_precision_stays_in_it() -> None:
    model, batches, names = mixed()
    half, inputs = copy.deepcopy(model).bfloat16(), [batch.bfloat16() for batch in batches]
    bench = Bench(half, inputs, names, Recipe())
    assert bench.outputs(dict.fromkeys(names, Option.parse("w4a8"))).dtype == torch.bfloat16


def test_says_what_is_wrong_and_where() -> None:
    model, batches, names = mixed()
    with pytest.raises(KeyError, match="no weight named 'body'"):
        Bench(model, batches, ["body"], Recipe())
    with pytest.raises(ValueError, match="no batches were given"):
        Bench(model, [], names, Recipe())
    with pytest.raises(ValueError, match="layer 'stem': its input holds NaN"):
        Bench(model, [batches[0] * torch.nan], names, Recipe())
    bench = Bench(model, batches, names[1:], Recipe())
    with pytest.raises(KeyError, match="prepared without module 'stem'"):
        bench.outputs({"stem": Option.parse("w4a8")})
    with pytest.raises(ValueError, match=r"'int4/int8\+up' names method 'up'; there are nearest,"):
        bench.outputs({"head": Option.parse("int4/int8+up")})
    with pytest.raises(ValueError, match=r"'nf4/int8\+gptq' names a method for integers of 2 to 8"):
        bench.outputs({"head": Option.parse("nf4/int8+gptq")})
    with pytest.raises(ValueError, match="cannot quantize weights to 'log4', which"):
        bench.outputs({"head": Option.parse("log4/int8")})
    model.get_parameter("head.weight").data[0, 0] = torch.inf
    broken = Bench(model, batches, names, Recipe())
    with pytest.raises(ValueError, match="layer 'head': it holds NaN or infinity"):
        broken.codes("head", Format.parse("int4"))


def test_says_that_a_module_was_never_called() -> None:
    class Unused(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            out: Tensor = self[0](input)
            return out

    model = Unused(nn.Linear(2, 2), nn.Linear(2, 2))
    bench = Bench(model, [torch.ones(3, 2)], ["0", "1"], Recipe())
    assert torch.equal(bench.outputs({"1": Option.parse("w2a32")}), bench.reference)
    with pytest.raises(ValueError, match="module '1' is not called on the calibration batches"):
        bench.outputs({"1": Option.parse("w2a8")})


@pytest.mark.parametrize("recipe", [Recipe(samples=8), PLAIN])
def test_other_samples_are_corrected_as_the_bench_s_own(recipe: Recipe) -> None:
    model, batches, names = mixed()
    bench = Bench(model, batches, names, recipe)
    replay = bench.remembered(batches[1])
    for options in ({"depthwise": Option.parse("w3a4")}, dict.fromkeys(names, W4), {}):
        output, found = bench.corrected(options)
        with torch.no_grad(), bench.at(options) as changed:
            wanted = changed(batches[1])
        assert torch.equal(bench.returned(options, found, replay), wanted)
        assert torch.equal(output, bench.outputs(options))
    assert torch.equal(bench.returned({}, found, replay), replay.reference)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(samples=16), "to run 16 samples at once, those that corrections look at, takes"),
        (PLAIN, "to run 8 samples at once, your largest batch, takes about 0.[234]MB; give that"),
    ],
)
def test_says_how_much_memory_it_takes_at_least(recipe: Recipe, message: str) -> None:
    model, batches, names = mixed()
    with pytest.raises(ValueError, match=message):
        Bench(model, batches, names, recipe, memory=10_000)
    Bench(model, batches, names, recipe, memory=700_000)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_are_those_of_all_numbers_of_a_channel(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 1e-2 + 30).to(dtype)
    for axis in range(len(shape)):
        others = [i for i in range(len(shape)) if i != axis]
        variance, mean = torch.var_mean(x.double(), others, correction=0)
        got = corrections._mean_and_deviation(x, axis)
        torch.testing.assert_close(got[0], mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(got[1], variance.sqrt(), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(corrections._mean(x, axis), mean, rtol=1e-6, atol=0)
