"""A search on measured latency: every network it looks at runs on the kernels that were priced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from mpsearch import registry
from mpsearch.allocation import Allocation
from mpsearch.batches import checked, joined, one_token, samples
from mpsearch.formats import Option
from mpsearch.kernels.placing import beside, whole_time
from mpsearch.kernels.running import quantize, ran
from mpsearch.network import Network
from mpsearch.protocols import HardwareModel
from mpsearch.quant.recipe import Recipe
from mpsearch.report.data import Run
from mpsearch.sweep import Sweep
from mpsearch.task import Task

COST = "latency"


@dataclass(frozen=True, eq=False)
class Machine:
    """A backend's kernels on this machine, and the batch that is timed on them.

    Attributes:
        backend: By name.
        batch: What is run together.
        rounds: How often.
        phase: ``decode`` where the batch has one token a sample.
        kernels: What each module multiplied, by the options of all.
    """

    backend: str
    batch: Any
    rounds: int
    phase: str = "traced"
    kernels: dict[frozenset[tuple[str, str]], dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: str, task: Task, size: int, rounds: int, phase: str = "traced") -> "Machine":
        """What ``measured`` or ``measured:BACKEND`` asks for."""
        backend = spec.partition(":")[2] or registry.load("hwmodels", "measured").backend
        return cls(backend, timed_batch(task, size, phase), rounds, phase)

    def model(self, task: Task, network: Network, sweep: Sweep) -> HardwareModel:
        """The hardware model, what the network takes beside its layers measured too."""
        rest = beside(task.model, network, self.batch, self.rounds).seconds
        made: HardwareModel = registry.load("hwmodels", "measured")(
            self.backend, samples(self.batch), self.rounds, rest, sweep, self.phase
        )
        return made

    def quantize(
        self,
        model: nn.Module,
        options: Mapping[str, Option],
        batches: Sequence[Any],
        recipe: Recipe,
    ) -> nn.Module:
        """The network on real kernels, in plain floats where there is none, as it was priced."""
        real = quantize(model, options, batches, recipe, backend=self.backend, fallback="plain")
        self.kernels[_key(options)] = ran(real)
        return real

    def timing(self, task: Task) -> Task:
        """The task with the latency among its metrics."""

        def evaluate(model: nn.Module) -> dict[str, float]:
            own = {} if task.evaluate is None else dict(task.evaluate(model))
            return own | {COST: whole_time(model, self.batch, self.rounds).seconds}

        return replace(task, evaluate=evaluate)

    def named(self, answer: Allocation) -> Allocation:
        """The allocation with what each of its layers ran as."""
        by_module = self.kernels.get(_key(answer.by_module()), {})
        kernels = {
            name: " and ".join(dict.fromkeys(by_module[m] for m in modules if m in by_module))
            for name, modules in answer.modules.items()
        }
        return replace(answer, measured={**(answer.measured or {}), "kernels": kernels})

    def said(self) -> str:
        """How latencies were measured."""
        tokens = " of one token" if self.phase == "decode" else ""
        count = f"{samples(self.batch)}{tokens}"
        return f"{self.backend}, batch {count}, 1 thread, CPU time, median of {self.rounds}"


def compared(runs: Sequence[Run]) -> str:
    """How far predicted latencies are from measured ones, over networks that were run."""
    pairs = [(run.cost, run.metrics[COST]) for run in runs if COST in run.metrics]
    if not pairs:
        return "latency: no network was run"
    off = sorted(100 * (predicted / seconds - 1) for predicted, seconds in pairs)
    return (
        f"latency predicted: {off[0]:+.0f} to {off[-1]:+.0f} % off the measured one, over"
        f" {len(off)} networks"
    )


def _key(options: Mapping[str, Option]) -> frozenset[tuple[str, str]]:
    return frozenset((module, str(option)) for module, option in options.items())


def timed_batch(task: Task, size: int, phase: str) -> Any:
    """So many samples, one token of each to decode; ``ValueError`` where the task has fewer."""
    if size < 1:
        raise ValueError(f"--batch is {size}; wanted at least 1")
    batch = joined(checked(task.batches), size)
    if samples(batch) < size:
        raise ValueError(
            f"the task's batches hold {samples(batch)} samples of one shape, and --batch asks for"
            f" {size}; ask for fewer"
        )
    return one_token(batch) if phase == "decode" else batch
