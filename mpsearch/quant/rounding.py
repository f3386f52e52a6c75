"""How the weights of a model become integers: the method a recipe or an option names.

Scales are first those of the recipe's ranges. A method that looks at what a layer reads sees the
float network, so that a layer's integers do not depend on what the others are given. An output
that it makes worse than rounding to nearest does is left at nearest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor, nn

from mpsearch.formats import Format, Option
from mpsearch.quant.adaquant import adaquant
from mpsearch.quant.adaround import adaround
from mpsearch.quant.codes import Codes
from mpsearch.quant.decoupleq import Shared, decoupleq
from mpsearch.quant.encoding import encode, supported
from mpsearch.quant.gptq import gptq
from mpsearch.quant.input_hessian import InputHessians
from mpsearch.quant.keeping import keeps, salience
from mpsearch.quant.lattice import Layout, is_integer, lattice_of, spread, with_codes
from mpsearch.quant.quantease import quantease
from mpsearch.quant.recipe import Recipe, Rounding
from mpsearch.tracing import output_first


def method_of(option: Option, recipe: Recipe) -> str:
    """How an option's weight is rounded: its own method, else the recipe's for integers.

    Raises:
        ValueError: A method that is not known, or that does not round to the option's format.
    """
    whole = is_integer(option.weight)
    if option.method is None:
        return recipe.rounding if whole else "nearest"
    if option.method not in get_args(Rounding):
        known = ", ".join(get_args(Rounding))
        raise ValueError(
            f"option {str(option)!r} names method {option.method!r}; there are {known}"
        )
    if option.method != "nearest" and not whole:
        raise ValueError(
            f"option {str(option)!r} names a method for integers of 2 to 8 bits; leave it out, and"
            f" {str(option.weight)!r} is rounded to nearest"
        )
    return option.method


@dataclass(frozen=True, eq=False)
class Rounded:
    """The weights of a model in the formats asked for, each computed once.

    Attributes:
        recipe: How.
        weights: By name.
        layers: The modules of these names.
        hessians: Of what they read; each shared weight under the first of its names.
    """

    recipe: Recipe
    weights: Mapping[str, nn.Parameter]
    layers: Mapping[str, nn.Module]
    hessians: InputHessians
    _kept: dict[tuple[int, Format, str], Codes] = field(default_factory=dict, repr=False)

    def codes(self, name: str, form: Format, method: str) -> Codes:
        """A weight as stored in a format, outputs first."""
        weight = self.weights[name]
        key = (id(weight), supported(form), method)
        if key not in self._kept:
            first = output_first(weight, self.layers[name])
            codes = encode(first, form, self.recipe.ranges, self._salience(name, first, form))
            self._kept[key] = self._by(method, name, codes) if method != "nearest" else codes
        return self._kept[key]

    def _salience(self, name: str, first: Tensor, form: Format) -> Tensor | None:
        """What a part of the weight is kept at more bits by; ``None`` for its magnitude."""
        this = supported(form)
        if self.recipe.salience == "magnitude" or not keeps(this):
            return None
        layout, owner = self._read(name)
        lost = first.float()
        if this.outliers:
            lost = lost - encode(first, this.plain, self.recipe.ranges).dequantize()
        return salience(lost, layout, self.hessians.rounding(owner), this, self.recipe.damp)

    def _read(self, name: str) -> tuple[Layout, str]:
        """Where a weight meets inputs, and the name it has a Hessian under."""
        weight = self.weights[name]
        owner = next(other for other in self.hessians.weights if self.weights[other] is weight)
        return Layout.of(weight, self.hessians.modules[owner]), owner

    def _by(self, method: str, name: str, nearest: Codes) -> Codes:
        layout, owner = self._read(name)
        if isinstance(layout.module, nn.Embedding):
            return nearest  # rows are read alone: it is the best there is
        hessian = self.hessians.rounding(owner)
        rows = layout.rows(output_first(self.weights[name], layout.module))
        found = _rounded(method, rows, nearest, layout, hessian, self.recipe)
        return _better(found, nearest, rows, layout, hessian)


def _rounded(
    method: str, rows: Tensor, nearest: Codes, layout: Layout, hessian: Tensor, recipe: Recipe
) -> Codes:
    given = rows, lattice_of(nearest).map(layout.rows), hessian
    if method == "quantease":
        return with_codes(nearest, layout.codes(quantease(*given)))
    if method == "adaround":
        return with_codes(nearest, layout.codes(adaround(*given, steps=recipe.steps)))
    if method == "gptq":
        codes = gptq(*given, damp=recipe.damp, ordered=recipe.act_order)
        return with_codes(nearest, layout.codes(codes))
    shared = Shared(_scale(nearest), _places(nearest, layout), _parts(nearest))
    if method == "adaquant":
        codes, scale = adaquant(*given, shared, steps=recipe.steps)
    else:
        codes, scale = decoupleq(*given, shared, damp=recipe.damp, ordered=recipe.act_order)
    return replace(with_codes(nearest, layout.codes(codes)), scale=scale)


def _better(found: Codes, nearest: Codes, rows: Tensor, layout: Layout, hessian: Tensor) -> Codes:
    """Of each output's integers and scales those that err less, or of all where they share one."""
    parts, scale = _parts(nearest), _scale(nearest)
    unit = _places(nearest, layout)[..., 0] // parts

    def errors(codes: Codes) -> Tensor:
        error = lattice_of(codes).map(layout.rows).values(layout.rows(codes.codes)) - rows
        each = ((error @ hessian) * error).sum(-1).flatten()
        return each.new_zeros(scale.numel() // parts).index_add(0, unit.flatten(), each)

    worse = errors(found) > errors(nearest)
    plain, chosen = (layout.rows(codes.codes) for codes in (nearest, found))
    kept = torch.where(worse[unit][..., None], plain, chosen)
    scales = torch.where(worse.repeat_interleave(parts), scale, _scale(found))
    return replace(with_codes(nearest, layout.codes(kept)), scale=scales)


def _places(codes: Codes, layout: Layout) -> Tensor:
    """(groups, rows, columns) the number of each weight's scale."""
    numbers = torch.arange(_scale(codes).numel(), device=codes.codes.device)
    return layout.rows(spread(numbers, codes)).long()


def _scale(codes: Codes) -> Tensor:
    if codes.scale is None:
        raise ValueError(f"integers have scales, got none in {str(codes.format)!r}")
    return codes.scale


def _parts(codes: Codes) -> int:
    """Scales of one output."""
    return _scale(codes).numel() // len(codes.codes) if codes.format.per == "group" else 1
