"""Codes that are looked up in a table: floats, quantiles, powers, each times a scale.

A value becomes the code of the interval it lies in. A float is read as a share of the largest power
of two among its codes (``fp8_e5m2``: of 32768), which keeps scales where 16 bits hold them best.
Where a format leaves a parameter to each tensor (LLM-FP4's split of the bits, NUPES' exponent),
there is a table for each, and the one that leaves the least squared error is taken and stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant import floats, powers
from mpsearch.quant.clipping import clip
from mpsearch.quant.codes import Codes, grouped, half_of, matrix, sixteen, ungrouped
from mpsearch.quant.recipe import Ranges

_CELLS, _DROPPED = 1 << 17, 15  # of the bits of a float, those that a cell does not look at
_CHUNK = 1 << 18  # weights searched at once, and at most looked at to choose a table
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Table:
    """What codes stand for before they are scaled.

    Attributes:
        values: By code; NaN for codes that no value gets.
        codes: Of the intervals, from the least up.
        bounds: Largest value of each interval but the last.
    """

    values: Tensor
    codes: Tensor
    bounds: Tensor

    @cached_property
    def points(self) -> Tensor:
        """What the intervals stand for, from the least up."""
        return self.values[self.codes.long()]

    @property
    def top(self) -> float:
        """Largest magnitude."""
        return float(self.points.abs().max())

    @cached_property
    def cells(self) -> Tensor:
        """(2**17,) the interval of the least of all floats that share their first 17 bits.

        So many bits tell the bounds of a table apart: no cell holds two.
        """
        first = torch.arange(-_CELLS // 2, _CELLS // 2, dtype=torch.int32) << _DROPPED
        least = torch.where(first < 0, first + (1 << _DROPPED) - 1, first).view(torch.float32)
        least = least.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        return torch.bucketize(least, self.bounds).to(torch.int16)

    def code(self, x: Tensor) -> Tensor:
        """Codes of scaled values, as uint8, or int16 where there are more than 8 bits."""
        return _at(self.codes, self._interval(x)).reshape(x.shape)

    def value(self, codes: Tensor) -> Tensor:
        """What codes stand for."""
        return _at(self.values, codes.reshape(-1).int()).reshape(codes.shape)

    def rounded(self, x: Tensor) -> Tensor:
        """What the codes of scaled values stand for."""
        return _at(self.points, self._interval(x)).reshape(x.shape)

    def _interval(self, x: Tensor) -> Tensor:
        """(values,) places of their intervals: from the first bits, then by the bound there."""
        flat = x.float().reshape(-1)
        cell = (flat.view(torch.int32) >> _DROPPED).add_(_CELLS // 2)
        found = _at(self.cells, cell).int()
        return found.add_(_at(self._ends, found).lt_(flat).int())

    @cached_property
    def _ends(self) -> Tensor:
        return torch.cat([self.bounds, torch.tensor([torch.inf])])


def _at(known: Tensor, places: Tensor) -> Tensor:
    """Several times as fast as an index in brackets."""
    return known.to(places.device).index_select(0, places)


def table(values: Tensor, bounds: Tensor | None = None) -> Table:
    """The table of such values, each finite one taken by what is nearest to it.

    The middle of two goes to the even code, as IEEE 754 rounds. ``bounds`` are others than these.
    """
    finite = torch.where(values.isfinite(), values, torch.inf)
    ascending, places = finite.sort(stable=True)
    first = torch.ones(len(values), dtype=torch.bool)
    first[1:] = ascending[1:] != ascending[:-1]  # of zeros the one above
    keep = first & (ascending < torch.inf)
    points, codes = ascending[keep], places[keep]
    if bounds is None:
        middle = ((points[1:].double() + points[:-1].double()) / 2).float()
        below = torch.nextafter(middle, torch.tensor(-torch.inf))
        bounds = torch.where(codes[1:] % 2 == 0, below, middle)
    return Table(values, codes.to(torch.uint8 if len(values) <= 256 else torch.int16), bounds)


@cache
def tables(form: Format) -> Mapping[int, Table]:
    """The tables a format may choose between, by what is stored of the choice."""
    bits = form.bits
    if form.base.endswith("_exmx"):
        return {e: table(_shares(name)) for e, name in floats.splits(bits).items()}
    if form.kind == "exponent":
        return {
            place: table(powers.exponents(bits, a), powers.exponent_bounds(bits, a))
            for place, a in enumerate(powers.EXPONENTS)
        }
    if form.kind == "power":
        return {0: table(powers.of_two(bits))}
    return {0: table(torch.tensor(NF4) if form.kind == "lookup" else _shares(form.base))}


def _shares(base: str) -> Tensor:
    values = floats.values(base)
    largest = values[values.isfinite()].max()
    return values / torch.exp2(largest.log2().floor())


def encode(weight: Tensor, form: Format, ranges: Ranges = "mse") -> Codes:
    """The codes of a weight, outputs first, of any floating type; computed in float32."""
    this = form.as_weight()
    values, shape = matrix(weight)
    rows = grouped(values, this)
    choice, best = _chosen(rows, this, ranges)
    stored = half_of(rows.abs().amax(1) / best.top)
    scale = _scales(rows, best, ranges, stored)
    codes = ungrouped(best.code(rows / scale[:, None]), this, tuple(values.shape))
    more = {"tensor": torch.tensor([choice], dtype=torch.uint8, device=values.device)}
    chosen = more if this.family.tensor_bits else {}
    return Codes(codes, scale.to(stored), None, this, shape, chosen)


def decode(codes: Codes) -> Tensor:
    """The weight that codes and scales stand for."""
    choice = int(codes.more["tensor"]) if "tensor" in codes.more else 0
    found = tables(codes.format)[choice].value(grouped(codes.codes, codes.format))
    return ungrouped(found * codes.steps[:, None], codes.format, codes.shape)


def _chosen(rows: Tensor, form: Format, ranges: Ranges) -> tuple[int, Table]:
    """The table of the least squared error on rows evenly spaced, and what is stored of it."""
    known = tables(form)
    if len(known) == 1:
        return next(iter(known.items()))
    seen = rows[:: -(-rows.numel() // _CHUNK)]
    seen = seen[:, :: -(-seen.numel() // _CHUNK)].contiguous()
    stored = half_of(rows.abs().amax(1))

    def error(choice: int) -> float:
        scale = _scales(seen, known[choice], ranges, stored)[:, None]
        found = known[choice].rounded(seen / scale) * scale
        return float((found - seen).double().square().sum())

    best = min(known, key=error)
    return best, known[best]


def _scales(rows: Tensor, by: Table, ranges: Ranges, stored: torch.dtype) -> Tensor:
    """(rows,) scales as they will be stored, in float32."""
    whole = rows.abs().amax(1) / by.top
    if ranges == "minmax":
        return sixteen(whole, stored)

    def searched(part: Tensor, most: Tensor) -> Tensor:
        def error(shares: Tensor) -> Tensor:
            scale = sixteen(most * shares[0], stored)[:, None]
            wide = (by.rounded(x / scale).mul_(scale).sub_(x) for x in part.split(_CHUNK, 1))
            return torch.stack([each.square_().sum(1) for each in wide]).sum(0)

        return sixteen(most * clip(error, 1, len(part), part)[0], stored)

    step = max(1, _CHUNK // max(1, rows.shape[1]))
    parts = zip(rows.split(step), whole.split(step), strict=True)
    return torch.cat([searched(part, most) for part, most in parts])
