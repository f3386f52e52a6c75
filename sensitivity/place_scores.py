"""Scores of layers divided among their channels or groups, and such places measured.

A sum over weights of what each one's error costs is one over the places they are in.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsearch.batches import call, samples, tensor_of
from mpsearch.batches import unit as unit_of
from mpsearch.formats import Format, Option
from mpsearch.network import Network
from mpsearch.places import Block, Places
from mpsearch.quant.bench import Bench
from mpsearch.quant.input_hessian import as_rows
from mpsearch.quant.memory import divided, fitting
from mpsearch.quant.places import KEPT, Mixed, rounded_apart, sums, weights_of
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.fisher import Fisher, sample_gradients, slope_of_each
from mpsearch.sensitivity.gauss_newton import Random
from mpsearch.sensitivity.hessian_trace import HessianTrace
from mpsearch.sensitivity.input_hessian import input_hessians
from mpsearch.sensitivity.kl import KL, measure_of
from mpsearch.sensitivity.measures import Scores
from mpsearch.sensitivity.salience import Salience, stiff
from mpsearch.sensitivity.seeded import seeded
from mpsearch.sensitivity.slopes import loss_of, reached, slopes
from mpsearch.sensitivity.surroundings import Around
from mpsearch.sensitivity.taylor import Taylor
from mpsearch.sensitivity.traces import Traces
from mpsearch.sensitivity.uses import Uses
from mpsearch.sensitivity.weight_error import WeightError
from mpsearch.sensitivity.weights import Stored, stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Mask
from mpsearch.task import Task
from mpsearch.tracing import module_weight, output_first

_FULL = Format.parse("fp32")
Said = tuple[Floats, Floats | None, str]
"""(places, options) numbers, their standard errors, and the unit."""


@dataclass(frozen=True, eq=False)
class Study:
    """The places of a model in its surroundings, and what options change in them.

    Attributes:
        at: The surroundings, of the network whose places they are.
        places: Of that network.
    """

    at: Around
    places: Places

    @property
    def task(self) -> Task:
        """Its model in float."""
        return self.at.task

    @property
    def options(self) -> tuple[Option, ...]:
        """All that are asked for."""
        return self.at.options

    @property
    def recipe(self) -> Recipe:
        """How weights are rounded."""
        return self.at.recipe

    @property
    def sweep(self) -> Sweep:
        """Of these surroundings alone."""
        return self.at.study

    @cached_property
    def mask(self) -> Mask:
        """(layers, options) which they may take."""
        return self.network.mask(self.options)

    @property
    def network(self) -> Network:
        """Whose places they are."""
        return self.places.coarse

    @cached_property
    def layers(self) -> tuple[tuple[Stored, ...], ...]:
        """The weights of each layer."""
        return stored(self.task.model, self.network)

    @cached_property
    def weights(self) -> list[tuple[Block, Stored]]:
        """Each weight with the block of places that it is."""
        found: list[tuple[Block, Stored]] = []
        for row, layer in enumerate(self.layers):
            blocks = [block for block, _ in weights_of(self.task.model, self.places, row)]
            found += zip(blocks, layer, strict=True)
        return found

    @cached_property
    def _errors(self) -> dict[tuple[int, Format], Tensor]:
        return {}

    def error(self, number: int, option: Option) -> Tensor | None:
        """(rows, columns) Q(W) - W of a weight, or ``None`` where the option leaves it alone."""
        form = option.weight.as_weight()
        if not form.quantized:
            return None
        if (number, form) not in self._errors:
            block, one = self.weights[number]
            first = output_first(one.weight.detach(), one.module)
            try:
                made = rounded_apart(first, form, block.width, self.recipe.ranges)
            except ValueError as reason:
                raise ValueError(f"layer {one.name!r}: {reason}") from None
            error = made.double() - first.double()
            self._errors[number, form] = error.reshape(block.shape)
        return self._errors[number, form]

    def scored(
        self,
        importance: Iterable[Any],
        size: Callable[[Tensor], Tensor] = torch.square,
        options: Sequence[Option] = (),
    ) -> Floats:
        """(..., places, options) sums of importance times size of error.

        ``importance`` has a number for each weight, or a tensor (..., rows, columns).
        """
        blocks = []
        for number, ((block, _), each) in enumerate(zip(self.weights, importance, strict=True)):
            columns = []
            for option in options or self.options:
                error = self.error(number, option)
                lost = torch.zeros(block.shape) if error is None else size(error)
                columns.append(sums(each * lost.double(), block.width))
            blocks.append(torch.stack(columns, dim=-1))
        return torch.cat(blocks, dim=-2).numpy()

    @property
    def bench(self) -> Bench:
        """A calibrated copy of the model."""
        return self.at.bench

    @property
    def alone(self) -> list[Option]:
        """The options without what they say of activations."""
        return [Option({"weight": o.weight, "activation": _FULL}) for o in self.options]

    def key(self, score: Any) -> Unit:
        """What tells results from those of other settings."""
        names = [(layer.name, layer.modules) for layer in self.network.layers]
        said = repr((names, self.places.per, self.places.group, score, *map(str, self.options)))
        return (hashlib.sha256(said.encode()).hexdigest()[:16],)

    def reached(self, rows: Floats) -> Floats:
        """Rows with 0 for NaN, once every layer has a gradient in some batch."""
        firsts = [self.places.rows(row).start for row in range(len(self.network.layers))]
        reached(rows[:, firsts], self.network)
        return np.nan_to_num(rows)

    def laid(self, number: int, slope: Tensor) -> Tensor:
        """(rows, columns) the gradient of a weight, laid out as that."""
        block, one = self.weights[number]
        if not torch.isfinite(slope).all():
            raise ValueError(
                f"layer {one.name!r}: a gradient is not finite; run the model in float32, or scale"
                " its loss"
            )
        return output_first(slope.detach().double(), one.module).reshape(block.shape)


def _weight_error(study: Study, _: WeightError) -> Said:
    return study.scored([1.0] * len(study.weights)), None, "squared weight error"


def _hessian_trace(study: Study, score: HessianTrace) -> Said:
    traces, how = score.traces(Traces.of(study.at.inside, study.network), study.sweep)
    traces = traces / [one.weight.numel() for _, one in study.weights]
    count = len(traces)
    stderr = study.scored(traces.std(axis=0, ddof=1) / count**0.5) if count > 1 else None
    unit = f"mean trace x squared weight error, {how}"
    return study.scored(traces.mean(axis=0)), stderr, unit


def _salience(study: Study, score: Salience) -> Said:
    hessians = input_hessians(study.at.inside, study.layers)
    importance = []
    for block, one in study.weights:
        try:
            columns = stiff(hessians[one.name], score)
        except ValueError as reason:
            raise ValueError(f"layer {one.name!r}: {reason}") from None
        first = output_first(one.weight.detach(), one.module)
        number = output_first(torch.arange(first.numel()).view(first.shape), one.module)
        place = as_rows(number, hessians.modules[one.name])
        found = torch.empty(first.numel(), dtype=torch.float64)
        found[place.long().flatten()] = columns[:, None, :].expand(place.shape).flatten() / 2
        importance.append(found.reshape(block.shape))
    name = {"gptq": "GPTQ", "spqr": "SpQR"}[score.method]
    return study.scored(importance), None, f"rank score ({name})"


def _fisher(study: Study, score: Fisher) -> Said:
    task, inside = study.at.inside, Traces.of(study.at.inside, study.network)
    model, weights = inside.model, inside.weights
    with torch.no_grad():
        output = call(model, task.batches[0])
    alone = task.loss is not None and not isinstance(output, Tensor)

    def scored(batch: Any, random: Random) -> Floats:
        count = samples(batch)
        with torch.enable_grad(), Uses(weights if count > 1 else ()) as uses:
            value = slope_of_each(task, call(model, batch), batch, random)
        edges = [use.edge for found in uses.found for use in found]
        found = slopes(value, edges or weights)

        def squares(number: int) -> Tensor:
            """(samples, rows, columns) of a weight."""
            weight = weights[number]
            pairs = [(use, found[id(use.edge)]) for use in uses.found[number]] if edges else []
            kept = [(use, slope) for use, slope in pairs if slope is not None]
            each = sample_gradients(kept, weight, count) if edges else found[id(weight)]
            if each is None:
                return torch.full((count, *study.weights[number][0].shape), torch.nan)
            rows = each if edges else [each]
            return torch.stack([study.laid(number, slope) for slope in rows]).square() / 2

        return study.scored(map(squares, range(len(weights))))

    most = 1
    if not alone and inside.together():
        memory = float(study.sweep.memory)
        most = fitting(lambda x: scored(x, seeded(score.seed)), task.batches, memory)
    of = divided(task.batches, most)

    def compute(unit: Unit) -> list[float]:
        batch, first, end = map(int, unit[-3:])
        directions = [seeded(score.seed, batch, sample) for sample in range(first, end)]
        made: list[float] = scored(of[batch, first, end], directions).flatten().tolist()
        return made

    units: list[Unit] = [(*study.key(score), *place) for place in of]
    found = study.sweep.run("granular", units, compute)
    shape = (-1, len(study.places), len(study.options))
    rows = study.reached(np.concatenate([np.reshape(one, shape) for one in found]))
    count = len(rows)
    stderr = rows.std(axis=0, ddof=1) / count**0.5 if count > 1 else None
    said = unit_of(tensor_of(output)) if task.loss is None else "loss"
    kind = "" if task.loss is None else "empirical "
    return rows.mean(axis=0), stderr, f"{said}, by a diagonal {kind}Fisher matrix"


def _taylor(study: Study, score: Taylor) -> Said:
    task, bench = study.task, study.bench
    weights = [module_weight(bench.model, one.name).requires_grad_() for _, one in study.weights]

    def compute(unit: Unit) -> list[float]:
        column, batch = int(unit[-2]), task.batches[int(unit[-1])]
        layers = [study.network.layers[row] for row in np.flatnonzero(study.mask[:, column])]
        option = study.options[column]
        given = {name: option for layer in layers for name in layer.modules}
        with torch.no_grad():
            reference = tensor_of(call(bench.model, batch))
        with bench.at(study.at.given or given) as model, torch.enable_grad():
            value = loss_of(task, call(model, batch), batch, reference)
            found = slopes(value, weights)
        importance = [
            torch.nan if slope is None else study.laid(number, slope).abs()
            for number, slope in enumerate(map(found.get, map(id, weights)))
        ]
        made: list[float] = study.scored(importance, torch.abs, [option]).flatten().tolist()
        return made

    count, columns = len(task.batches), range(len(study.options))
    units: list[Unit] = [(*study.key(score), k, number) for k in columns for number in range(count)]
    found = study.sweep.run("granular", units, compute)
    rows = study.reached(np.reshape(found, (len(columns), count, -1)).transpose(1, 2, 0))
    sizes = np.array([samples(batch) for batch in task.batches], float)
    share = (sizes / sizes.sum())[:, None, None]
    values = (share * rows).sum(axis=0)
    spread = ((share * (rows - values)) ** 2).sum(axis=0)
    stderr = np.sqrt(spread * count / (count - 1)) if count > 1 else None
    return values, stderr, "rank score (AutoRound)"


def _kl(study: Study, _: KL) -> Said:
    bench, batches = study.bench, study.task.batches
    mixed, measure = Mixed(bench, study.places), measure_of(study.task)
    modules = {layer.name: layer.modules for layer in study.network.layers}
    scores = Scores(measure, bench, batches, modules)
    before, choice = scores.before({}), np.full(len(study.places), KEPT)
    with torch.no_grad():
        reference = [call(bench.model, batch) for batch in batches]

    def compute(unit: Unit) -> list[float]:
        place, column = int(unit[-2]), int(unit[-1])
        row = int(study.places.tensors[place])
        if not (study.mask[row, column] and study.options[column].weight.quantized):
            return scores.mean(0 * before, "")
        choice[place] = column
        try:
            with torch.no_grad(), mixed.at(choice, study.alone, [row]) as model:
                outputs = [call(model, batch) for batch in batches]
        finally:
            choice[place] = KEPT
        where = f"layer {study.places[place].name!r} at {str(study.options[column])!r}"
        return scores.mean(measure.rows(reference, outputs).double() - before, where)

    shape = len(study.places), len(study.options)
    units: list[Unit] = [(*study.key("kl"), *place) for place in np.ndindex(shape)]
    found = np.array(study.sweep.run("granular", units, compute))
    stderr = found[:, 1].reshape(shape) if found.shape[1] > 1 else None
    return found[:, 0].reshape(shape), stderr, scores.unit


SCORED: Mapping[type, Callable[[Study, Any], Said]] = {
    WeightError: _weight_error,
    HessianTrace: _hessian_trace,
    Salience: _salience,
    Fisher: _fisher,
    Taylor: _taylor,
    KL: _kl,
}
