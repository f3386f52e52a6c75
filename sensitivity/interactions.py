"""What two layers lose together beyond what each loses alone.

From CLADO (Deng, Wang, Sharify and Orshansky 2023, "Mixed-Precision Quantization with Cross-Layer
Dependencies", arXiv 2307.05657): with O the loss gained over the float model, G_ij = O_ij - O_i -
O_j for two layers at two options, and the loss of an allocation is the sum of its O_i and G_ij.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from mpsearch.formats import Option
from mpsearch.network import Layer, Network
from mpsearch.problem import Interaction
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.coverage import scored
from mpsearch.sensitivity.kl import KL
from mpsearch.sensitivity.measures import Given, Scores
from mpsearch.sensitivity.surroundings import Context, apart, check_context, digest, networks
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Table
from mpsearch.task import Task

Which = Literal["all", "neighbours", "block", "largest"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Interactions:
    """Pairwise losses.

    :meth:`estimate` gives what layers lose alone, the table of ``kl``; :meth:`pairs` what to add
    for two of them together: ``Problem(table, budgets, interactions=pairs)``, for the solver
    ``quadratic``. The total of a choice of two quantized layers is then the loss that was measured.
    CLADO minimises x'Gx with 2 O on the diagonal, which is twice that total; it projects G to a
    positive semidefinite one, as ``Quadratic(projection=True)`` does.

    A sum of pairs is exact for two layers and no more. All pairs of ResNet-20 promise less than no
    loss (-0.17 nats at the size of 4 bits, where that optimum loses 0.346, the one of ``kl`` alone
    0.0286, and 0.057 is lost with CLADO's projection): a total below zero is to be distrusted.
    Without the pairs below zero (``positive``) 0.0265 are lost there, and 0.091 in place of 0.107
    at 3 bits. Pairs within blocks make the small Llama's allocation better than ``kl``'s.

    All L (L - 1) / 2 pairs are too many for a deep network; ``which`` names those worth it:

    - ``neighbours``: one layer reads what the other wrote.
    - ``block``: their names begin alike up to a number, as ``layer1.0.conv1`` and
      ``layer1.0.conv2`` do.
    - ``largest``: both are among the ``count`` layers that lose most alone at their worst option.

    Attributes:
        which: One of these (``interactions:block`` on the command line), or several, whose pairs
            are taken together.
        count: Of layers, for ``largest``.
        significance: Leave out an interaction that is smaller than so many standard errors; that is
            one of the sample by sample difference, so there must be several samples.
        positive: Leave out interactions below zero, so that pairs only add to what layers lose.
        context: What the other layers have, for ``kl`` and for pairs alike. Round an allocation
            both count from it, and a change of two layers has the total that was measured; among
            layers at random options a table has the mean of its interactions in it.
        draws: How many random networks.
        seed: Of their options.
    """

    which: Which | tuple[Which, ...] = "all"
    count: int = 8
    significance: float = 0.0
    positive: bool = False
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse pairs that have no name."""
        if not self._kinds or not set(self._kinds) <= set(get_args(Which)):
            known = ", ".join(map(repr, get_args(Which)))
            raise ValueError(f"which is {self.which!r}; wanted one or several of {known}")
        if self.count < 2:
            raise ValueError(f"count is {self.count!r}; a pair is of two layers: give 2 or more")
        if not 0 <= self.significance < math.inf:
            raise ValueError(
                f"significance is {self.significance!r}; wanted a number of standard errors from 0"
            )
        check_context(self.context, self.draws)

    @property
    def _kinds(self) -> tuple[Which, ...]:
        return (self.which,) if isinstance(self.which, str) else self.which

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """The table of ``kl`` in the context; ``ValueError`` as :meth:`KL.estimate`."""
        measured = KL(self.context, self.draws, self.seed)
        return measured.estimate(task, network, options, recipe=recipe, sweep=sweep)

    def pairs(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> tuple[Interaction, ...]:
        """Every pair of options of the pairs of layers, by layer and option.

        Given the sweep of :meth:`estimate`, what layers lose alone is taken from its cache.

        Raises:
            ValueError: As :meth:`estimate`; one sample, where its spread is asked for.
        """
        table = self.estimate(task, network, options, recipe=recipe, sweep=sweep)
        given = networks(self, network, options)
        left = self.context in ("alone", "random")
        streamed = scored("interactions", task, network, recipe, sweep)
        together = _Together(streamed.scores, {str(o): o for o in options}, given, left_out=left)
        places = self._places(self.worth(network, table), table)
        names = [layer.name for layer in network.layers]
        units: list[Unit] = [
            (names[i], str(options[a]), names[j], str(options[b])) for i, a, j, b in places
        ]
        study = apart(sweep, given)
        streamed.know(together.needed(study.missing("pairs", units)), sweep)
        results = study.run("pairs", units, together.gain)
        if self.significance and any(len(result) < 2 for result in results):
            raise ValueError(
                "the loss is one number, which has no standard error to compare with; give several"
                " samples or batches, or significance=0"
            )
        return tuple(
            Interaction(*place, loss)
            for place, (loss, *stderr) in zip(places, results, strict=True)
            if abs(loss) >= self.significance * sum(stderr) and (loss > 0 or not self.positive)
        )

    @staticmethod
    def _places(pairs: Sequence[Pair], table: Table) -> list[tuple[int, int, int, int]]:
        """First layer, its option, second layer, its option: of those that are quantized."""
        quantized = table.allowed & [changes(option) for option in table.options]
        return [
            (i, int(a), j, int(b))
            for i, j in pairs
            for a in np.flatnonzero(quantized[i])
            for b in np.flatnonzero(quantized[j])
        ]

    def worth(self, network: Network, table: Table) -> tuple[Pair, ...]:
        """The pairs of layers that are measured, the first before the second."""
        layers = range(len(network.layers))
        worst = np.where(table.allowed, table.values, -np.inf).max(axis=1)
        largest = sorted(np.argsort(-worst, kind="stable")[: self.count].tolist())
        every: dict[Which, Iterator[Pair]] = {
            "all": itertools.combinations(layers, 2),
            "neighbours": _neighbours(network),
            "block": _same_block(network.layers),
            "largest": itertools.combinations(largest, 2),
        }
        return tuple(sorted({pair for which in self._kinds for pair in every[which]}))


def _neighbours(network: Network) -> Iterator[Pair]:
    rows = {layer.name: row for row, layer in enumerate(network.layers)}
    for one, other in network.edges:
        i, j = sorted((rows[one], rows[other]))
        if i != j:
            yield i, j


def _same_block(layers: Sequence[Layer]) -> Iterator[Pair]:
    blocks: dict[str, list[int]] = {}
    for row, layer in enumerate(layers):
        for name in {block(module) for module in layer.modules} - {""}:
            blocks.setdefault(name, []).append(row)
    for rows in blocks.values():
        yield from itertools.combinations(rows, 2)


def block(module: str) -> str:
    """A module's name up to its first number; empty where nothing follows or there is none.

    >>> block("features.3.conv.0.1"), block("fc"), block("features.3")
    ('features.3', '', '')
    """
    parts = module.split(".")
    ends = [place for place, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: ends[0] + 1]) if ends else ""


@dataclass(frozen=True, eq=False)
class _Together:
    """Losses row by row, of samples or batches; all but those of pairs are kept.

    Attributes:
        networks: What the layers have meanwhile.
        left_out: Whether the two layers have nothing of it.
    """

    scores: Scores
    named: Mapping[str, Option]
    networks: Sequence[Given]
    left_out: bool
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False)

    def needed(self, units: Iterable[Unit]) -> list[Given]:
        """The networks that some pairs are seen in."""
        return [one for unit in units for four in self._fours(unit) for one in four]

    def gain(self, unit: Unit) -> list[float]:
        """What two layers lose together beyond alone and, from several rows, its standard error."""
        first, a, second, b = map(str, unit)
        where = f"layers {first!r} at {a!r} and {second!r} at {b!r}"
        each = [self.scores.mean(self._rows(*four), where) for four in self._fours(unit)]
        if len(each) == 1:
            return each[0]
        means, errors = [mean for mean, *_ in each], [sum(error) for _, *error in each]
        spread = np.std(means, ddof=1) / len(each) ** 0.5
        return [float(np.mean(means)), float(np.hypot(spread, np.mean(errors)))]

    def _fours(self, unit: Unit) -> Iterator[Sequence[Given]]:
        """In each network: both layers at their options, the first, the second, neither."""
        first, a, second, b = map(str, unit)
        one, other = {first: self.named[a]}, {second: self.named[b]}
        for given in self.networks:
            rest = {k: o for k, o in given.items() if not (self.left_out and k in (first, second))}
            yield {**rest, **one, **other}, {**rest, **one}, {**rest, **other}, rest

    def _rows(self, both: Given, one: Given, other: Given, rest: Given) -> Tensor:
        found = self.scores.before(both), self._of(one), self._of(other), self._of(rest)
        rows, first, second, without = (each - self._of({}) for each in found)
        return rows - first - second + without

    def _of(self, given: Given) -> Tensor:
        key = digest(given)
        if key not in self._kept:
            self._kept[key] = self.scores.before(given)
        return self._kept[key]
