"""Latency on this machine: each distinct module of the layers run on a real kernel, one thread.

The median of CPU times in interleaved rounds, in the cache state of a network (see
:mod:`mpsearch.kernels.timing`). A layer without a kernel at an option is priced as what would
really run, and the table says so per entry. Between layers everything is as in the float network,
so that what a network takes beside its layers is ``beside``, whatever is chosen; ``mpsearch
profile`` measures it. Times of one machine hold for no other.

A language model that writes reads one token a step, and every weight for it: ``phase="decode"``
prices that, and not what attention takes over the tokens before.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpsearch import registry
from mpsearch.formats import Option
from mpsearch.hwmodels.phases import Phase, check_phase
from mpsearch.network import Network
from mpsearch.sweep import Sweep
from mpsearch.tables import Mask, Table

_MEASURING = "mpsearch.kernels.measuring"  # needs torch, which no other hardware model does
_FLOAT = Option.parse("fp32/fp32")
NOISY = 0.3  # spread above which an entry is noted
_NOISY = (
    f"spread above {NOISY:.0%} of the median: measured under load, so measure again on a quiet"
    " machine"
)


@dataclass(frozen=True)
class Measured:
    """``latency`` of one batch, layer after layer.

    Attributes:
        backend: Whose kernels run, by name.
        batch: Samples run together.
        rounds: Calls of each kernel; a multiple of 5 is run.
        beside: Seconds that the network takes beside its layers.
        sweep: Its cache keeps the times, so that a run that was stopped goes on.
        phase: ``traced``: layers read as many tokens a sample as in the traced run; ``decode``:
            one, as :class:`~mpsearch.hwmodels.roofline.Roofline` has it.
    """

    backend: str = "onednn"
    batch: int = 1
    rounds: int = 30
    beside: float = 0.0
    sweep: Sweep = field(default_factory=Sweep, repr=False, compare=False)
    phase: Phase = "traced"

    def __post_init__(self) -> None:
        """Refuse what cannot be run, an unknown backend, and one that CPU time says nothing of."""
        for name, least in (("batch", 1), ("rounds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least {least}")
        check_phase(self.phase)
        if not 0 <= self.beside < math.inf:
            raise ValueError(f"beside is {self.beside}; wanted seconds from 0 up")
        if self.backend.partition(":")[0] == "cuda":
            raise ValueError(
                "backend 'cuda' runs on a GPU, and times are of this CPU; price GPUs with the model"
                " roofline or lookup"
            )
        registry.make("backends", self.backend)

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``latency`` in seconds; the reference is the network in 32-bit floats."""
        asked = [Option({"weight": o.weight, "activation": o.activation}) for o in options]
        distinct = [*dict.fromkeys([*asked, _FLOAT])]
        measured = importlib.import_module(_MEASURING).measured
        every: list[list[Any]] = measured(
            network.layers,
            distinct,
            registry.make("backends", self.backend),
            batch=self.batch,
            rounds=self.rounds,
            sweep=self.sweep,
            decode=self.phase == "decode",
        )
        columns = [distinct.index(option) for option in asked]
        found = [[row[column] for column in columns] for row in every]
        floats = [row[distinct.index(_FLOAT)].seconds for row in every]
        table = Table(
            network.layers,
            tuple(options),
            np.array([[entry.seconds for entry in row] for row in found]),
            "s",
            "latency",
            stderr=np.array([[entry.stderr for entry in row] for row in found]),
            allowed=network.mask(options),
            fixed=self.beside,
            reference=math.fsum([*floats, self.beside]),
            notes=_notes(asked, found),
        )
        return {"latency": table}


def _notes(options: Sequence[Option], found: Sequence[Sequence[Any]]) -> dict[str, Mask]:
    """Which entries run as something else, and which were measured under load."""
    notes: dict[str, Mask] = {}
    for row, entries in enumerate(found):
        for column, (option, entry) in enumerate(zip(options, entries, strict=True)):
            said = [f"runs as {entry.runs_as}"] if entry.runs_as != str(option) else []
            said += [_NOISY] if entry.spread > NOISY else []
            for text in said:
                where = notes.setdefault(text, np.zeros((len(found), len(options)), bool))
                where[row, column] = True
    return notes
