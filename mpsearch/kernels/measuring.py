"""Each distinct module of a network's layers, at each option, run for its time.

Options that run as the same thing are one call: codes of 4 bits in containers of 8 take the time of
8, to the last digit.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mpsearch.formats import Option
from mpsearch.kernels import timing
from mpsearch.kernels.plain import running, runs_as
from mpsearch.kernels.shapes import Part, parts, quantized
from mpsearch.kernels.timing import Call, Taken
from mpsearch.network import Layer
from mpsearch.protocols import Backend

if TYPE_CHECKING:
    from mpsearch.sweep import Sweep, Unit

Key = tuple[Part, str]
Runs = dict[tuple[Part, Option], str]


@dataclass(frozen=True)
class Priced:
    """What a layer takes at an option.

    Attributes:
        seconds: For one batch.
        stderr: Of the seconds.
        spread: Of its modules' calls, the largest: the distance of their quartiles over the median.
        runs_as: What is really multiplied, weight and input.
    """

    seconds: float
    stderr: float
    spread: float
    runs_as: str


def measured(
    layers: Sequence[Layer],
    options: Sequence[Option],
    backend: Backend,
    *,
    batch: int,
    rounds: int,
    sweep: "Sweep",
    decode: bool = False,
) -> list[list[Priced]]:
    """What each layer takes at each option, one thread, CPU time; for one token if they decode.

    Rounds are kept in the sweep's cache a few at a time, by machine, versions, module and what it
    runs as; an interrupted run goes on at the last of these. ``ValueError`` for a layer that cannot
    be built from what it says of itself.
    """
    made = [parts(layer, decode=decode) for layer in layers]
    floats = timing.footprint(sum(layer.params for layer in layers))
    with timing.pinned():
        calls, runs = _calls(layers, made, options, backend, batch)
        study = json.dumps([timing.machine(), repr(backend), batch, floats])
        taken = _taken(calls, rounds, floats, replace(sweep, study=study))
    return [
        [_priced({(p, runs[p, option]): n for p, n in each.items()}, taken) for option in options]
        for each in made
    ]


def _calls(
    layers: Sequence[Layer],
    made: Sequence[Iterable[Part]],
    options: Sequence[Option],
    backend: Backend,
    batch: int,
) -> tuple[dict[Key, Call], Runs]:
    """A call for each distinct module and what it runs as, those that run alike in a row."""
    owner: dict[Part, Layer] = {}
    for layer, each in zip(layers, made, strict=True):
        owner |= {part: layer for part in each if part not in owner}
    calls: dict[Key, Call] = {}
    runs: Runs = {}
    for option in options:
        for part, layer in owner.items():
            x = part.inputs(batch)
            kernel = running(backend, layer, option, quantized(part.module(), option, x))
            runs[part, option] = runs_as(kernel, option)
            if (part, runs[part, option]) not in calls:
                calls[part, runs[part, option]] = Call.of(kernel, x)
    return dict(sorted(calls.items(), key=lambda item: item[0][1])), runs


def _taken(calls: dict[Key, Call], rounds: int, floats: int, sweep: "Sweep") -> dict[Key, Taken]:
    """What each call takes: all in every round, a few rounds a unit of the sweep."""
    keys = {(repr(part), run): (part, run) for part, run in calls}
    blocks = -(-rounds // timing.ROUNDS)
    units: list[Unit] = [(*key, block) for block in range(blocks) for key in keys]
    fresh: dict[Unit, list[float]] = {}

    def compute(unit: "Unit") -> list[float]:
        if unit not in fresh:  # the first of its rounds that is not kept: run them all
            found = timing.rounds(calls, timing.ROUNDS, floats)
            fresh.update({(*key, unit[-1]): found[keys[key]] for key in keys})
        return fresh.pop(unit)

    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for unit, found in zip(units, sweep.run("measure", units, compute), strict=True):
        seconds[keys[str(unit[0]), str(unit[1])]] += found
    return {key: Taken.of(each) for key, each in seconds.items()}


def _priced(counts: dict[Key, int], taken: dict[Key, Taken]) -> Priced:
    """A layer of so many of each module."""
    return Priced(
        math.fsum(n * taken[key].seconds for key, n in counts.items()),
        math.hypot(*(n * taken[key].stderr for key, n in counts.items())),
        max(taken[key].spread for key in counts),
        " and ".join(sorted({run for _, run in counts})),
    )
