"""Tables of one number per layer and option: what estimators and hardware models write."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.formats import Option
from mpsearch.network import Layer, Numbered

Floats = NDArray[np.float64]
Numbers = NDArray[Any]  # float64, or int64 where every number is an integer
Mask = NDArray[np.bool_]
LARGEST = 2.0**1000  # of a sum: above it, rounding to infinity is near


@dataclass(frozen=True, eq=False)
class Table:
    """One finite number per layer and option, and how sure of it its writer is.

    Attributes:
        layers: L layers, each named once.
        options: K options, each named once.
        values: (L, K), finite; int64 where all are integers, and then totals are exact.
        unit: What the numbers count, such as ``byte`` or ``KL (nats)``.
        name: What budgets call it, such as ``size``.
        stderr: (L, K) standard errors, where the writer knows them.
        allowed: (L, K), false where a layer may not take an option; by default all true.
        fixed: What no choice changes; part of every total.
        reference: The unquantized network's total.
        reduce: How a total is made of the chosen numbers.
        notes: What is said of some entries, and (L, K) of which: what a machine without a kernel
            for a format would really run, say.
    """

    layers: Sequence[Layer]
    options: tuple[Option, ...]
    values: Numbers
    unit: str
    name: str = "loss"
    stderr: Floats | None = field(default=None, repr=False)
    allowed: Mask = field(default_factory=lambda: np.ones((0, 0), bool), repr=False)
    fixed: float = 0
    reference: float | None = None
    reduce: Literal["sum", "max"] = "sum"
    notes: Mapping[str, Mask] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Check shapes, names and numbers."""
        shape = (len(self.layers), len(self.options))
        values = self._numbers(np.asarray(self.values))
        mask = np.asarray(self.allowed, bool) if self.allowed.size else np.ones(shape, bool)
        self._check_shapes(shape, values=values, stderr=self.stderr, allowed=mask)
        for note, where in self.notes.items():
            self._check_shapes(shape, **{f"entries noted {note!r}": where})
        self._check_names()
        self._check_numbers("values", np.where(mask, values, 0))
        if self.stderr is not None:
            self._check_numbers("stderr", np.where(mask, self.stderr, 0))
        for row in np.flatnonzero(~mask.any(axis=1))[:1]:
            raise ValueError(f"layer {self.layers[row].name!r} may take no option; allow it one")
        if self.reduce not in ("sum", "max"):
            raise ValueError(f"reduce is 'sum' or 'max', not {self.reduce!r}")
        for what, number in (("fixed", self.fixed), ("reference", self.reference)):
            if number is not None and not abs(number) <= LARGEST:
                raise ValueError(f"{what} of table {self.name!r} is {number}; give a finite number")
        if self.stderr is not None:
            object.__setattr__(self, "stderr", np.where(mask, self.stderr, 0.0))
        object.__setattr__(self, "values", np.where(mask, values, 0))
        object.__setattr__(self, "allowed", mask)
        if np.abs(self.values.astype(np.float64)).max() > LARGEST / len(self.layers):
            raise ValueError(
                f"values of table {self.name!r} add up to more than 2^1000; use a larger unit"
            )

    def _numbers(self, values: Numbers) -> Numbers:
        """As int64 where they are integers, else as float64."""
        if values.dtype.kind not in "iu":
            return values.astype(np.float64)
        if values.size and int(values.max()) >= 1 << 63:
            raise ValueError(f"table {self.name!r} holds {values.max()}; integers are below 2^63")
        return values.astype(np.int64)

    def _check_shapes(self, shape: tuple[int, int], **arrays: NDArray[Any] | None) -> None:
        if min(shape) < 1:
            raise ValueError(f"table {self.name!r} needs a layer and an option, got shape {shape}")
        for what, array in arrays.items():
            if array is not None and array.shape != shape:
                raise ValueError(
                    f"table {self.name!r} has {shape[0]} layers and {shape[1]} options, so its"
                    f" {what} have shape {shape}, not {array.shape}"
                )

    def _check_names(self) -> None:
        if len(set(self.options)) < len(self.options):
            twice = next(o for o in self.options if self.options.count(o) > 1)
            raise ValueError(f"option {str(twice)!r} is named twice; name each option once")
        if isinstance(self.layers, Numbered):
            return
        seen: set[str] = set()
        for layer in self.layers:
            if layer.name in seen:
                raise ValueError(f"layer {layer.name!r} is named twice; name each layer once")
            seen.add(layer.name)

    def _check_numbers(self, what: str, array: Numbers) -> None:
        bad = np.argwhere(~np.isfinite(array))
        if what == "stderr" and not len(bad):
            bad = np.argwhere(array < 0)
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"{what} of table {self.name!r}: {array[row, column]} for layer"
                f" {self.layers[row].name!r} at {str(self.options[column])!r};"
                " give a finite number, or mask the option"
            )

    @property
    def exact(self) -> bool:
        """Whether all numbers are integers, so that totals are exact."""
        return self.values.dtype == np.int64 and float(self.fixed).is_integer()

    def chosen(self, choice: "Sequence[int] | NDArray[np.integer]") -> Numbers:
        """(L,) the number of each layer's chosen option."""
        picked = np.asarray(choice, dtype=np.int64)
        chosen: Numbers = np.take_along_axis(self.values, picked[:, None], axis=1)[:, 0]
        return chosen

    def total(self, choice: "Sequence[int] | NDArray[np.integer]") -> float:
        """The total of a choice (an option index per layer), ``fixed`` included."""
        numbers = self.chosen(choice)
        if self.reduce == "max":
            largest: float = numbers.max().item()
            return largest + self.fixed
        each = np.ascontiguousarray(numbers).data  # gives one number at a time
        if self.exact:
            return sum(each) + int(self.fixed)
        return math.fsum(itertools.chain(each, (self.fixed,)))

    def least(self) -> float:
        """The least total any choice has, this table looked at alone."""
        large = np.where(self.allowed, self.values.astype(np.float64), np.inf)
        return self.total(large.argmin(axis=1))

    def uniform(self, option: Option) -> tuple[int, ...] | None:
        """The choice of one option everywhere, or ``None`` where a layer may not take it.

        A layer with a single allowed option (a pinned one) keeps it.
        """
        if option not in self.options:
            return None
        column = self.options.index(option)
        single = self.allowed.sum(axis=1) == 1
        if not (self.allowed[:, column] | single).all():
            return None
        picked = np.where(self.allowed[:, column], column, self.allowed.argmax(axis=1))
        return tuple(int(i) for i in picked)


@dataclass(frozen=True, eq=False)
class Stages:
    """A cost that is the largest over stages of sums, such as peak memory over a schedule.

    Attributes:
        layers: The layers of the problem it belongs to.
        options: The options of the problem it belongs to.
        stages: For each stage the terms ``(layer index, option index, number)`` that add up when
            that option is chosen.
    """

    layers: Sequence[Layer]
    options: tuple[Option, ...]
    stages: tuple[tuple[tuple[int, int, float], ...], ...]
    unit: str
    name: str
    fixed: float = 0
    reference: float | None = None

    def __post_init__(self) -> None:
        """Check indices and numbers."""
        if not self.stages:
            raise ValueError(f"cost {self.name!r} has no stages; give at least one")
        for number, stage in enumerate(self.stages):
            for row, column, value in stage:
                if not (0 <= row < len(self.layers) and 0 <= column < len(self.options)):
                    raise ValueError(
                        f"stage {number} of cost {self.name!r} names layer {row}, option {column};"
                        f" there are {len(self.layers)} layers and {len(self.options)} options"
                    )
                if not abs(value) <= LARGEST:
                    raise ValueError(
                        f"stage {number} of cost {self.name!r}: {value} for layer"
                        f" {self.layers[row].name!r}; give a finite number"
                    )

    @property
    def exact(self) -> bool:
        """Whether all numbers are integers, so that totals are exact."""
        numbers = [value for stage in self.stages for _, _, value in stage]
        return all(isinstance(value, int) for value in [*numbers, self.fixed])

    def total(self, choice: Sequence[int]) -> float:
        """The largest stage of a choice, ``fixed`` included."""
        picked = list(choice)
        add = sum if self.exact else math.fsum
        return (
            max(add(v for r, c, v in stage if picked[r] == c) for stage in self.stages) + self.fixed
        )

    def least(self) -> float:
        """A lower bound on every total: each stage at its layers' cheapest options."""
        return max(self._least_of(stage) for stage in self.stages) + self.fixed

    def _least_of(self, stage: tuple[tuple[int, int, float], ...]) -> float:
        rows: dict[int, dict[int, float]] = {}
        for row, column, value in stage:
            options = rows.setdefault(row, dict.fromkeys(range(len(self.options)), 0))
            options[column] += value
        return sum(min(options.values()) for options in rows.values())


Cost = Table | Stages
