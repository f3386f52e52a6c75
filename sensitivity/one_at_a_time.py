"""One layer quantized, the network run, the output measured: what `kl`, `jsd` and others share.

Meanwhile the other layers are left alone (the literature), are at random options (MixQuant, 2026),
or have those of an allocation. Each layer, option and draw is a unit of the sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.batches import checked, joined
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Given, Measure, Scores
from mpsearch.sensitivity.streamed import Streamed
from mpsearch.sensitivity.surroundings import Context, digest, networks
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Mask, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Place = tuple[int, int, int]

_FEW = 16  # samples that show whether a model is deterministic


@dataclass(frozen=True)
class OneAtATime:
    """What a measure gains when one layer is quantized.

    Left alone, or among layers at random options, it gains over the same network with that layer
    unquantized. In an allocation it gains over the allocation itself, as though one layer were
    changed: the table's ``fixed`` is the allocation's own gain over float, so that its total is
    what was measured of it.

    The standard error is over rows of the measure: samples or batches. That of several draws has
    their spread in it too, squared; as the samples are the same in all, their errors go together.

    Attributes:
        title: The estimator's name, in the key of every unit.
        measure: What is measured on a task.
        context: What the other layers have.
        draws: How many random networks, the same ones for every layer and option.
        seed: Of their options: those that the layers may take, all equally likely.
        only: (L, K) places that are asked, where not all are; the numbers of others are 0.
    """

    title: str
    measure: Callable[[Task], Measure]
    context: Context = "alone"
    draws: int = 4
    seed: int = 0
    only: Mask | None = None

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table in the unit of the measure.

        Raises:
            ValueError: Batches, a model, a context or a format it cannot work with, or a measure
                that is not finite.
        """
        check_deterministic(task.model, joined(checked(task.batches)[:1], _FEW))
        mask = network.mask(options)
        contexts = networks(self, network, options)
        modules = {layer.name: layer.modules for layer in network.layers}
        names = [name for members in modules.values() for name in members]
        bench = Bench(task.model, task.batches, names, recipe, memory=float(sweep.memory))
        scores = Scores(self.measure(task), bench, task.batches, modules)
        streamed = Streamed(self.title, self.measure, task, scores)
        fixed = self._whole(streamed, contexts[0], sweep) if self._allocation else 0.0
        places = mask if self.only is None else mask & self.only
        values, stderr = self._gains(streamed, options, contexts, places, sweep)
        return Table(
            network.layers,
            tuple(options),
            values,
            scores.unit,
            stderr=stderr,
            allowed=mask,
            fixed=fixed,
        )

    def _gains(
        self,
        streamed: Streamed,
        options: Sequence[Option],
        contexts: Sequence[Given],
        places: Mask,
        sweep: Sweep,
    ) -> tuple[Floats, Floats | None]:
        """(L, K) means, and their standard errors where there is more than one row or draw."""
        scores, asked = streamed.scores, dict[Unit, tuple[Place, Given, Given]]()
        for row, layer in enumerate(scores.modules):  # a layer's options share what is before it
            for draw, network in enumerate(contexts):
                around = dict(network)
                if not self._allocation:
                    around.pop(layer, None)
                key = () if self.context == "alone" else (draw, digest(around))
                for column in map(int, np.flatnonzero(places[row])):
                    option = options[column]
                    given = {**around, layer: option}
                    asked[layer, str(option), *key] = (draw, row, column), around, given

        def compute(unit: Unit) -> list[float]:
            layer = str(unit[0])
            _, around, given = asked[unit]
            return scores.gain(layer, given[layer], around)

        missing = [asked[unit][1:] for unit in sweep.missing(self.title, asked)]
        streamed.know([given for pair in missing for given in pair], sweep)
        found = sweep.run(self.title, list(asked), compute)
        means = np.zeros((len(contexts), *places.shape))
        errors = np.zeros_like(means)
        for (place, *_), (mean, *error) in zip(asked.values(), found, strict=True):
            means[place], errors[place] = mean, sum(error)
        if len(contexts) > 1:
            spread = means.std(axis=0, ddof=1) / len(contexts) ** 0.5
            return means.mean(axis=0), np.hypot(spread, errors.mean(axis=0))
        return means[0], errors[0] if all(len(each) > 1 for each in found) else None

    @property
    def _allocation(self) -> bool:
        """Whether the other layers have the options of an allocation."""
        return self.context not in ("alone", "random")

    def _whole(self, streamed: Streamed, given: Given, sweep: Sweep) -> float:
        unit: Unit = ("the allocation", digest(given))
        streamed.know([given for _ in sweep.missing(self.title, [unit])], sweep)
        ((gain,),) = sweep.run(self.title, [unit], lambda _: [streamed.scores.whole(given)])
        return gain
