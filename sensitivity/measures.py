"""What is read off the output of a network with some layers quantized, and how sure it is.

Of a bench's copy of the model; the float outputs are kept, and so is what lies before the first
quantized layer (:mod:`mpsearch.quant.replay`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mpsearch.batches import call, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.quant.bench import Bench

Given = Mapping[str, Option]
"""An option for each of some layers."""

Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Measure:
    """What is read off outputs.

    Attributes:
        rows: (N,) numbers, one for each sample or each batch, whose weighted mean is the result;
            from lists of the float network's outputs and of a quantized one's. Where there is
            ``whole`` (N, C), several for each.
        unit: What they count, given the float output.
        by_batch: Whether each output must be that of one batch, because ``rows`` reads the batches.
        separate: Whether each number is of its own sample alone, so that those of some samples do
            not ask for the others; one of a batch always is.
        whole: What makes those of a mean of what was found for all samples, once that is known.
    """

    rows: Callable[[Sequence[Any], Sequence[Any]], Tensor]
    unit: Callable[[Tensor], str]
    by_batch: bool = False
    separate: bool = False
    whole: Callable[[Tensor], Tensor] | None = None


def compared(
    each: Callable[[Tensor, Tensor], Tensor],
    unit: Callable[[Tensor], str],
    whole: Callable[[Tensor], Tensor] | None = None,
) -> Measure:
    """A number for each sample, from what the float network says and the quantized one."""

    def rows(reference: Sequence[Any], outputs: Sequence[Any]) -> Tensor:
        pairs = zip(reference, outputs, strict=True)
        return torch.cat([each(tensor_of(one), tensor_of(other)) for one, other in pairs])

    return Measure(rows, unit, separate=True, whole=whole)


def judged(loss: Callable[[Any, Any], Any], batches: Sequence[Any]) -> Measure:
    """A loss of the task's own: one number a batch."""

    def rows(_: Sequence[Any], outputs: Sequence[Any]) -> Tensor:
        pairs = zip(outputs, batches, strict=True)
        return torch.tensor([_number(loss(*pair)) for pair in pairs], dtype=torch.float64)

    return Measure(rows, lambda _: "loss", by_batch=True)


def _number(value: Any) -> float:
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(
            f"the loss returned {type(value).__name__}{shape}; wanted one number a batch"
        ) from None


@dataclass(frozen=True, eq=False)
class Scores:
    """What a measure gains when layers of a bench's model are quantized.

    Attributes:
        measure: What is read off outputs.
        bench: The model, calibrated.
        batches: What it is run on.
        modules: Of each layer.
        known: What was found for networks that were run before, by :func:`key`.
    """

    measure: Measure
    bench: Bench
    batches: Sequence[Any]
    modules: Mapping[str, Sequence[str]]
    known: dict[Key, Tensor] = field(default_factory=dict, init=False, repr=False)
    _last: dict[Key, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a layer of which no module was called."""
        for layer, members in self.modules.items():
            if self.bench.called.isdisjoint(members):
                raise ValueError(
                    f"layer {layer!r} never runs on these batches, so quantizing it shows nothing;"
                    " give batches that reach it, or skip it"
                )

    def gain(self, layer: str, option: Option, around: Given) -> list[float]:
        """The mean gain of a layer at an option and, from several rows, its standard error.

        It is over the network ``around``: the float one where that is empty.
        """
        before = self.before(around)
        given = {**around, layer: option}
        rows = before if given == around else self._found(given)
        return self.mean(rows - before, f"layer {layer!r} at {str(option)!r}")

    def whole(self, given: Given) -> float:
        """The mean gain of a network over the float one."""
        return self.mean(self.before(given) - self.before({}), "the allocation")[0]

    @property
    def unit(self) -> str:
        """What the rows are counted in."""
        return self.measure.unit(self._one)

    def mean(self, rows: Tensor, where: str) -> list[float]:
        """The mean of (N,) samples' numbers and its standard error; ``where`` is for errors."""
        share = self._share(len(rows)).to(rows)
        mean = float((share * rows).sum())
        if not math.isfinite(mean):
            raise ValueError(
                f"{where}: the loss is {mean}; wanted a finite number: leave the layer or the"
                f" option out, or give another loss{self._half}"
            )
        if len(rows) < 2:
            return [mean]
        spread = (share * (rows - mean)).square().sum() * len(rows) / (len(rows) - 1)
        return [mean, float(spread.sqrt())]

    def _share(self, rows: int) -> Tensor:
        """What each row counts: each sample the same."""
        sizes = self._sizes if rows == len(self._sizes) else [1] * rows
        return torch.tensor(sizes, dtype=torch.float64) / sum(sizes)

    @property
    def _half(self) -> str:
        """What to do where numbers are too large for the model's type."""
        half = self._one.dtype == torch.float16
        return "; the output is in float16, which ends at 65504: try float32" if half else ""

    @cached_property
    def _sizes(self) -> list[int]:
        return [samples(batch) for batch in self.batches]

    @property
    def separate(self) -> bool:
        """Whether rows are better had part by part, and can be."""
        return not self.at_once and (self.measure.separate or self.measure.by_batch)

    @property
    def at_once(self) -> bool:
        """Whether one run of all samples fits the bench's memory, with nothing computed again."""
        fits = bool(self.bench.recipe.corrections) or sum(self._sizes) <= self.bench.most
        return self._joined and fits

    @cached_property
    def _one(self) -> Tensor:
        """The float network's output on some batch."""
        if self.at_once:
            return tensor_of(self._float[0])
        with torch.no_grad():
            return tensor_of(call(self.bench.model, self.batches[0]))

    @cached_property
    def _joined(self) -> bool:
        """Whether the bench's one batch holds all samples, so that it gives every output."""
        return samples(self.bench.batch) == sum(self._sizes) and self.by_sample

    @cached_property
    def by_sample(self) -> bool:
        """Whether the measure can be given samples of several batches that were run together."""
        if not self.measure.by_batch:
            return True
        with torch.no_grad():
            whole = call(self.bench.model, self.batches[0])
        return isinstance(whole, Tensor) and len(whole) == self._sizes[0]

    def _outputs(self, given: Given) -> list[Any]:
        """What the model returns with some layers quantized, batch by batch or at once."""
        options = {name: o for layer, o in given.items() for name in self.modules[layer]}
        if not self._joined:
            with torch.no_grad(), self.bench.at(options) as model:
                return [call(model, batch) for batch in self.batches]
        output = self.bench.outputs(options)
        return list(output.split(self._sizes)) if self.measure.by_batch else [output]

    @cached_property
    def _float(self) -> list[Any]:
        return self._outputs({})

    @cached_property
    def _float_rows(self) -> Tensor:
        """Those of the float network; ``ValueError`` where they are none to gain over."""
        rows = self._found({})
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"the loss of the float model is {float(rows.sum())}; wanted a finite number: check"
                f" the model's output and the loss on these batches{self._half}"
            )
        return rows

    def before(self, around: Given) -> Tensor:
        """Rows of what a gain is over; those of the last network are kept."""
        float_rows = self._float_rows  # the first run of all
        if not around:
            return float_rows
        if key(around) not in self._last:
            rows = self._found(around)
            self._last.clear()
            self._last[key(around)] = rows
        return self._last[key(around)]

    def _found(self, given: Given) -> Tensor:
        rows = self.known.get(key(given))
        if rows is None:
            reference = self._float
            outputs = self._outputs(given) if given else reference
            rows = self.measure.rows(reference, outputs).double()
        return self.measure.whole(rows) if self.measure.whole else rows


def key(given: Given) -> Key:
    """A network by its options, whatever their order."""
    return tuple(sorted((layer, str(option)) for layer, option in given.items()))
