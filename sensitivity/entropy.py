"""How much a layer's activations say, and what rounding takes away: QuantMCU, LUQ, Q-VLM.

From QuantMCU (2024, VDQS), LUQ (2025, arXiv 2509.23729) and Q-VLM (Wang et al. 2024, arXiv
2410.08119, eq. 4 for the dependency between layers).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.batches import call, checked
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.entropies import (
    as_tokens,
    clusters,
    dependency,
    lively,
    shannon,
    token_entropy,
)
from mpsearch.sensitivity.lost_entropy import LostEntropy
from mpsearch.sensitivity.relative_error import (
    check_called,
    members,
    relative_input_errors,
    relative_weight_errors,
    watching,
)
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sweep import Sweep, Unit, read_memory
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Method = Literal["quantmcu", "luq", "q-vlm"]
_NAMES = {"quantmcu": "QuantMCU", "luq": "LUQ", "q-vlm": "Q-VLM"}


@dataclass(frozen=True)
class Entropy:
    """A rank score from the entropy of what each layer reads or writes.

    - ``quantmcu``: the share of entropy lost, ``(H(8) - H(b)) / H(8)`` and at least 0, with H(b)
      the entropy of the codes that values become at b bits. QuantMCU has it for feature maps, and
      weighs it against the operations saved, which is a solver's business here; a rounded weight
      adds the same of its own codes. The paper's normaliser is uncertain: this is one reading.
    - ``luq``: the entropy of a histogram of tokens over clusters (K-means on the layer's output),
      times the relative squared errors of the weight and of the input. LUQ gives the layers of
      least entropy the fewest bits; a price for a format is this package's reading.
    - ``q-vlm``: `token_entropy` of what the layer reads, mean over samples, times the same. Q-VLM
      picks by it which layers are searched together.

    The standard error is over samples for ``q-vlm``, by jackknife over batches for ``quantmcu``.

    Attributes:
        method: As above.
        clusters: K of ``luq``.
        tokens: Most tokens that ``luq`` clusters, evenly spaced.
        seed: Of the first cluster centres, and of random options.
        context: What all layers have: :mod:`mpsearch.sensitivity.surroundings`.
        draws: How many random networks.
    """

    method: Method = "quantmcu"
    clusters: int = 100
    tokens: int = 4096
    seed: int = 0
    context: Context = "alone"
    draws: int = 4

    def __post_init__(self) -> None:
        """Refuse settings that no method has."""
        if self.method not in get_args(Method):
            known = ", ".join(map(repr, get_args(Method)))
            raise ValueError(f"no method is named {self.method!r}; there are {known}")
        check_context(self.context, self.draws)
        if self.clusters < 2 or self.tokens < 2:
            raise ValueError(
                f"clusters is {self.clusters!r} and tokens {self.tokens!r}; wanted at least 2"
            )

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of rank scores.

        Raises:
            ValueError: Batches, a model or a format it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        network, options = at.network, at.options
        check_called(at.model, at.task, network)
        if self.method == "quantmcu":
            seen = LostEntropy(at.bench, at.model, at.task, network)
            values, stderr = seen.table(options, at.study)
        else:
            scores = _Scores(self, at.model, at.task, network).found(at.study)
            errors = relative_weight_errors(at.task, network, options, at.recipe, at.sweep)
            errors = errors + relative_input_errors(at)
            values = scores[:, :1] * errors
            stderr = scores[:, 1:] * errors if scores.shape[1] > 1 else None
        return Table(
            network.layers,
            options,
            values,
            f"rank score ({_NAMES[self.method]})",
            stderr=stderr,
            allowed=network.mask(options),
        )


def dependencies(
    task: Task, network: Network, recipe: Recipe, *, memory: float | str = "4GB"
) -> dict[tuple[str, str], float]:
    """For pairs of layers, one right after the other, the mean of `dependency`.

    Pairs whose inputs differ in shape have none and are left out. ``memory`` is as in
    :class:`mpsearch.sweep.Sweep`.
    """
    check_deterministic(task.model, checked(task.batches)[0])
    limit = read_memory(memory)
    bench = Bench(task.model, task.batches, members(network), recipe, memory=limit)
    found: dict[tuple[str, str], list[Tensor]] = {}
    kinds = {name: layer.kind for layer in network.layers for name in layer.modules}
    first = {layer.name: layer.modules[0] for layer in network.layers}
    for batch in task.batches:
        read = _read(bench.model, batch, kinds)
        for pair in network.edges:
            one, other = (read.get(first[name]) for name in pair)
            if one is not None and other is not None and one.shape == other.shape:
                found.setdefault(pair, []).append(dependency(one, other))
    return {pair: float(torch.cat(each).mean()) for pair, each in found.items()}


def _read(model: nn.Module, batch: Any, kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """As tokens, what modules read the first time they are called."""
    found: dict[str, Tensor] = {}

    def see(name: str, read: Tensor | None, _: Tensor) -> None:
        if read is not None:
            found.setdefault(name, as_tokens(read, kinds[name]))

    with torch.no_grad(), watching(model, list(kinds), see):
        call(model, batch)
    return found


@dataclass(frozen=True, eq=False)
class _Scores:
    """Entropies of layers that no format changes."""

    entropy: Entropy
    model: nn.Module
    task: Task
    network: Network

    def found(self, sweep: Sweep) -> Floats:
        """(layers, 1 or 2) each layer's entropy and, from several samples, its standard error."""
        compute = self._clustered if self.entropy.method == "luq" else self._by_sample
        batches = 1 if self.entropy.method == "luq" else len(self.task.batches)
        units: list[Unit] = [(repr(self.entropy), batch) for batch in range(batches)]
        size = len(self.network.layers)
        parts = [np.reshape(row, (-1, size)) for row in sweep.run("entropy", units, compute)]
        rows = np.concatenate(parts)
        mean = [lively(*one) for one in zip(self.network.layers, rows.mean(axis=0), strict=True)]
        if len(rows) < 2:
            return np.array([mean]).T
        return np.array([mean, rows.std(axis=0, ddof=1) / len(rows) ** 0.5]).T

    def _by_sample(self, unit: Unit) -> list[float]:
        """(samples, layers) entropies, end to end."""
        kinds = {name: layer.kind for layer in self.network.layers for name in layer.modules}
        read = _read(self.model, self.task.batches[int(unit[-1])], kinds)
        columns = []
        for layer in self.network.layers:
            x = next((read[name] for name in layer.modules if name in read), None)
            columns.append(torch.zeros(1) if x is None else token_entropy(x))
        return torch.stack(torch.broadcast_tensors(*columns), dim=1).flatten().tolist()

    def _clustered(self, _: Unit) -> list[float]:
        """The entropy of each layer's clusters."""
        layers = {layer.modules[-1]: layer for layer in self.network.layers}
        rows: dict[str, list[Tensor]] = {name: [] for name in layers}
        each = max(1, self.entropy.tokens // len(self.task.batches))

        def see(name: str, _: Tensor | None, wrote: Tensor) -> None:
            tokens = as_tokens(wrote, layers[name].kind).flatten(0, 1)
            rows[name].append(tokens[:: -(-len(tokens) // each)].float().clone())

        with torch.no_grad(), watching(self.model, list(layers), see):
            for batch in self.task.batches:
                call(self.model, batch)
        labels = [
            clusters(torch.cat(rows[name]), self.entropy.clusters, self.entropy.seed)
            for name in layers
        ]
        return [shannon(np.bincount(label.numpy(force=True)).astype(float)) for label in labels]
