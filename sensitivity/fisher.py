"""Rounding errors weighed by the squared gradients of each sample: the diagonal of Fisher's matrix.

Of weights as in SqueezeLLM (Kim et al. 2023, arXiv 2306.07629, equation 3), or of what layers
write, as in NVIDIA's ModelOpt.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call
from torch.nn import functional as F

from mpsearch.batches import call, checked, parts, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.arguments import rounded
from mpsearch.quant.memory import divided, fitting
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.gauss_newton import Random, columns
from mpsearch.sensitivity.seeded import seeded
from mpsearch.sensitivity.slopes import (
    Layers,
    finite,
    loss_of,
    one_of,
    reached,
    replaced,
    slopes,
    together,
    watching,
)
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sensitivity.uses import Use, Uses
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic, module_weight

At = Literal["weights", "outputs"]
_KEPT = Option.parse("w32a32")


@dataclass(frozen=True)
class Fisher:
    """Squared gradients of single samples times squared rounding errors, averaged over samples.

    - ``weights``: ``sum g^2 (Q(W) - W)^2 / 2`` and the same sum over what the layer reads: an
      estimate of what the loss gains, with the diagonal of Fisher's matrix for the Hessian.
    - ``outputs``: ``sum g^2 (Y' - Y)^2`` with g the gradient at what the layer writes and
      ``Y' - Y`` its error with weights and input rounded (ModelOpt's gradient mode; its sum over
      samples is a mean here).

    Gradients are those of the task's own loss, sample by sample (the empirical Fisher). Without one
    they are of ``-log p(y)`` as if y were drawn from the model's own output: that matrix is the
    Hessian of the divergence from it, and each sample draws one random direction of its root.

    Attributes:
        at: Where errors are weighed.
        seed: Of those directions, and of random options.
        context: What all layers have where gradients are taken:
            :mod:`mpsearch.sensitivity.surroundings`.
        draws: How many random networks.
    """

    at: At = "weights"
    seed: int = 0
    context: Context = "alone"
    draws: int = 4

    def __post_init__(self) -> None:
        """Refuse settings that nothing follows."""
        one_of("at", self.at, get_args(At))
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
        """Table of mean weighed errors; the standard error is over samples.

        Raises:
            ValueError: Batches, a model, a loss or a format it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        task, network, layers = at.task, at.network, Layers.of(at)
        with torch.no_grad():
            plain = isinstance(call(layers.model, task.batches[0]), Tensor)
        alone = task.loss is not None and not plain  # such an output cannot be taken apart
        score = self._by_outputs if self.at == "outputs" else self._by_weights
        most = 1
        if not alone and together(task, network, layers.model):
            memory = float(at.sweep.memory)
            most = fitting(lambda x: score(layers, x, seeded(self.seed)), task.batches, memory)
        of = divided(task.batches, most)

        def compute(unit: Unit) -> list[float]:
            batch, first, end = map(int, unit[-3:])
            directions = [seeded(self.seed, batch, sample) for sample in range(first, end)]
            rows: list[float] = score(layers, of[batch, first, end], directions).flatten().tolist()
            return rows

        named: Unit = (layers.key, self.at, self.seed, *map(str, at.options))
        units: list[Unit] = [(*named, *place) for place in of]
        found = at.study.run("fisher", units, compute)
        rows = reached(
            np.concatenate([np.reshape(x, (-1, *layers.mask.shape)) for x in found]), network
        )
        count = len(rows)
        return Table(
            network.layers,
            at.options,
            rows.mean(axis=0),
            self._unit(layers),
            stderr=rows.std(axis=0, ddof=1) / count**0.5 if count > 1 else None,
            allowed=layers.mask,
        )

    def _unit(self, layers: Layers) -> str:
        if self.at == "outputs":
            return "rank score (ModelOpt gradient)"
        kind = "Fisher" if layers.task.loss is None else "empirical Fisher"
        return f"{layers.unit}, by a diagonal {kind} matrix"

    def _by_weights(self, layers: Layers, batch: Any, random: Random) -> Floats:
        """(samples, layers, options)."""
        count, model, options = samples(batch), layers.model, layers.options
        weights = layers.weights(options)
        with (
            torch.enable_grad(),
            watching(model, layers.readers(options)) as reads,
            Uses(weights if count > 1 else ()) as uses,
        ):
            value = slope_of_each(layers.task, call(model, batch), batch, random)
        edges = [use.edge for found in uses.found for use in found]
        direct = weights if count == 1 else []
        read = [one.edge for calls in reads.values() for one in calls]
        places = [*edges, *direct, *read]
        found = slopes(value, places)
        used = dict(zip(map(id, weights), uses.found, strict=False))

        def of_samples(weight: Tensor) -> Tensor | None:
            """(samples, ...) its gradients."""
            if count == 1:
                slope = found[id(weight)]
                return None if slope is None else slope[None]
            pairs = [(use, found[id(use.edge)]) for use in used[id(weight)]]
            return sample_gradients([(u, g) for u, g in pairs if g is not None], weight, count)

        scores = np.zeros((count, *layers.mask.shape))
        for row in range(len(layers.network.layers)):
            own = {id(w): of_samples(w) for w in layers.weights_of(row) if weights}
            for column, option in enumerate(options):
                for term in layers.terms(row, option, reads, found | own):
                    if term.slope is None:
                        scores[:, row, column] = np.nan
                        continue
                    product = term.slope.double() * term.change.double()
                    each = product.square().reshape(count, -1).sum(dim=1) / 2
                    finite(float(each.sum()), layers.named(row), option)
                    scores[:, row, column] += each.numpy()
        return scores

    def _by_outputs(self, layers: Layers, batch: Any, random: Random) -> Floats:
        """(samples, layers, options)."""
        model, count = layers.model.requires_grad_(False), samples(batch)
        rows = range(len(layers.network.layers))
        given = [[layers.at(row, option) for option in layers.options] for row in rows]
        names = {name for row in given for one in row for name in one}
        with torch.enable_grad(), writing(model, names) as written:
            value = slope_of_each(layers.task, call(model, batch), batch, random)
        found = slopes(value, [one.edge for calls in written.values() for one in calls])
        scores = np.zeros((count, *layers.mask.shape))
        for row, column in zip(*np.nonzero(layers.mask), strict=True):
            for name, option in given[row][column].items():
                for one in written[name]:
                    slope = found[id(one.edge)]
                    if slope is None:
                        scores[:, row, column] = np.nan
                        continue
                    error = _written(layers, name, option, one) - _unrounded(layers, name, one)
                    product = (slope.double() * error.double()).square()
                    each = product.reshape(count, -1).sum(dim=1)
                    finite(float(each.sum()), layers.named(row), option)
                    scores[:, row, column] += each.numpy()
        return scores


@torch.no_grad()
def _written(layers: Layers, name: str, option: Option, one: "Written") -> Tensor:
    """What a module writes at an option, from what it read before any rounding."""
    module, state = layers.bench.model.get_submodule(name), {}
    if option.weight.quantized:
        weight = module_weight(layers.bench.model, name)
        state["weight"] = (weight + layers.weight_change(name, option)).to(weight.dtype)
    grid, args, kwargs = layers.bench.grid(name, option.activation), one.args, one.kwargs
    if grid is not None:
        args, kwargs = rounded(args, kwargs, grid)
    return tensor_of(functional_call(module, state, args, kwargs))


def _unrounded(layers: Layers, name: str, one: "Written") -> Tensor:
    """What it writes in float; in surroundings of rounded values it wrote something else."""
    return _written(layers, name, _KEPT, one) if layers.surrounded else one.output


class Written(NamedTuple):
    """What a module wrote in one call, what it did so from, and where in the graph it is."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    edge: GradientEdge


@contextmanager
def writing(model: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Sequence[Written]]]:
    """Collects what modules write."""
    found: dict[str, list[Written]] = {name: [] for name in names}
    given: dict[str, Any] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            given[name] = replaced(args, kwargs, lambda x: x.detach().clone())

        return hook

    def after(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            marked = output if output.requires_grad else output.detach().requires_grad_()
            value = output.detach().clone()  # it may be changed in place later
            args, kwargs = given.pop(name)
            found[name].append(Written(args, kwargs, value, get_gradient_edge(marked)))
            return output if output.requires_grad else marked.clone()

        return hook

    with ExitStack() as stack:
        for name in found:
            module = model.get_submodule(name)
            before_it = module.register_forward_pre_hook(
                before(name), prepend=True, with_kwargs=True
            )
            stack.callback(before_it.remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        yield found


def slope_of_each(task: Task, output: Any, batch: Any, random: Random) -> Tensor:
    """A number whose gradient is, in what belongs to a sample, that of the sample's own loss."""
    count, found = samples(batch), tensor_of(output)
    if task.loss is None:
        (slope,) = columns(found, count, 1, random)
    elif count == 1:
        return loss_of(task, output, batch, found)
    else:
        leaf = found.detach().requires_grad_()
        each = zip(leaf.chunk(count), parts(batch, 1), strict=True)
        value = torch.stack([loss_of(task, one, part, one) for one, part in each]).sum()
        (slope,) = torch.autograd.grad(value, leaf)
    return (found * slope.to(found.dtype)).sum()


def sample_gradients(
    uses: Sequence[tuple[Use, Tensor]], weight: Tensor, count: int
) -> Tensor | None:
    """(count, *shape) each sample's gradient of a weight, from the gradients at all its uses."""
    total = None
    for use, gradient in uses:
        each = use.gradients(gradient, count) @ use.inputs(count).mT
        if use.func in _TRANSPOSED:  # inputs come first, and each has its kernel
            each = each.unflatten(-1, (-1, weight[0, 0].numel())).transpose(2, 3)
        turned = use.lookup or use.func is torch.addmm
        each = (each.mT if turned else each).reshape(count, *weight.shape)
        total = each if total is None else total + each
    return total


_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
