import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.quant.bench import Bench
from mpsearch.quant.model import quantize, quantized_like
from mpsearch.quant.modules import Stored
from mpsearch.quant.recipe import Recipe
from tests.quant.networks import mixed, tied

MIX = [
    "int2/int8",
    "int4/fp32",
    "int8a/int6s",
    "int3g5/int8",
    "fp16/int4",
    "bf16/fp16",
    "int4t/int8",
]


def _options(names: list[str]) -> dict[str, str]:
    return {name: MIX[place % len(MIX)] for place, name in enumerate(names)}


def _tied_options(names: list[str]) -> dict[str, str]:
    return _options(names) | {"head": "int4/int8", "embed": "int4/int8"}


CASES: list[Any] = [(mixed, _options), (tied, _tied_options)]


@pytest.mark.parametrize(("make", "choose"), CASES)
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(ranges="minmax", corrections=())])
def test_it_is_the_network_that_was_measured(make: Any, choose: Any, recipe: Recipe) -> None:
    model, batches, names = make()
    options = {name: Option.parse(text) for name, text in choose(names).items()}
    new = quantize(model, options, batches, recipe)
    with torch.no_grad(), Bench(model, batches, names, recipe).at(options) as lent:
        assert torch.equal(new(batches[0]), lent(batches[0]))


@pytest.mark.parametrize(("make", "choose"), CASES)
def test_the_original_is_left_bit_for_bit(make: Any, choose: Any) -> None:
    model, batches, names = make()
    model.train()
    before = copy.deepcopy(model.state_dict())
    quantize(model, choose(names), batches)
    bad = choose(names) | {names[-1]: "log4/int8"}
    with pytest.raises(ValueError, match="cannot quantize weights to 'log4', which"):
        quantize(model, bad, batches)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("make", "choose"), CASES)
def test_it_can_be_saved_and_loaded_without_calibration_data(
    make: Any, choose: Any, tmp_path: Path
) -> None:
    model, batches, names = make()
    new = quantize(model, choose(names), batches)
    stream = io.BytesIO()
    torch.save(new.state_dict(), stream)
    stream.seek(0)
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    restored = quantized_like(fresh, choose(names))
    restored.load_state_dict(torch.load(stream, weights_only=True))
    with torch.no_grad():
        assert torch.equal(restored(batches[0]), new(batches[0]))
    save_model(new, str(tmp_path / "model.safetensors"))
    again = quantized_like(fresh, choose(names))
    again.load_state_dict(new.state_dict())  # makes room for the new biases
    for value in again.state_dict().values():
        value.zero_()
    load_model(again, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(again(batches[0]), new(batches[0]))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(("make", "choose"), CASES)
def test_it_can_be_saved_as_a_whole_and_copied(make: Any, choose: Any, *, trainable: bool) -> None:
    model, batches, names = make()
    new = quantize(model, choose(names), batches, trainable=trainable)
    stream = io.BytesIO()
    torch.save(new, stream)
    stream.seek(0)
    for other in (torch.load(stream, weights_only=False), copy.deepcopy(new)):
        assert [type(each) for each in other.modules()] == [type(each) for each in new.modules()]
        with torch.no_grad():
            assert torch.equal(other(batches[0]), new(batches[0]))
        for parameter in other.parameters():
            parameter.data.zero_()
    with torch.no_grad():
        assert not torch.equal(other(batches[0]), new(batches[0]))


def test_its_state_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    model, batches, names = mixed()
    new = quantize(model, _options(names), batches)
    save_file(new.state_dict(), tmp_path / "model.safetensors")
    restored = quantized_like(model, _options(names))
    restored.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(restored(batches[0]), new(batches[0]))


def test_scales_in_bfloat16_survive_loading() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.get_parameter("0.weight").mul_(1e-7)
    new = quantize(small, {"0": "w4a8"}, [torch.rand(4, 3)])
    restored = quantized_like(model, {"0": "w4a8"})
    restored.load_state_dict(new.state_dict())
    assert torch.equal(_stored(restored, "0").weight, _stored(new, "0").weight)


def _stored(model: nn.Module, name: str) -> Stored:
    module = model.get_submodule(name)
    assert isinstance(module, Stored)
    return module


def test_what_is_stored_has_the_bytes_the_format_counts() -> None:
    model, batches, names = mixed()
    options = _options(names)
    new = quantize(model, options, batches)
    for name, text in options.items():
        layer = _stored(new, name)
        held = [layer.codes, layer.scale, layer.zero_point]
        size = sum(t.numel() * t.element_size() for t in held if t is not None)
        shape = layer.stored().shape
        assert size == Option.parse(text).weight.bytes(shape), name


def test_a_tied_weight_is_stored_once() -> None:
    model, batches, names = tied()
    new = quantize(model, _tied_options(names), batches)
    assert _stored(new, "head").codes is _stored(new, "embed").codes
    assert torch.equal(_stored(new, "head").weight, _stored(new, "embed").weight)


def test_a_module_that_shares_a_weight_need_not_be_named() -> None:
    model, batches, _ = tied()
    new = quantize(model, {"embed": "int4/int8"}, batches)
    assert torch.equal(_stored(new, "head").weight, _stored(new, "embed").weight)
    assert _stored(new, "head").grid is None


@pytest.mark.parametrize("options", [{"embed": "int4/int8"}, {"head": "w32a8"}])
def test_modules_that_share_a_weight_are_loaded_alike(options: dict[str, str]) -> None:
    model, batches, _ = tied()
    new = quantize(model, options, batches)
    restored = quantized_like(model, options)
    restored.load_state_dict(new.state_dict())
    with torch.no_grad():
        assert torch.equal(restored(batches[0]), new(batches[0]))


def test_layers_keep_their_class_and_say_their_option() -> None:
    model, batches, names = mixed()
    new = quantize(model, dict.fromkeys(names, "w4a8"), batches)
    assert isinstance(new.get_submodule("odd"), type(model.get_submodule("odd")))
    assert type(new.get_submodule("head")).__name__ == "QuantizedLinear"
    assert "int4/int8" in repr(new.get_submodule("head"))


def test_it_can_be_copied_and_cast() -> None:
    model, batches, names = mixed()
    new = quantize(model, dict.fromkeys(names, "w4a8"), batches)
    x = batches[0]
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(new)(x), new(x))
        wanted = new(x)
        double = copy.deepcopy(new).double()
        assert double(x.double()).dtype == torch.float64
        torch.testing.assert_close(double(x.double()).float(), wanted, rtol=0.05, atol=0.05)
        assert _stored(double, "head").scale.dtype == torch.float16  # type: ignore[union-attr]
        assert torch.equal(double.float()(x), wanted)


def test_every_kind_of_layer_can_be_stored() -> None:
    torch.manual_seed(0)
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Conv1d(4, 6, 3, groups=2), torch.randn(3, 4, 8)),
        (nn.Conv3d(2, 4, 2), torch.randn(3, 2, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), torch.randn(3, 4, 8)),
        (nn.ConvTranspose3d(4, 2, 2, bias=False), torch.randn(3, 4, 3, 3, 3)),
        (nn.Linear(4, 2), torch.randn(3, 5, 4)),
    ]
    for layer, x in layers:
        model = nn.Sequential(layer)
        with torch.no_grad():
            new = quantize(model, {"0": "w8a32"}, [x])
            torch.testing.assert_close(new(x), model(x), rtol=0.05, atol=0.05)
            assert not torch.equal(new(x), model(x))


def test_hugging_face_s_linear_layer_is_stored_the_other_way_round() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    layer = pytorch_utils.Conv1D(3, 5)  # five inputs, three outputs
    model, x = nn.Sequential(layer), torch.randn(4, 5)
    new = quantize(model, {"0": "w4a8"}, [x])
    scale = _stored(new, "0").scale
    assert scale is not None
    assert len(scale) == 3
    with torch.no_grad():
        torch.testing.assert_close(new(x), model(x), rtol=0, atol=0.02)


def test_says_which_layer_the_model_does_not_have() -> None:
    model, batches, _ = mixed()
    with pytest.raises(KeyError, match="no weight named 'body'"):
        quantize(model, {"body": "w4a8"}, batches)
    with pytest.raises(KeyError, match="no weight named 'body'"):
        quantized_like(model, {"body": "w4a8"})
