"""What a report is made of: an allocation, its frontier, and runs predicted and measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mpsearch.allocation import Allocation
from mpsearch.baselines import name
from mpsearch.pareto import Frontier
from mpsearch.tables import Table

THIS = "this allocation"
UNIFORM = "uniform "  # runs of one option everywhere are called this and the option


@dataclass(frozen=True)
class Run:
    """One network in the picture: only predicted, or really quantized too.

    Attributes:
        name: Such as ``uniform int4/int8``, ``point 7``, ``this allocation``, ``type template``.
        cost: What it costs, in the unit of the report's cost.
        predicted: Its loss by the sensitivity table.
        measured: The mean over held-out samples.
        stderr: Standard error of ``measured``.
        metrics: The task's own figures, by name; one called as a cost is that cost, measured.
        costs: What else it costs, by name.
    """

    name: str
    cost: float
    predicted: float | None
    measured: float | None = None
    stderr: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """The measured loss, or the predicted one where nothing was measured."""
        return self.predicted if self.measured is None else self.measured


@dataclass(frozen=True, eq=False)
class Report:
    """All that a page shows.

    Attributes:
        title: What was quantized.
        allocation: The answer.
        frontier: The frontier it stands on, if one was made.
        cost: Name of the cost along the frontier, such as ``size``.
        loss: The sensitivity table, for the heat map.
        points: Measured points of the frontier.
        uniform: One option everywhere, each named ``uniform OPTION``.
        others: The allocation itself, named ``this allocation``, and the type template.
        facts: Model, data, seconds per step, seed, command line; shown as they are.
    """

    title: str
    allocation: Allocation
    frontier: Frontier | None
    cost: str
    loss: Table | None
    points: tuple[Run, ...] = ()
    uniform: tuple[Run, ...] = ()
    others: tuple[Run, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def mine(self) -> Run:
        """The allocation as a run."""
        for run in self.others:
            if run.name == THIS:
                return run
        figure = self.allocation.figures.get(self.cost)
        cost = float("nan") if figure is None else figure.value
        return Run(THIS, cost, self.allocation.loss)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every run: the allocation, the other mixes, the uniform ones, points of the frontier."""
        rest = tuple(run for run in self.others if run is not self.mine)
        return (self.mine, *rest, *self.uniform, *self.points)

    @cached_property
    def costs(self) -> tuple[str, ...]:
        """The costs that runs have, the one along the frontier first."""
        others = (name for run in self.runs for name in run.costs)
        return tuple(dict.fromkeys([self.cost, *others]))

    @property
    def unit(self) -> str:
        """What the cost counts."""
        return self.unit_of(self.cost)

    def unit_of(self, cost: str) -> str:
        """What a cost of that name counts; nothing where it is not known."""
        figure = self.allocation.figures.get(cost)
        if figure is not None:
            return figure.unit
        return "" if self.frontier is None else self.frontier.units.get(cost, "")

    @property
    def limit(self) -> float | None:
        """The budget on the cost, where there is one."""
        figure = self.allocation.figures.get(self.cost)
        return None if figure is None else figure.limit

    @cached_property
    def rival(self) -> Run | None:
        """The best uniform option within the budget (without one, at the allocation's cost)."""
        best = self.allocation.uniform
        named = [run for run in self.uniform if best is not None and run.name == name(best)]
        if named:
            return named[0]
        ceiling = self.mine.cost if self.limit is None else self.limit
        rivals = [r for r in self.uniform if r.cost <= ceiling and r.loss is not None]
        if any(r.measured is None for r in rivals):
            return min(rivals, key=lambda r: r.predicted or 0.0)
        return min(rivals, key=lambda r: r.measured or 0.0, default=None)
