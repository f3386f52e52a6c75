"""Every format from its name to a network that runs and is stored, and to a table of losses."""

import copy
import io
from typing import Any

import pytest
import torch

import mpsearch as mp
from mpsearch.formats import Option
from mpsearch.quant.bench import Bench
from mpsearch.quant.model import quantize, quantized_like
from mpsearch.quant.modules import Stored
from mpsearch.quant.recipe import Recipe
from tests.quant.networks import mixed, tied

OPTIONS = [
    "fp8_e4m3/fp8_e4m3", "fp8_e5m2t/fp8_e5m2", "fp6_e3m2g5/fp6_e2m3", "fp4_exmx/fp4_exmx",
    "mxfp4/mxfp8_e4m3", "mxfp6_e2m3/mxint8", "mxint8/int8", "nvfp4/nvfp4", "nf4/nf4t",
    "ternary/int8", "ternarym/ternary", "binary/binary", "binary2g4/int4", "int1/int8",
    "pot4/pot4", "power4/power4", "int4/log4", "int8/log3", "fx8.6/fx8.4", "fx6.4_rnd_wrap/fx12.4",
    "int3o5/int8", "nvfp4r2/nvfp4", "pb10/int8", "sc20/int4", "fp13_e5m7/fp9_e4m4",
]  # fmt: skip
PLAIN = Recipe(ranges="minmax", activation_ranges="minmax", corrections=())


def _given(names: list[str], start: int, *, tie: bool) -> dict[str, Option]:
    texts = [OPTIONS[(start + place) % len(OPTIONS)] for place in range(len(names))]
    found = {name: Option.parse(text) for name, text in zip(names, texts, strict=True)}
    return found | {"embed": found["head"]} if tie else found


@pytest.mark.parametrize("make", [mixed, tied])
@pytest.mark.parametrize("start", range(0, len(OPTIONS), 4))
def test_it_is_the_network_that_was_measured_and_can_be_saved(make: Any, start: int) -> None:
    model, batches, names = make()
    options = _given(names, start, tie=make is tied)
    recipe = Recipe() if start == 0 else PLAIN
    new = quantize(model, options, batches, recipe)
    with torch.no_grad(), Bench(model, batches, names, recipe).at(options) as lent:
        assert torch.equal(new(batches[0]), lent(batches[0]))
    stream = io.BytesIO()
    torch.save(new.state_dict(), stream)
    stream.seek(0)
    again = quantized_like(model, options)
    again.load_state_dict(torch.load(stream, weights_only=True))
    with torch.no_grad():
        assert torch.equal(again(batches[0]), new(batches[0]))
    for name, option in options.items():
        module = new.get_submodule(name)
        assert isinstance(module, Stored)
        shape = module.stored().shape
        parts = [getattr(module, part) for part in option.weight.streams(shape)]
        size = sum(part.numel() * part.element_size() for part in parts)
        assert size == option.weight.bytes(shape)


def test_another_type_to_compute_in_leaves_what_is_stored() -> None:
    model, batches, names = mixed()
    new = quantize(model, _given(names, 3, tie=False), batches, PLAIN)
    before = copy.deepcopy(new.state_dict())
    after = new.bfloat16().state_dict()
    for name, value in before.items():
        if any(part in name for part in ("codes", "scale", "tensor", "input_")):
            assert torch.equal(after[name], value), name
    assert new(batches[0].bfloat16()).dtype == torch.bfloat16


def test_losses_of_every_family_are_in_one_table() -> None:
    model, batches, names = mixed()
    task = mp.Task(model, batches, batches)
    options = mp.options(*OPTIONS, "fp32/fp32")
    table = mp.estimate(task, options, method="kl", recipe=PLAIN)
    assert table.values.shape == (len(names), len(OPTIONS) + 1)
    means = dict(zip(OPTIONS, table.values.mean(0).tolist(), strict=False))
    assert means["fp13_e5m7/fp9_e4m4"] < means["fp8_e4m3/fp8_e4m3"] < means["ternary/int8"]
    assert means["pb10/int8"] < means["binary/binary"]
