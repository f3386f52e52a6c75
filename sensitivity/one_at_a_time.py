"""One layer quantized, the network run, the output measured: what `kl`, `jsd` and others share.

Meanwhile the other layers are left alone (the literature), are at random options (MixQuant, 2026),
or have those of an allocation. Each layer, option and draw is a unit of the sweep.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.batches import checked
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Given, Measure, Scores
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Mask, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Context = str | Given
"""``alone``, ``random``, an option that all layers have, such as ``w8a8``, or an allocation."""

Place = tuple[int, int, int]


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
    """

    title: str
    measure: Callable[[Task], Measure]
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

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
        check_deterministic(task.model, checked(task.batches)[0])
        mask = network.mask(options)
        networks = self._networks(network, options, mask)
        modules = {layer.name: layer.modules for layer in network.layers}
        names = [name for members in modules.values() for name in members]
        bench = Bench(task.model, task.batches, names, recipe)
        scores = Scores(self.measure(task), bench, task.batches, modules)
        fixed = self._whole(scores, networks[0], sweep) if self._allocation else 0.0
        values, stderr = self._gains(scores, options, networks, mask, sweep)
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
        scores: Scores,
        options: Sequence[Option],
        networks: Sequence[Given],
        mask: Mask,
        sweep: Sweep,
    ) -> tuple[Floats, Floats | None]:
        """(L, K) means, and their standard errors where there is more than one row or draw."""
        asked: dict[Unit, tuple[Place, Option, Given]] = {}
        for row, layer in enumerate(scores.modules):  # a layer's options share what is before it
            for draw, network in enumerate(networks):
                around = dict(network)
                if not self._allocation:
                    around.pop(layer, None)
                key = () if self.context == "alone" else (draw, _digest(around))
                for column in map(int, np.flatnonzero(mask[row])):
                    option = options[column]
                    asked[layer, str(option), *key] = (draw, row, column), option, around

        def compute(unit: Unit) -> list[float]:
            _, option, around = asked[unit]
            return scores.gain(str(unit[0]), option, around)

        found = sweep.run(self.title, list(asked), compute)
        means = np.zeros((len(networks), *mask.shape))
        errors = np.zeros_like(means)
        for (place, *_), (mean, *error) in zip(asked.values(), found, strict=True):
            means[place], errors[place] = mean, sum(error)
        if len(networks) > 1:
            spread = means.std(axis=0, ddof=1) / len(networks) ** 0.5
            return means.mean(axis=0), np.hypot(spread, errors.mean(axis=0))
        return means[0], errors[0] if len(found[0]) > 1 else None

    @property
    def _allocation(self) -> bool:
        """Whether the other layers have the options of an allocation."""
        return self.context not in ("alone", "random")

    def _whole(self, scores: Scores, given: Given, sweep: Sweep) -> float:
        unit: Unit = ("the allocation", _digest(given))
        ((gain,),) = sweep.run(self.title, [unit], lambda _: [scores.whole(given)])
        return gain

    def _networks(
        self, network: Network, options: Sequence[Option], mask: Mask
    ) -> Sequence[dict[str, Option]]:
        """The option of every layer, for each draw; none where they are left alone."""
        names = [layer.name for layer in network.layers]
        if self.context == "alone":
            return [{}]
        if self.context == "random":
            return [self._drawn(draw, names, options, mask) for draw in range(self.draws)]
        if isinstance(self.context, str):
            pinned = np.flatnonzero(mask.sum(axis=1) == 1)
            given = dict.fromkeys(names, Option.parse(self.context))
            return [given | {names[row]: options[int(mask[row].argmax())] for row in pinned}]
        for name in self.context:
            if name not in names:
                raise ValueError(
                    f"the context has an option for {name!r}, which is no layer of this network;"
                    f" it has {', '.join(map(repr, names[:5]))}"
                )
        return [dict(self.context)]

    def _drawn(
        self, draw: int, names: Sequence[str], options: Sequence[Option], mask: Mask
    ) -> dict[str, Option]:
        random = np.random.default_rng([self.seed, draw])
        columns = [int(random.choice(np.flatnonzero(may))) for may in mask]
        return {name: options[column] for name, column in zip(names, columns, strict=True)}


def check_context(context: Context, draws: int) -> None:
    """``ValueError`` where this is no context, or there are no draws of it."""
    if draws < 1:
        raise ValueError(f"draws is {draws!r}; wanted at least 1")
    if isinstance(context, Mapping):
        for layer, option in context.items():
            if not isinstance(option, Option):
                raise ValueError(  # noqa: TRY004  (a setting like any other)
                    f"the context gives layer {layer!r} {option!r}; wanted an option, such as"
                    " Option.parse('w8a8')"
                )
        return
    try:
        known = context in ("alone", "random") or bool(str(Option.parse(context)))
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(
            f"no context is named {context!r}; write 'alone', 'random' or an option that all layers"
            " have, such as 'w8a8', or give an allocation itself"
        )


def _digest(given: Given) -> str:
    text = repr(sorted((name, str(option)) for name, option in given.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
