"""Classes of options under rows of sums: pick one of each class for the least total loss.

Numbers are kept as given; what solvers look at is each above the least of its class, in units that
are powers of two, so that neither scale nor a large common part hides a difference. Layers that
interact make one class of product options where those are few; options that fit in no answer and
options that another one beats in everything are left out.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.tables import Floats, Mask

ULP = 2.0**-52
MOST_PRODUCTS = 1000  # options of a class of layers that interact
MOST_BEFORE = 1000  # options that another one is compared with
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Program:
    """Pick one option of every class: least total loss, no row's total above its limit.

    Attributes:
        owner: (M,) the class of each option, ascending; every class has an option.
        loss: (M,) the loss of each option.
        rows: (R, M) what each option adds to each row.
        limits: (R,) with room for the rounding of sums, so that no feasible choice is shut out.
        whole: (R,) whether a row's numbers are integers whose sums are exact.
        layers: For each class the layers of the merged problem it decides.
        columns: (M, widest class) the option of each of those layers.
        pairs: ``(option, option, loss)`` of interactions that no class took in.
        constant: Numbers that every choice loses.
        error: How far the loss of a choice may be from the sum of its numbers here.
    """

    owner: Integers
    loss: Floats
    rows: Floats
    limits: Floats
    whole: Mask
    layers: tuple[tuple[int, ...], ...]
    columns: Integers
    pairs: tuple[tuple[int, int, float], ...] = ()
    constant: tuple[float, ...] = ()
    error: float = 0.0

    @cached_property
    def starts(self) -> Integers:
        """(n,) where each class begins."""
        return np.searchsorted(self.owner, np.arange(len(self.layers)))

    def least(self, values: NDArray[Any]) -> NDArray[Any]:
        """(..., n) the least of each class."""
        return np.minimum.reduceat(values, self.starts, axis=-1)

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        """(..., n) the largest of each class."""
        return np.maximum.reduceat(values, self.starts, axis=-1)

    @cached_property
    def unit(self) -> float:
        """What gains are counted in: a power of two, so that their sum is between 1 and 2."""
        return _power(float((self.most(self.loss) - self.least(self.loss)).sum()))

    @cached_property
    def gain(self) -> Floats:
        """(M,) each loss above the least of its class, in :attr:`unit`."""
        return np.asarray((self.loss - self.least(self.loss)[self.owner]) / self.unit)

    @cached_property
    def units(self) -> Floats:
        """(R,) what each row is counted in: powers of two, so that sums are below 2."""
        return np.array(
            [_power(x) for x in (self.most(self.rows) - self.least(self.rows)).sum(axis=1)]
        )

    @cached_property
    def usage(self) -> Floats:
        """(R, M) each number above the least of its class, in :attr:`units`."""
        above = self.rows - self.least(self.rows)[:, self.owner]
        return np.asarray(above / self.units[:, None])

    @cached_property
    def room(self) -> Floats:
        """(R,) what each limit leaves above every class's least, in :attr:`units`."""
        low = (-self.least(self.rows)).tolist()
        pairs = zip(self.limits.tolist(), low, strict=True)
        return np.array([math.fsum([limit, *row]) for limit, row in pairs]) / self.units

    @cached_property
    def span(self) -> float:
        """Sum over classes of the largest gain."""
        return float(self.most(self.gain).sum())

    @cached_property
    def slip(self) -> float:
        """How far a sum of gains may be from the loss it stands for, in :attr:`unit`."""
        exact = sums_exactly(self.loss, float(self.most(np.abs(self.loss)).sum()))
        rounding = 0.0 if exact else ULP * (len(self.layers) + 8) * self.span
        return self.error / self.unit + rounding

    def bound(self, gain: float) -> float:
        """The bound on the loss that a bound on the sum of gains is."""
        return math.fsum([*self.constant, *self.least(self.loss).tolist(), gain * self.unit])

    @property
    def settled(self) -> bool:
        """Whether every class has a single option left."""
        return len(self.owner) == len(self.layers)

    def kept(self, keep: Mask) -> "Program":
        """With some options left out, and the rows that always hold then; every class keeps one."""
        place = np.cumsum(keep) - 1
        pairs = [(place[a], place[b], q) for a, b, q in self.pairs if keep[a] and keep[b]]
        fewer = replace(
            self,
            owner=self.owner[keep],
            loss=self.loss[keep],
            rows=self.rows[:, keep],
            columns=self.columns[keep],
            pairs=tuple((int(a), int(b), q) for a, b, q in pairs),
        )
        binds = fewer.most(fewer.usage).sum(axis=1) > fewer.room
        return replace(
            fewer, rows=fewer.rows[binds], limits=fewer.limits[binds], whole=fewer.whole[binds]
        )

    def choice(self, picks: Sequence[int] | Integers) -> tuple[int, ...]:
        """The option of every merged layer, from the picked option of every class."""
        chosen: dict[int, int] = {}
        for layers, pick in zip(self.layers, np.asarray(picks).tolist(), strict=True):
            chosen.update(zip(layers, self.columns[pick].tolist(), strict=False))
        return tuple(chosen[layer] for layer in range(len(chosen)))


def _power(size: float) -> float:
    """The power of two at or below a size; 1 for none."""
    return math.ldexp(1.0, math.frexp(size)[1] - 1) if 0 < size < math.inf else 1.0


def sums_exactly(values: Floats, total: float) -> bool:
    """Whether sums up to ``total`` of these numbers round nowhere: all are multiples of its ulp."""
    scaled = np.ldexp(values, 53 - math.frexp(total)[1])
    return bool((scaled == np.floor(scaled)).all())


def with_products(bare: Program, most: int | None = None) -> Program:
    """Classes that interact made one, where their options multiply to few enough."""
    most = MOST_PRODUCTS if most is None else most
    joined: dict[int, set[int]] = {}
    for a, b, _ in bare.pairs:
        whole = {int(bare.owner[a]), int(bare.owner[b])}
        for one in list(whole):
            whole |= joined.get(one, set())
        joined.update(dict.fromkeys(whole, whole))
    for group in {min(group): group for group in joined.values()}.values():
        sizes = [int((bare.owner == i).sum()) for i in group]
        if math.prod(sizes) <= most:
            return with_products(_product(bare, sorted(group)), most)
    return bare


def _product(bare: Program, group: Sequence[int]) -> Program:
    """One class in place of a group of classes, with an option for each of their combinations."""
    members = [np.flatnonzero(bare.owner == i) for i in group]
    picks = np.array(list(itertools.product(*members)))
    inside = [(a, b, q) for a, b, q in bare.pairs if bare.owner[a] in group]
    low = bare.least(bare.loss)
    above = bare.loss[picks] - low[group]
    loss = above.sum(axis=1)
    for a, b, q in inside:
        loss += q * ((picks == a).any(axis=1) & (picks == b).any(axis=1))
    rest = ~np.isin(bare.owner, group)
    others = [i for i in range(len(bare.layers)) if i not in group]
    place = np.cumsum(rest) - 1
    parts = np.concatenate([bare.loss[picks].ravel(), [q for _, _, q in inside]])
    size = float(above.max(axis=0).sum()) + math.fsum(abs(q) for *_, q in inside)
    exact = sums_exactly(parts, size + float(np.abs(parts).max()))
    layers = [sum((bare.layers[i] for i in group), ())]
    widest = max(len(layers[0]), bare.columns.shape[1])
    columns = np.hstack(
        [bare.columns[picks[:, j], : len(bare.layers[i])] for j, i in enumerate(group)]
    )

    def wide(array: Integers) -> Integers:
        return np.pad(array, ((0, 0), (0, widest - array.shape[1])))

    return replace(
        bare,
        owner=np.concatenate(
            [np.searchsorted(others, bare.owner[rest]), [len(others)] * len(picks)]
        ),
        loss=np.concatenate([bare.loss[rest], loss]),
        rows=np.hstack([bare.rows[:, rest], bare.rows[:, picks].sum(axis=2)]),
        layers=(*(bare.layers[i] for i in others), *layers),
        columns=np.vstack([wide(bare.columns[rest]), wide(columns)]),
        pairs=tuple((int(place[a]), int(place[b]), q) for a, b, q in bare.pairs if rest[a]),
        constant=(*bare.constant, *low[group].tolist()),
        error=bare.error + (0.0 if exact else ULP * (len(group) + len(inside) + 1) * size),
    )


def reduced(bare: Program) -> Program | None:
    """Without options that fit in no answer, rows that always hold, and dominated options."""
    before = None
    while before != bare.rows.shape:
        before = bare.rows.shape
        fits: Mask = np.all(bare.usage <= bare.room[:, None], axis=0)
        if not np.logical_or.reduceat(fits, bare.starts).all():
            return None
        bare = bare.kept(fits)
        if not bare.pairs:
            bare = bare.kept(~_dominated(bare))
    return bare


def _dominated(bare: Program) -> Mask:
    """Which options another of the class beats or equals in loss and in every row."""
    order = np.lexsort((*bare.rows[::-1], bare.loss, bare.owner))
    owner, rows = bare.owner[order], bare.rows[:, order]
    beaten = np.zeros(len(order), bool)
    for step in range(1, min(int(np.bincount(owner).max()), MOST_BEFORE)):
        same = owner[step:] == owner[:-step]
        beaten[step:] |= same & (rows[:, :-step] <= rows[:, step:]).all(axis=0)
    found = np.empty_like(beaten)
    found[order] = beaten
    return found
