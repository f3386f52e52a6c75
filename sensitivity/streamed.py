"""Many networks run on a calibration set of any size, within a limit on memory.

The samples are taken in parts. Of each part the float forward is remembered while all networks run
on it, and only the numbers that a measure reads off stay. Corrections are found first, for every
network on the same samples: what they come to depends on neither the limit nor the batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mpsearch.batches import joined, parts, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.quant.corrections import Corrected
from mpsearch.quant.replay import Replay
from mpsearch.sensitivity.measures import Given, Key, Measure, Scores, key
from mpsearch.sensitivity.surroundings import digest
from mpsearch.sweep import Sweep, Unit
from mpsearch.task import Task


@dataclass(frozen=True, eq=False)
class Streamed:
    """A measure of many networks.

    Attributes:
        title: The estimator's name, in the key of every unit.
        measure: What is measured on a task.
        task: With all its batches.
        scores: Of its networks, on all of them.
    """

    title: str
    measure: Callable[[Task], Measure]
    task: Task
    scores: Scores

    def know(self, networks: Sequence[Given], sweep: Sweep) -> None:
        """Give the scores the rows of all these networks and of the float one.

        Where one run of all samples is as good, they find them themselves.
        """
        if not networks or not self.scores.separate:
            return
        named = {key(given): given for given in [{}, *networks]}
        missing = {k: given for k, given in named.items() if k not in self.scores.known}
        own, rest = self._split()
        rows: dict[Key, list[Tensor]] = {k: [] for k in missing}
        corrected = self._corrected(missing, own, rows, sweep)
        count = sum(map(samples, own))
        for batches in rest:
            part = _Part(self, batches, count)
            count += sum(map(samples, batches))
            for k, found in part.rows(missing, corrected, sweep).items():
                rows[k].append(found)
        self.scores.known.update({k: torch.cat(found) for k, found in rows.items()})
        self.scores.before({})  # refuses what there is no gain over

    def _corrected(
        self,
        networks: Mapping[Key, Given],
        own: Sequence[Any],
        rows: Mapping[Key, list[Tensor]],
        sweep: Sweep,
    ) -> dict[Key, Corrected]:
        """What corrections come to; and the rows of their samples, where those are batches."""
        bench = self.scores.bench
        if not bench.recipe.corrections:
            return dict.fromkeys(networks, Corrected())
        part, found = _Part(self, own, 0), dict[Key, Corrected]()
        for k in sweep.steps(f"{self.title}: corrections", list(networks)):
            output, found[k] = bench.corrected(self.options(networks[k]))
            if own:
                rows[k].append(part.read(bench.reference, output))
        bench.release()
        return found

    def options(self, given: Given) -> dict[str, Option]:
        """By module."""
        return {name: o for layer, o in given.items() for name in self.scores.modules[layer]}

    def _split(self) -> tuple[list[Any], list[list[Any]]]:
        """The batches that corrections look at, if those are whole ones, and parts of the rest."""
        bench, batches = self.scores.bench, list(self.task.batches)
        looked = samples(bench.batch) if bench.recipe.corrections else 0
        if not self.scores.measure.by_batch:
            own = [bench.batch] if looked else []
            rest = [
                piece for batch in _after(batches, looked) for piece in parts(batch, bench.most)
            ]
        else:
            ends = list(accumulate(map(samples, batches)))
            whole = ends.index(looked) + 1 if looked in ends and self.scores.by_sample else 0
            own, rest = batches[:whole], batches[whole:]
        return own, _grouped(rest, bench.most if self.scores.by_sample else 1)


@dataclass(frozen=True, eq=False)
class _Part:
    """Batches that are run together.

    Attributes:
        of: What is measured.
        batches: As the measure reads them.
        first: Number of their first sample.
    """

    of: Streamed
    batches: Sequence[Any]
    first: int

    def rows(
        self, networks: Mapping[Key, Given], corrected: Mapping[Key, Corrected], sweep: Sweep
    ) -> dict[Key, Tensor]:
        """Of every network, in order."""
        last = self.first + sum(map(samples, self.batches))
        units: dict[Unit, Key] = {
            (digest(given), self.first, last): k for k, given in networks.items()
        }

        def compute(unit: Unit) -> list[float]:
            given, found = networks[units[unit]], corrected[units[unit]]
            bench = self.of.scores.bench
            output = bench.returned(self.of.options(given), found, self._replay)
            return self.read(self._reference, output).flatten().tolist()

        found = sweep.run(f"{self.of.title} rows", list(units), compute)
        shape = (last - self.first, -1) if self._measure.whole else (-1,)
        return {
            k: torch.tensor(each, dtype=torch.float64).reshape(shape)
            for k, each in zip(networks, found, strict=True)
        }

    def read(self, reference: Any, output: Any) -> Tensor:
        """The rows of what was returned for these batches."""
        return self._measure.rows(self._apart(reference), self._apart(output)).double()

    def _apart(self, output: Any) -> list[Any]:
        scores = self.of.scores
        if scores.measure.by_batch and scores.by_sample:
            return list(tensor_of(output).split([samples(batch) for batch in self.batches]))
        return [output]

    @cached_property
    def _measure(self) -> Measure:
        measure = self.of.scores.measure
        if not measure.by_batch:
            return measure
        return self.of.measure(replace(self.of.task, batches=self.batches))

    @cached_property
    def _replay(self) -> Replay:
        together = joined(self.batches, sum(map(samples, self.batches)))
        return self.of.scores.bench.remembered(together)

    @cached_property
    def _reference(self) -> Any:
        return self.of.scores.bench.returned({}, Corrected(), self._replay)


def _after(batches: Sequence[Any], count: int) -> list[Any]:
    """What is left of the batches without their first samples."""
    rest = []
    for batch in batches:
        size = samples(batch)
        if count < size:  # the first part, of as many as are to go, is not wanted
            rest += parts(batch, count)[1:] if count else [batch]
        count = max(0, count - size)
    return rest


def _grouped(batches: Sequence[Any], most: int) -> list[list[Any]]:
    """Neighbours that can be run as one, of no more samples than that."""
    groups: list[list[Any]] = []
    for batch in batches:
        last = groups[-1] if groups else []
        if last and sum(map(samples, last)) + samples(batch) <= most and _alike(last[-1], batch):
            last.append(batch)
        else:
            groups.append([batch])
    return groups


def _alike(one: Any, other: Any) -> bool:
    return samples(joined([joined([one], 1), joined([other], 1)], 2)) == 2
