"""What noise of a known relative size does to the output prices every format at once.

From HIGGS (Malinovskii et al. 2024, arXiv 2411.17525): for small relative errors t the loss grows
by ``alpha t^2`` in each layer, whatever made the error, and layers add up (the linearity theorem).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch import batches
from mpsearch.batches import call, checked, divergence, parts, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Layer, Network
from mpsearch.quant.bench import Bench
from mpsearch.quant.corrections import Moments, correcting, float_moments, undone
from mpsearch.quant.memory import divided
from mpsearch.quant.recipe import Recipe
from mpsearch.quant.replay import Replay
from mpsearch.quant.spreading import refuse
from mpsearch.sensitivity.measures import judged
from mpsearch.sensitivity.relative_error import (
    check_called,
    members,
    relative_input_errors,
    relative_weight_errors,
)
from mpsearch.sensitivity.seeded import seeded
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic, module_weight, sites

Role = Literal["weight", "activation"]
Place = tuple[int, ...]


@dataclass(frozen=True)
class Noise:
    """``alpha_W ||Q(W) - W||^2 / ||W||^2``, and the same of the layer's input, added up.

    Gaussian noise of relative size t is put on a layer's weights, or on what it reads, and alpha is
    the slope of the loss against t^2 through the origin, by least squares. Each draw is used with
    both signs, so that slopes of the first order cancel, and the recipe's corrections follow it.
    HIGGS has noise on weights only, and no corrections.

    The loss is the divergence from the float output on the recipe's calibration samples; where the
    task has a loss of its own, what that gains on all batches. The standard error is over samples,
    for a loss of the task's own over batches, and over draws. Where nothing is corrected, samples
    are run in parts that fit in memory; noise on inputs is relative to what is read at once.

    Attributes:
        sizes: Relative sizes t.
        draws: Of noise, each for both signs and all sizes; and how many random networks there are.
        seed: Of both.
        context: What all layers have, the noise on top: :mod:`mpsearch.sensitivity.surroundings`.
            The divergence is then from that network's own output.
    """

    sizes: tuple[float, ...] = (0.05, 0.1)
    draws: int = 2
    seed: int = 0
    context: Context = "alone"

    def __post_init__(self) -> None:
        """Refuse settings that fit no slope."""
        if not self.sizes or not all(0 < size < 1 for size in self.sizes):
            raise ValueError(f"sizes are {self.sizes!r}; wanted numbers above 0 and below 1")
        check_context(self.context, self.draws)

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table in ``KL (nats)`` or the like, or in ``loss``.

        Raises:
            ValueError: Batches, a model, a format or a correction it cannot work with, or a loss
                that is not finite.
        """
        refuse(recipe, "weights with noise on them have none")
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        task, network, options, bench = at.task, at.network, at.options, at.bench
        check_called(at.model, task, network)
        shifts: dict[Role, Floats] = {
            "weight": relative_weight_errors(task, network, options, at.recipe, at.sweep),
            "activation": relative_input_errors(at),
        }
        if at.given:
            memory = float(at.sweep.memory)
            bench = Bench(at.model, task.batches, members(network), at.recipe, memory=memory)
        pairs: list[tuple[Role, int]] = [
            (role, row)
            for role, errors in shifts.items()
            if errors.any()
            for row in range(len(errors))
        ]
        found = self._slopes(task, bench, network.layers, pairs, at.study)
        values = np.zeros((len(network.layers), len(options)))
        squares, share = np.zeros_like(values), _share(task, found, bench)
        for (role, row), slopes in zip(pairs, found, strict=True):
            alpha, error = _alpha(slopes, share)
            values[row] += alpha * shifts[role][row]
            squares[row] += (error * shifts[role][row]) ** 2
        return Table(
            network.layers,
            options,
            values,
            _unit(task, bench),
            stderr=np.sqrt(squares) if len(share) > 1 or self.draws > 1 else None,
            allowed=network.mask(options),
        )

    def _slopes(
        self,
        task: Task,
        bench: Bench,
        layers: Sequence[Layer],
        pairs: Sequence[tuple[Role, int]],
        sweep: Sweep,
    ) -> list[Floats]:
        """(draws, rows) slopes of each role and layer."""
        whole = task.loss is not None or bench.recipe.corrections
        pieces = divided([bench.batch], samples(bench.batch) if whole else bench.most)
        units: dict[Unit, tuple[Place, Role, int]] = {
            (repr(self), role, *place, layers[row].name): (place, role, row)
            for place in pieces
            for role, row in pairs
        }

        @lru_cache(maxsize=1)
        def noisy(*place: int) -> _Noisy:
            return _Noisy(self, task, bench, pieces[place])

        def compute(unit: Unit) -> list[float]:
            place, role, row = units[unit]
            slopes: list[float] = noisy(*place).slopes(layers[row], role, row).flatten().tolist()
            return slopes

        found = [
            np.reshape(one, (self.draws, -1)) for one in sweep.run("noise", list(units), compute)
        ]
        return [np.concatenate(found[i :: len(pairs)], axis=1) for i in range(len(pairs))]


def _alpha(slopes: Floats, share: Floats) -> tuple[float, float]:
    """The mean of (draws, rows) slopes, and its standard error."""
    by_row, by_draw = slopes.mean(axis=0), slopes @ share
    mean, count, variance = float(share @ by_row), len(by_row), 0.0
    if count > 1:
        variance += float(((share * (by_row - mean)) ** 2).sum()) * count / (count - 1)
    if len(by_draw) > 1:
        variance += float(by_draw.var(ddof=1)) / len(by_draw)
    return mean, math.sqrt(variance)


def _share(task: Task, slopes: Sequence[Floats], bench: Bench) -> Floats:
    """(rows,) of each row in the mean: by the samples of a batch, else all alike."""
    if task.loss is None:
        rows = slopes[0].shape[1] if slopes else samples(bench.batch)
        return np.full(rows, 1 / rows)
    sizes = np.array([samples(batch) for batch in task.batches], dtype=np.float64)
    return np.array(sizes / sizes.sum())


@torch.no_grad()
def _unit(task: Task, bench: Bench) -> str:
    if task.loss:
        return "loss"
    return batches.unit(tensor_of(call(bench.model, parts(bench.batch, 1)[0])))


@dataclass(frozen=True, eq=False)
class _Noisy:
    """Losses of a bench's model with noise on one layer, a row for each sample or batch.

    Attributes:
        batch: Calibration samples that are run at once; no matter for a loss of the task's own.
    """

    noise: Noise
    task: Task
    bench: Bench
    batch: Any

    def slopes(self, layer: Layer, role: Role, number: int) -> Floats:
        """(draws, rows) slopes of the loss against the squared size."""
        squares = np.square(self.noise.sizes)
        found = [
            [
                np.mean([self._gain(layer, role, sign * t, number, draw) for sign in (1, -1)], 0)
                for t in self.noise.sizes
            ]
            for draw in range(self.noise.draws)
        ]  # (draws, sizes, rows)
        slopes: Floats = np.einsum("dsr,s->dr", np.array(found), squares) / (squares**2).sum()
        if not np.isfinite(slopes).all():
            raise ValueError(
                f"layer {layer.name!r}: the loss is {slopes.sum()} with noise on its {role}; wanted"
                " a finite number: leave the layer out, give smaller sizes, or give the model in"
                " float32"
            )
        return slopes

    @cached_property
    def _replay(self) -> Replay:
        return self.bench.remembered(self.batch)

    @cached_property
    def _float(self) -> Floats:
        found = self._losses([])
        if not np.isfinite(found).all():
            raise ValueError(
                f"the loss of the float model is {found.sum()}; wanted a finite number: check the"
                " model's output and the loss on these batches"
            )
        return found

    def _gain(self, layer: Layer, role: Role, size: float, number: int, draw: int) -> Floats:
        reference, _ = self._float, self._moments  # while the copy is still the float one
        place = (self.noise.seed, number, role == "activation", draw)
        put = self._on_weights if role == "weight" else self._on_inputs
        with put(layer, size, place) as names:
            return self._losses(names) - reference

    @torch.no_grad()
    def _losses(self, names: Sequence[str]) -> Floats:
        """(rows,) of the model as it now is, with these modules changed, and corrected."""
        bench, layers = self.bench, {name: self._layers[name] for name in names}
        with undone(bench.model, list(layers.values())):
            if self.task.loss is None:
                with self._correcting(layers):
                    output = self._replay.run(names) if names else self._replay.reference
                return np.array(divergence(self._replay.reference, output).numpy(force=True))
            if layers and bench.recipe.corrections:
                with self._correcting(layers):
                    call(bench.model, bench.batch)
            each = [
                judged(self.task.loss, [batch]).rows((), [call(bench.model, batch)])
                for batch in self.task.batches
            ]
        return np.array(torch.cat(each).numpy(force=True))

    @cached_property
    def _layers(self) -> dict[str, nn.Module]:
        return {site.name: site.module for site in sites(self.bench.model)}

    @cached_property
    def _moments(self) -> Moments | None:
        bench = self.bench
        if not bench.recipe.corrections:
            return None
        with torch.no_grad():
            run = partial(call, bench.model, bench.batch)
            return float_moments(bench.model, self._layers, run, bench.recipe.corrections)

    def _correcting(self, layers: Mapping[str, nn.Module]) -> AbstractContextManager[object]:
        if self._moments is None or not layers:
            return nullcontext()
        return correcting(self._moments, layers)

    @contextmanager
    def _on_weights(self, layer: Layer, size: float, place: Place) -> Iterator[list[str]]:
        """Noise on each distinct weight of a layer, relative to its own norm."""
        generator = seeded(*place)
        model = self.bench.model
        weights = {id(w): w for w in (module_weight(model, name) for name in layer.modules)}
        before = {key: weight.data for key, weight in weights.items()}
        try:
            for weight in weights.values():
                weight.data = _moved(weight.data, size, generator)
            yield [site.name for site in sites(model) if id(site.weight) in weights]
        finally:
            for key, weight in weights.items():
                weight.data = before[key]

    @contextmanager
    def _on_inputs(self, layer: Layer, size: float, place: Place) -> Iterator[list[str]]:
        """Noise on what a layer's members read, the same where they read one tensor."""
        hooks = [
            self.bench.model.get_submodule(name).register_forward_pre_hook(
                partial(_disturb, size, seeded(*place)), with_kwargs=True
            )
            for name in layer.modules
        ]
        try:
            yield list(layer.modules)
        finally:
            for hook in hooks:
                hook.remove()


def _disturb(
    size: float, generator: torch.Generator, _: nn.Module, args: Any, kwargs: dict[str, Any]
) -> Any:
    for place, x in enumerate(args):
        if isinstance(x, Tensor) and x.is_floating_point():
            moved = _moved(x, size, generator)
            return (*args[:place], moved, *args[place + 1 :]), kwargs
    for key, x in kwargs.items():
        if isinstance(x, Tensor) and x.is_floating_point():
            return args, kwargs | {key: _moved(x, size, generator)}
    return None


def _moved(x: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """The tensor with Gaussian noise of its root mean square times ``size``."""
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    scale = float(x.double().square().mean().sqrt()) * size
    return (x + scale * noise).to(x.dtype)
