"""What each layer's option adds to the loss of a network in which all others are quantized, too.

Random mixed allocations are measured and a sum over layers is fitted to a monotone transform of
their loss, after Hill 2026, "Saturation Makes Quantization Error Additive" (arXiv 2607.12266): a
layer measured alone is measured in a network that nobody ships. Allocations that the fit has not
seen say how far the sum can be trusted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mpsearch.batches import checked
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench, changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.additive import Additive, Certificate, Choices, unbent
from mpsearch.sensitivity.kl import measure_of
from mpsearch.sensitivity.measures import Given, Scores
from mpsearch.sensitivity.streamed import Streamed
from mpsearch.sensitivity.surroundings import Context, check_context, networks
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Mask, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Link = Literal["auto", "additive", "coverage"]
Shares = Literal["diagonal", "even"]

_SATURATING = (0.3, 0.6, 0.8, 0.9, 0.95, 0.99)
_COMPOUNDING = (-0.3, -1.0, -3.0, -10.0, -30.0, -100.0)
_BENDS = {  # of each link: curvature times the largest loss
    "additive": (0.0,),
    "coverage": _SATURATING,
    "auto": (0.0, *_SATURATING, *_COMPOUNDING),
}


@dataclass(frozen=True, eq=False)
class Covered:
    """A table fitted in context, and how it did on allocations it was not fitted to.

    Attributes:
        table: Its total is the transformed loss :meth:`predicted` undoes.
        curvature: Of the transform: 1 / c of the paper's coverage model, 0 for a plain sum, below
            0 where losses compound.
        certificate: Of the allocations held out.
    """

    table: Table
    curvature: float
    certificate: Certificate

    def predicted(self, choice: Sequence[int]) -> float:
        """The loss of a choice, an option index for each layer."""
        return float(unbent(np.array(self.table.total(choice)), self.curvature))


@dataclass(frozen=True)
class Coverage:
    """Losses in context: a regression over random mixed allocations.

    With f the loss of an allocation, ``-log(1 - k f) / k`` is a sum over layers. Small losses it
    leaves as they are. With k above 0 that is the coverage model ``f = c (1 - prod(1 - a))``,
    c = 1 / k, whose losses saturate (section 4); with k = 0 the additive one; below 0 losses
    compound. What is nearest in the order of allocations left out one at a time is taken. A layer's
    unquantized option is 0, or where it has none its least one; all layers at those lose ``fixed``.
    Loss at c is infinite in the table's unit, so that a table's total ranks allocations, and
    :meth:`Covered.predicted` tells the loss.

    The standard error is that of the regression. :meth:`covered` gives the certificate as a
    record, the table has it as its note.

    Attributes:
        draws: How many allocations are measured; 0 for four for every number that is fitted.
        held: Which share of them is held out.
        link: Which curvatures are tried.
        shares: Whether options are drawn ``even``, or along the ``diagonal``: at shares that are
            themselves uniform, from nearly all at one option to nearly all at another, so that a
            layer is seen in networks of every budget. Of two options that is the average of Aumann
            and Shapley.
        seed: Of the draws.
        context: ``alone`` and ``random`` leave allocations as they are drawn. Round an allocation,
            or an option, a layer keeps its own half the time, unless every other one is drawn.
    """

    draws: int = 0
    held: float = 0.25
    link: Link = "auto"
    shares: Shares = "diagonal"
    seed: int = 0
    context: Context = "alone"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be drawn by."""
        if self.draws < 0:
            raise ValueError(f"draws is {self.draws!r}; wanted a number of allocations, or 0")
        if not 0 < self.held < 1:
            raise ValueError(f"held is {self.held!r}; wanted a share between 0 and 1, such as 0.25")
        for name, value, known in (
            ("link", self.link, get_args(Link)),
            ("shares", self.shares, get_args(Shares)),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} is {value!r}; there are {', '.join(map(repr, known))}: take one"
                )
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
        """The fitted table, with what its certificate says as a note.

        Raises:
            ValueError: As :meth:`covered`.
        """
        return self.covered(task, network, options, recipe=recipe, sweep=sweep).table

    def covered(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Covered:
        """The fitted table and its certificate.

        Raises:
            ValueError: Too few draws or allocations; batches, a model or a format it cannot work
                with; a loss that is not finite.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        mask = network.mask(options)
        choices, held = self._drawn(mask, self._near(network, options, mask))
        streamed = scored("coverage", task, network, recipe, sweep)
        losses = _measured(streamed, options, choices, sweep)
        fit = Additive.best(choices[held:], losses[held:], len(options), _BENDS[self.link])
        certificate = Certificate.of(fit.losses(choices[:held]), losses[:held])
        values, stderr, level = fit.anchored([not changes(option) for option in options], mask)
        return Covered(
            Table(
                network.layers,
                tuple(options),
                values,
                _unit(streamed.scores.unit, fit.curvature),
                stderr=stderr,
                allowed=mask,
                fixed=level,
                notes={f"fitted in context: {certificate}": mask},
            ),
            fit.curvature,
            certificate,
        )

    def _near(self, network: Network, options: Sequence[Option], mask: Mask) -> Choices | None:
        """(L,) the column that each layer has in the context, -1 where it has none."""
        if self.context in ("alone", "random"):
            return None
        near = np.full(len(mask), -1)
        (given,) = networks(self, network, options)
        columns = {str(option): column for column, option in enumerate(options)}
        for row, layer in enumerate(network.layers):
            column = columns.get(str(given.get(layer.name)), -1)
            if layer.name in given and (column < 0 or not mask[row, column]):
                raise ValueError(
                    f"the context gives layer {layer.name!r} {str(given[layer.name])!r}, which it"
                    f" may not take here; wanted one of its options, of {', '.join(columns)}"
                )
            near[row] = column
        return near

    def _drawn(self, mask: Mask, near: Choices | None = None) -> tuple[Choices, int]:
        """Distinct random choices, a row each, and how many of the first are held out."""
        fitted = 1 + int(mask.sum()) - len(mask)
        space = math.prod(int(n) for n in mask.sum(axis=1))
        count = min(self.draws or 4 * fitted + 4, space)
        held = max(2, round(count * self.held))
        if count - held < fitted:
            raise ValueError(
                f"{count} allocations, {held} of them held out, are too few to fit {fitted} numbers"
                + (
                    ", and there are no more; use 'kl', which measures each layer alone"
                    if count == space
                    else f"; give draws={4 * fitted + 4}, or 0"
                )
            )
        found: dict[tuple[int, ...], None] = {}
        rows = self._rows(mask, near, every=space <= 2 * count)
        while len(found) < count:
            found[next(rows)] = None
        return np.array(list(found)), held

    def _rows(self, mask: Mask, near: Choices | None, *, every: bool) -> Iterator[tuple[int, ...]]:
        """Random choices without end; or every choice once, in random order."""
        rng = np.random.default_rng(self.seed)
        if every:
            places = [np.flatnonzero(row) for row in mask]
            whole = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, len(mask))
            yield from (tuple(map(int, row)) for row in rng.permutation(whole))
            return
        while True:
            shares = np.ones(mask.shape[1])
            if self.shares == "diagonal":
                shares = rng.dirichlet(shares) + 1e-12  # a layer may be allowed the rarest alone
            ends = np.cumsum(mask * shares, axis=1)
            ends /= ends[:, -1:]
            drawn = (rng.random((len(mask), 1)) >= ends[:, :-1]).sum(axis=1)
            if near is not None:
                keeps = rng.integers(2, size=len(mask), dtype=bool)
                drawn = np.where(keeps & (near >= 0), near, drawn)
            yield tuple(map(int, drawn))


def scored(title: str, task: Task, network: Network, recipe: Recipe, sweep: Sweep) -> Streamed:
    """What the task's loss, or else the divergence from float, gains in quantized networks."""
    modules = {layer.name: layer.modules for layer in network.layers}
    names = [name for members in modules.values() for name in members]
    bench = Bench(task.model, task.batches, names, recipe, memory=float(sweep.memory))
    scores = Scores(measure_of(task), bench, task.batches, modules)
    _ = scores.unit  # runs the float model, which refuses a layer that is not called
    return Streamed(title, measure_of, task, scores)


def _measured(
    streamed: Streamed, options: Sequence[Option], choices: Choices, sweep: Sweep
) -> Floats:
    """(N,) the loss of each choice."""
    layers = list(streamed.scores.modules)
    named = {str(option): option for option in options}
    names = list(named)
    asked: dict[Unit, Given] = {
        tuple(f"{layer}={names[k]}" for layer, k in zip(layers, row, strict=True)): {
            layer: options[k] for layer, k in zip(layers, row, strict=True)
        }
        for row in choices
    }
    streamed.know([asked[unit] for unit in sweep.missing("allocations", asked)], sweep)
    found = sweep.run("allocations", list(asked), lambda u: [streamed.scores.whole(asked[u])])
    return np.array(found)[:, 0]


def _unit(counted: str, curvature: float) -> str:
    if curvature == 0:
        return counted
    return f"-log(1 - k f) / k, f in {counted}, k = {curvature:.4g}"
