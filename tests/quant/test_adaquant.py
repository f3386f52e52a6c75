"""AdaQuant: against its definition written out, and what it does for a layer."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mpsearch.formats import Format, Option
from mpsearch.quant import encode
from mpsearch.quant.adaquant import RATES, adaquant
from mpsearch.quant.bench import Bench
from mpsearch.quant.decoupleq import Shared
from mpsearch.quant.lattice import Lattice, lattice_of, spread
from mpsearch.quant.recipe import Recipe
from tests.quant.networks import mixed
from tests.quant.weights import normal
from tests.references import descent


def _layer(form: str, rows: int = 6, width: int = 24) -> tuple[Tensor, Lattice, Tensor, Shared]:
    """A weight, its lattice, the Hessian of correlated inputs, and the scales."""
    weight, mix = normal(rows, width).double(), normal(width, width, seed=1).double()
    inputs = normal(80, width, seed=2).double() @ mix + 1
    codes = encode(weight, Format.parse(form))
    assert codes.scale is not None
    count = codes.scale.numel()
    place = spread(torch.arange(count), codes)[None].long()
    shared = Shared(codes.scale, place, count // rows if codes.format.per == "group" else 1)
    lattice = lattice_of(codes).map(lambda x: x.double()[None])
    return weight[None], lattice, 2 / 80 * (inputs.T @ inputs)[None], shared


def _errors(
    weight: Tensor, lattice: Lattice, hessian: Tensor, scale: Tensor, codes: Tensor
) -> Tensor:
    error = replace(lattice, scale=scale).values(codes) - weight
    return ((error @ hessian) * error).sum(-1)[0]


@pytest.mark.parametrize("form", ["int2", "int3", "int4t", "int3g8", "int3g7a"])
def test_outputs_err_far_less_than_by_rounding_to_nearest(form: str) -> None:
    weight, lattice, hessian, shared = _layer(form)
    codes, scale = adaquant(weight, lattice, hessian, shared, steps=300)
    assert torch.equal(codes, lattice.clamped(codes.round()))
    assert scale.dtype == shared.scale.dtype
    assert bool((scale > 0).all())
    found = _errors(weight, lattice, hessian, scale.double()[shared.place], codes)
    plain = _errors(weight, lattice, hessian, lattice.scale, lattice.codes(weight))
    if form != "int4t":  # there all rows share a scale, and only their sum is made less
        assert bool((found <= plain * 1.0001).all())
    assert float(found.sum()) < 0.75 * float(plain.sum())


@pytest.mark.parametrize("bits", [2, 4])
def test_each_step_is_the_definition_s(bits: int) -> None:
    weight, lattice, hessian, shared = _layer(f"int{bits}", rows=4, width=9)
    double = replace(shared, scale=shared.scale.double())  # not rounded to what is stored
    codes, scale = adaquant(weight, lattice, hessian, double, steps=120)
    top = 2 ** (bits - 1) - 1
    moved = 0
    for row in range(4):
        first = float(shared.scale[row])
        wanted, size, _ = descent.adaquant(
            weight[0, row].tolist(), first, top, hessian[0].tolist(), 120, RATES
        )
        assert codes[0, row].tolist() == wanted
        assert float(scale[row]) == pytest.approx(size, rel=1e-5)
        moved += size != first
    assert moved >= 2


def test_it_is_the_same_each_time() -> None:
    given = _layer("int3g8a")
    (codes, scale), again = adaquant(*given, steps=40), adaquant(*given, steps=40)
    assert torch.equal(codes, again[0])
    assert torch.equal(scale, again[1])


def test_more_steps_never_err_more() -> None:
    weight, lattice, hessian, shared = _layer("int2")
    errors = []
    for steps in (1, 10, 100):
        codes, scale = adaquant(weight, lattice, hessian, shared, steps=steps)
        errors.append(_errors(weight, lattice, hessian, scale.double()[shared.place], codes))
    assert bool((errors[1] <= errors[0] * 1.0001).all())
    assert bool((errors[2] <= errors[1] * 1.0001).all())


@pytest.mark.parametrize("factor", [1e-4, 1e5])
def test_the_range_of_sixteen_bits_is_kept(factor: float) -> None:
    weight, lattice, hessian, _ = _layer("int4")
    codes = encode(weight[0] * factor, Format.parse("int4"))
    scale = codes.steps
    assert codes.scale is not None
    shared = Shared(codes.scale, spread(torch.arange(6), codes)[None].long(), 1)
    at = replace(lattice, scale=scale.double()[shared.place])
    found, moved = adaquant(weight * factor, at, hessian, shared, steps=50)
    assert bool(torch.isfinite(moved).all())
    assert bool((moved > 0).all())
    assert bool(torch.isfinite(found).all())


def test_rows_of_zeros_stay() -> None:
    weight, lattice, hessian, shared = _layer("int3")
    weight[0, 2] = 0
    codes, scale = adaquant(weight, lattice, hessian, shared, steps=30)
    assert not codes[0, 2].any()
    assert bool(torch.isfinite(scale).all())


def test_a_recipe_and_an_option_name_it() -> None:
    model, batches, names = mixed()
    by_recipe = Bench(model, batches, names, Recipe(rounding="adaquant", steps=60))
    by_option = Bench(model, batches, names, Recipe(steps=60))
    form = Option.parse("w3a32+adaquant").weight
    for name in names:
        wanted, found = by_recipe.codes(name, form), by_option.codes(name, form, "adaquant")
        assert torch.equal(found.codes, wanted.codes)
        assert found.scale is not None
        assert wanted.scale is not None
        assert torch.equal(found.scale, wanted.scale)
    plain = by_option.codes("stem", form)
    assert not torch.equal(plain.codes, by_recipe.codes("stem", form).codes)
