"""How much a block changes what it reads: a score of Layer-Wise Quantization.

From Dumitru et al. 2024 (arXiv 2406.17415). It orders layers, and how many of the first get the
larger format is chosen by hand; here it is multiplied by ``4^-bits`` of each role's format, the
same for all layers, so that it orders them.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.batches import call, checked, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.attention import explicit
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.slopes import one_of
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sensitivity.zd import quarters
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Over = Literal["positions", "samples"]


@dataclass(frozen=True)
class Lim:
    """``1 + LIM`` of the block a layer is in, with ``LIM = -cos(what it reads, what it writes)``.

    A block is what the paper calls a layer: the outermost item of a ``ModuleList`` or
    ``Sequential`` that holds the module, or is it, and whose output has the shape of its input.
    Where there is none, as in a head, or a block that changes resolution, cos counts as 0 and the
    table notes it. The paper's sign and aggregation are not certain: the minus sign is read from
    "how different, higher is better", and cosines are averaged over positions, or taken of each
    sample as one vector.

    Each role that an option rounds adds the score times ``4^-bits``; the standard error is over
    samples.

    Attributes:
        over: What is a vector: the channels at each position, or all of a sample.
        context: What all layers have: :mod:`mpsearch.sensitivity.surroundings`.
        draws: How many random networks.
        seed: Of their options.
    """

    over: Over = "positions"
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that nothing follows."""
        one_of("over", self.over, get_args(Over))
        check_context(self.context, self.draws)

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of ``(1 + LIM) 4^-bits``.

        Raises:
            ValueError: Batches or a model it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        task, network, options = at.inside, at.network, at.options
        steps = np.array(
            [changes(o) * (quarters(o.weight) + quarters(o.activation)) for o in options]
        )
        model = explicit(copy.deepcopy(task.model)).eval()
        held = [_blocks(model, layer.modules[0]) for layer in network.layers]

        def compute(unit: Unit) -> list[float]:
            found: list[float] = self._cosines(model, held, task.batches[int(unit[-1])])
            return found

        units: list[Unit] = [(self.over, number) for number in range(len(task.batches))]
        found = at.study.run("lim", units, compute)
        cosines = np.concatenate([np.reshape(row, (-1, len(held))) for row in found])
        bare = np.asarray(np.isnan(cosines).all(axis=0))
        scores = 1 - np.nan_to_num(cosines)
        mask = network.mask(options)
        count = len(scores)
        deviation = scores.std(axis=0, ddof=1) / count**0.5 if count > 1 else None
        note = "is in no block that keeps its shape: cos counts as 0"
        return Table(
            network.layers,
            options,
            np.outer(scores.mean(axis=0), steps),
            "rank score (LIM)",
            stderr=None if deviation is None else np.outer(deviation, steps),
            allowed=mask,
            notes={note: bare[:, None] & mask} if bare.any() else {},
        )

    def _cosines(self, model: nn.Module, held: Sequence[Sequence[str]], batch: Any) -> list[float]:
        """(samples, layers), flat; NaN where no block of a layer keeps its shape."""
        count = samples(batch)
        names = {name for blocks in held for name in blocks}
        with torch.no_grad(), _read_and_written(model, names) as pairs:
            call(model, batch)
        of = {
            name: torch.stack([self._cosine(*pair, count) for pair in found]).mean(dim=0)
            for name, found in pairs.items()
            if found
        }
        none = torch.full((count,), torch.nan, dtype=torch.float64)
        columns = [next((of[b] for b in blocks if b in of), none) for blocks in held]
        for blocks, column in zip(held, columns, strict=True):
            if torch.isinf(column).any():
                raise ValueError(
                    f"block {blocks[0]!r} reads or writes NaN or infinity; give a model whose"
                    " activations are finite, in float32 where half precision is too narrow"
                )
        flat: list[float] = torch.stack(columns, dim=1).flatten().tolist()
        return flat

    def _cosine(self, x: Tensor, y: Tensor, count: int) -> Tensor:
        """(count,) mean cosine of each sample; infinite where the values are not finite."""
        if self.over == "samples" and len(x) % count == 0:
            x, y = (t.reshape(count, -1) for t in (x, y))
        axis = 1 if x.dim() > 3 else -1
        x, y = x.double(), y.double()
        norms = x.norm(dim=axis) * y.norm(dim=axis)
        both = ((x == 0) & (y == 0)).all(dim=axis)  # nothing was changed
        cosine = torch.where(norms > 0, (x * y).sum(dim=axis) / norms, both.double())
        cosine = cosine.nan_to_num(nan=torch.inf)
        if len(cosine) % count:  # no sample can be told from another
            return cosine.mean().expand(count)
        return cosine.reshape(count, -1).mean(dim=1)


def _blocks(model: nn.Module, name: str) -> list[str]:
    """The items of containers that hold a module, or are it; outermost first."""
    path = name.split(".")
    prefixes = [".".join(path[:end]) for end in range(1, len(path) + 1)]
    return [prefix for prefix in prefixes if _is_block(model, prefix)]


def _is_block(model: nn.Module, name: str) -> bool:
    containers = nn.Sequential, nn.ModuleList
    parent = model.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, containers) and not isinstance(model.get_submodule(name), containers)


@contextmanager
def _read_and_written(
    model: nn.Module, names: Iterable[str]
) -> Iterator[Mapping[str, Sequence[tuple[Tensor, Tensor]]]]:
    """What modules read and wrote in each call, where both have one shape."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    reads: dict[str, Tensor | None] = {}

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            floating = (
                x
                for x in [*args, *kwargs.values()]
                if isinstance(x, Tensor) and x.is_floating_point()
            )
            x = next(floating, None)
            reads[name] = None if x is None else x.clone()  # it may be changed in place

        return hook

    def after(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            x, y = reads.pop(name), tensor_of(output)
            if x is not None and x.shape == y.shape and x.dim() > 1:
                pairs[name].append((x, y.clone()))

        return hook

    with ExitStack() as stack:
        for name in pairs:
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        yield pairs
