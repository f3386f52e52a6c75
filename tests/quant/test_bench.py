import copy

import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Format, Option
from mpsearch.quant.bench import Bench
from mpsearch.quant.integers import round_trip
from mpsearch.quant.recipe import Recipe
from tests.quant.networks import mixed, tied

PLAIN = Recipe(corrections=())


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    same = all(torch.equal(after[name], value) for name, value in before.items())
    hooks = any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    return same and set(after) == set(before) and not hooks


@pytest.mark.parametrize("make", [mixed, tied])
@pytest.mark.parametrize("recipe", [Recipe(), PLAIN])
def test_outputs_are_those_of_the_network_it_lends(make: type, recipe: Recipe) -> None:
    model, batches, names = make()
    bench = Bench(model, batches, names, recipe)
    assert bench.replay.whole == ""
    choices = [{name: Option.parse("w3a4")} for name in names]
    for options in [*choices, dict.fromkeys(names, Option.parse("w4a8")), {}]:
        with torch.no_grad(), bench.at(options) as changed:
            wanted = changed(bench.batch)
        torch.testing.assert_close(bench.outputs(options), wanted, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(ValueError, match="'int4/int8\\+gptq' names method 'gptq'"):
        bench.outputs({"head": Option.parse("int4/int8+gptq")})
    with pytest.raises(ValueError, match="cannot quantize to 'nf4' yet"):
        bench.outputs({"head": Option.parse("nf4/int8")})
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
