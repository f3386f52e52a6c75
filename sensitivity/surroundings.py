"""The networks that sensitivities are taken in: what layers have while one of them is judged.

They are left alone, as in the literature, are at random options (MixQuant, 2026), or have those of
an allocation. A score that needs gradients, curvature, activations or relevance takes them in a
copy of the network that is quantized so: weights are rounded values, inputs are rounded as they
are read, and gradients pass straight through what is not clipped. One copy serves all layers, so
that each has its own option of the context, too. What an option would change in a layer is still
its error against the float weight, and against what the layer reads there before that is rounded.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Protocol

import numpy as np
from torch import nn

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench, changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Given
from mpsearch.sweep import Sweep
from mpsearch.tables import Mask, Table
from mpsearch.task import Task

Context = str | Given
"""``alone``, ``random``, an option that all layers have, such as ``w8a8``, or an allocation."""


class InContext(Protocol):
    """Settings of an estimator.

    Attributes:
        context: What the layers have.
        draws: How many random networks.
        seed: Of their options.
    """

    @property
    def context(self) -> Context: ...  # noqa: D102
    @property
    def draws(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Around:
    """What an estimator is asked, and one network to take its statistics in.

    Attributes:
        task: As given, its model in float.
        network: Whose layers.
        options: Which are asked for.
        recipe: How layers are quantized.
        sweep: For results that the surroundings do not enter.
        given: What modules have here; none where layers are left alone.
        calibrated: Makes the bench, once for all networks.
    """

    task: Task
    network: Network
    options: tuple[Option, ...]
    recipe: Recipe
    sweep: Sweep
    given: Given
    calibrated: Callable[[], Bench]

    @property
    def bench(self) -> Bench:
        """Of the float model: where grids and rounded weights are from."""
        return self.calibrated()

    @cached_property
    def model(self) -> nn.Module:
        """A quantized copy of the bench's model; where layers are left alone, that model itself."""
        if not self.given:
            return self.bench.model
        with self.bench.at(self.given) as model:
            return copy.deepcopy(model)

    @cached_property
    def inside(self) -> Task:
        """The task, of the quantized model."""
        return replace(self.task, model=self.model) if self.given else self.task

    @property
    def study(self) -> Sweep:
        """The sweep, with its results apart from those in other surroundings."""
        return apart(self.sweep, [self.given])


def around(
    settings: InContext,
    task: Task,
    network: Network,
    options: Sequence[Option],
    *,
    recipe: Recipe,
    sweep: Sweep,
) -> Iterator[Around]:
    """Every network of a context.

    Raises:
        ValueError: A context that is not of this network, or a format it cannot work with.
    """
    members = {layer.name: layer.modules for layer in network.layers}

    @cache
    def bench() -> Bench:
        names = [name for modules in members.values() for name in modules]
        return Bench(task.model, task.batches, names, recipe, memory=float(sweep.memory))

    for given in networks(settings, network, options):
        modules = {name: o for layer, o in given.items() if changes(o) for name in members[layer]}
        yield Around(task, network, tuple(options), recipe, sweep, modules, bench)


def apart(sweep: Sweep, given: Iterable[Given]) -> Sweep:
    """The sweep, its results apart from those in other networks than these."""
    found = [digest(one) for one in given if one]
    return replace(sweep, study=" ".join([sweep.study, *found])) if found else sweep


def averaged(tables: Iterable[Table]) -> Table:
    """The mean of tables of one network in several surroundings.

    The standard error has their spread in it, squared; as the samples are the same in all, their
    own errors go together.
    """
    first, *others = tables
    if not others:
        return first
    each = [first, *others]
    values = np.stack([table.values for table in each]).astype(np.float64)
    errors = [np.zeros(values[0].shape) if t.stderr is None else t.stderr for t in each]
    spread = values.std(axis=0, ddof=1) / len(each) ** 0.5
    stderr = np.hypot(spread, np.mean(errors, axis=0))
    return replace(first, values=values.mean(axis=0), stderr=stderr)


def networks(
    settings: InContext, network: Network, options: Sequence[Option]
) -> list[dict[str, Option]]:
    """The option of every layer, for each draw; none where they are left alone."""
    names = [layer.name for layer in network.layers]
    mask = network.mask(options)
    context = settings.context
    if context == "alone":
        return [{}]
    if context == "random":
        draws = range(settings.draws)
        return [_drawn([settings.seed, draw], names, options, mask) for draw in draws]
    if isinstance(context, str):
        pinned = np.flatnonzero(mask.sum(axis=1) == 1)
        given = dict.fromkeys(names, Option.parse(context))
        return [given | {names[row]: options[int(mask[row].argmax())] for row in pinned}]
    for name in context:
        if name not in names:
            raise ValueError(
                f"the context has an option for {name!r}, which is no layer of this network;"
                f" it has {', '.join(map(repr, names[:5]))}"
            )
    return [dict(context)]


def _drawn(
    seeds: Sequence[int], names: Sequence[str], options: Sequence[Option], mask: Mask
) -> dict[str, Option]:
    random = np.random.default_rng(seeds)
    columns = [int(random.choice(np.flatnonzero(may))) for may in mask]
    return {name: options[column] for name, column in zip(names, columns, strict=True)}


def check_context(context: Context, draws: int = 1) -> None:
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


def digest(given: Given) -> str:
    """What tells networks apart, from the options of their layers or modules."""
    text = repr(sorted((name, str(option)) for name, option in given.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
