"""The squared error that rounding makes in the weights: the cheapest proxy, and it sees no data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.surroundings import Context, check_context
from mpsearch.sensitivity.weights import Stored, squared_error, stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task


@dataclass(frozen=True)
class WeightError:
    """``||Q(W) - W||^2`` of each layer at each option, summed over all its weights.

    The format of the activations does not enter.

    Attributes:
        relative: Whether to divide by ``||W||^2``.
        context: It changes nothing, as only weights are looked at.
    """

    relative: bool = False
    context: Context = "alone"

    def __post_init__(self) -> None:
        """Refuse what is no context."""
        check_context(self.context)

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of squared weight errors; ``ValueError`` on formats not supported yet."""
        layers = stored(task.model, network)
        values = np.stack([e.sum(axis=0) for e in squared_errors(layers, options, recipe, sweep)])
        if self.relative:
            norms = [
                sum(float(s.weight.detach().double().square().sum()) for s in w) for w in layers
            ]
            values /= np.array([[norm or 1.0] for norm in norms])
        unit = "relative squared weight error" if self.relative else "squared weight error"
        mask = network.mask(options)
        return Table(network.layers, tuple(options), values, unit, allowed=mask)


def squared_errors(
    layers: Sequence[Sequence[Stored]], options: Sequence[Option], recipe: Recipe, sweep: Sweep
) -> list[Floats]:
    """For each layer (weights, options): the squared error of each of its weights."""
    for option in options:
        changes(option)  # refuses what cannot be quantized to, before the long part
    weights = {one.name: one for layer in layers for one in layer}
    formats = {str(option.weight): option for option in options}
    units = [(name, format_) for name in weights for format_ in formats]

    def compute(unit: Unit) -> list[float]:
        name, format_ = map(str, unit)
        return [squared_error(weights[name], formats[format_], recipe)]

    found = dict(zip(units, sweep.run("weight error", units, compute), strict=True))
    return [
        np.array([[found[one.name, str(o.weight)][0] for o in options] for one in layer])
        for layer in layers
    ]
