"""The largest eigenvalue of every layer's block of the Hessian, and the two orders it makes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.batches import call, checked, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench, changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.hutchinson import Curvature
from mpsearch.sensitivity.slopes import (
    Reads,
    check_read,
    input_change,
    loss_of,
    one_of,
    pieces,
    slopes,
    watching,
)
from mpsearch.sensitivity.taylor import bent
from mpsearch.sensitivity.weight_error import squared_errors
from mpsearch.sensitivity.weights import Stored, stored
from mpsearch.sensitivity.zd import quarters
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Order = Literal["bits", "fine-tuning"]
Images = Callable[[Sequence[int], Sequence[Tensor]], list[Tensor]]
"""``images(rows, v)``: for some blocks H v, each row of v for itself."""


@dataclass(frozen=True)
class HessianEig:
    """HAWQ's two orders of layers (Dong et al. 2019, arXiv 1905.03696, section 3).

    With lambda the eigenvalue of largest magnitude of the layer's block of the Hessian, by power
    iteration, and n the number of elements:

    - ``bits``: ``S = |lambda| / n``, and more bits where it is larger. The paper picks them by
      hand; here S is multiplied by ``4^-bits``, the same for all layers, so that S orders them.
    - ``fine-tuning``: ``|lambda| ||Q(W) - W||^2``; the largest is fine-tuned first.

    For inputs the Hessian is that of each sample in what the layer reads; the mean over samples
    counts, and its standard error. An option that rounds both has the sum. The loss is the task's,
    by default the divergence from the float output.

    Attributes:
        order: Which of the two.
        iterations: Most products for each eigenvalue.
        tolerance: Relative change, over all samples, at which the iteration stops.
        seed: Of the vectors it starts from.
    """

    order: Order = "bits"
    iterations: int = 100
    tolerance: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that nothing follows."""
        one_of("order", self.order, get_args(Order))
        if self.iterations < 1:
            raise ValueError(f"iterations is {self.iterations!r}; wanted at least 1")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance!r}; wanted at least 0 and below 1")

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of scores that order layers.

        Raises:
            ValueError: Batches, a model, a loss or a format it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        rounds = [option for option in options if changes(option)]
        names = [name for layer in network.layers for name in layer.modules]
        bench = Bench(task.model, task.batches, names, recipe)
        check_read(bench, names, options)
        blocks = _Blocks(task, network, bench, self)
        values, stderr = np.zeros((len(network.layers), len(options))), None
        if any(option.weight.quantized for option in rounds):
            layers = stored(bench.model, network)
            each = squared_errors(layers, options, recipe, sweep)
            errors = np.stack([error.sum(axis=0) for error in each])
            errors *= [option.weight.quantized for option in options]
            steps = [quarters(option.weight) for option in options]
            sizes = np.array([sum(one.weight.numel() for one in layer) for layer in layers])
            values += self._scores(blocks.of_weights(layers, sweep), sizes, errors, steps)
        if any(option.activation.quantized for option in rounds):
            steps = [quarters(option.activation) for option in options]
            rows = self._scores(*blocks.of_inputs(options, sweep), steps)
            values += rows.mean(axis=0)
            stderr = rows.std(axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else None
        unit = f"rank score (HAWQ, order for {self.order})"
        allowed = network.mask(options)
        return Table(network.layers, tuple(options), values, unit, stderr=stderr, allowed=allowed)

    def _scores(
        self, found: Floats, sizes: NDArray[Any], errors: Floats, steps: Sequence[float]
    ) -> Floats:
        """(..., layers, options) of one role, from its eigenvalues."""
        largest = abs(found)[..., None]
        if self.order == "fine-tuning":
            return largest * errors
        scores: Floats = largest / np.maximum(sizes, 1)[..., None] * np.array(steps)
        return scores


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Power iteration on every layer's block of the Hessian at once.

    Attributes:
        bench: The working copy of the model.
        settings: How long to iterate.
    """

    task: Task
    network: Network
    bench: Bench
    settings: HessianEig

    def of_weights(self, layers: Sequence[Sequence[Stored]], sweep: Sweep) -> Floats:
        """(layers,) that of each layer's weights together, for the mean loss of all samples."""
        every = [one for layer in layers for one in layer]
        weights = [one.weight.requires_grad_() for one in every]
        ends = np.cumsum([len(layer) for layer in layers]).tolist()
        cuts = [slice(end - len(layer), end) for layer, end in zip(layers, ends, strict=True)]
        batches = self.task.batches
        share = [samples(batch) / sum(map(samples, batches)) for batch in batches]

        ran: set[str] = set()

        @lru_cache(maxsize=1)
        def blocks(number: int) -> list[Curvature]:
            with ExitStack() as stack:
                for one in every:
                    seen = partial(_seen, ran, one.name)
                    stack.callback(one.module.register_forward_pre_hook(seen).remove)
                whole = Curvature.of(self.bench.model, weights, batches[number], self._loss)
            return [Curvature(whole.weights[cut], whole.slopes[cut]) for cut in cuts]

        def images(rows: Sequence[int], v: Sequence[Tensor]) -> list[Tensor]:
            found = [torch.zeros_like(v[row]) for row in rows]
            for number, part in enumerate(share):
                for place, row in enumerate(rows):
                    found[place] += part * blocks(number)[row].product(v[row][0])
            return found

        def compute(_: Unit) -> list[float]:
            shapes = [(1, sum(one.weight.numel() for one in layer)) for layer in layers]
            top = [float(one) for one in self._top(self._starts(shapes, weights[0]), images)]
            for one in every:
                if one.name not in ran:
                    raise ValueError(
                        f"module {one.name!r} does not run on any batch, so its Hessian is not"
                        " known; give batches that reach it, or skip it"
                    )
            return top

        key: Unit = ("weights", *self._key, *(one.name for one in every))
        return np.array(sweep.run("hessian eigenvalue", [key], compute)[0])

    @property
    def _key(self) -> Unit:
        return self.settings.iterations, self.settings.tolerance, self.settings.seed

    def _loss(self, output: Any, batch: Any) -> Tensor:
        return loss_of(self.task, output, batch, tensor_of(output).detach())

    def of_inputs(self, options: Sequence[Option], sweep: Sweep) -> tuple[Floats, Floats, Floats]:
        """Of each sample's inputs: eigenvalues, elements (samples, layers), squared errors."""
        of = pieces(self.task, self.network, self.bench.model)

        def compute(unit: Unit) -> list[float]:
            found: list[float] = self._of_part(of[int(unit[-2]), int(unit[-1])], options)
            return found

        modules = [name for layer in self.network.layers for name in (layer.name, *layer.modules)]
        named = ("inputs", *self._key, *modules)
        units: list[Unit] = [(*named, *map(str, options), *place) for place in of]
        blocks = sweep.run("hessian eigenvalue", units, compute)
        width = 2 + len(options)
        rows = np.concatenate(
            [np.reshape(b, (-1, len(self.network.layers), width)) for b in blocks]
        )
        return rows[..., 0], rows[..., 1], rows[..., 2:]

    def _of_part(self, batch: Any, options: Sequence[Option]) -> list[float]:
        """For each sample and layer: eigenvalue, elements, and squared error at each option."""
        count, model = samples(batch), self.bench.model
        members = [layer.modules for layer in self.network.layers]
        names = [name for layer in members for name in layer]
        with watching(model, names) as reads, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            output = call(model, batch)
            value = self._loss(output, batch)
        edges = [[read.edge for name in names for read in reads[name]] for names in members]
        at = slopes(value, [edge for layer in edges for edge in layer], graph=True)
        found = [[(edge, at[id(edge)]) for edge in layer] for layer in edges]
        values = [[read.value for name in names for read in reads[name]] for names in members]
        sizes = [sum(x.numel() for x in layer) // count for layer in values]

        def images(rows: Sequence[int], v: Sequence[Tensor]) -> list[Tensor]:
            return [_image(found[row], values[row], v[row]) for row in rows]

        starts = self._starts([(count, size) for size in sizes], value)
        columns = [
            torch.stack(
                [top * count, torch.full_like(top, size), *self._errors(row, reads, options, count)]
            )
            for row, (top, size) in enumerate(zip(self._top(starts, images), sizes, strict=True))
        ]
        flat: list[float] = torch.stack(columns).permute(2, 0, 1).flatten().tolist()
        return flat

    def _errors(self, row: int, reads: Reads, options: Sequence[Option], count: int) -> Tensor:
        """(options, count) the squared error of what each sample has a layer read."""
        found = torch.zeros(len(options), count, dtype=torch.float64)
        for total, option in zip(found, options, strict=True):
            for name in self.network.layers[row].modules:
                for read in reads[name]:
                    change = input_change(self.bench, name, option, read.value)
                    if change is not None:
                        total += change.double().square().reshape(count, -1).sum(dim=1)  # noqa: PLW2901
        return found

    def _starts(self, shapes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.settings.seed)
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        return [each.to(like.device, like.dtype) for each in drawn]

    def _top(self, v: Sequence[Tensor], images: Images) -> list[Tensor]:
        """(rows,) each block's eigenvalues, one for each row of its v."""
        v = [_unit(each) for each in v]
        found = [torch.full((len(each),), torch.nan, dtype=torch.float64) for each in v]
        left = list(range(len(v)))
        for _ in range(self.settings.iterations):
            moving = []
            for row, image in zip(left, images(left, v), strict=True):
                now = (v[row] * image).sum(dim=1, dtype=torch.float64)
                if not torch.isfinite(now).all():
                    raise ValueError(
                        f"layer {self.network.layers[row].name!r}: its curvature is out of range;"
                        " run the model in float32, or scale its loss"
                    )
                moved = (now - found[row]).abs().sum()
                if not moved <= self.settings.tolerance * now.abs().sum():
                    moving.append(row)
                found[row] = now
                v[row] = _unit(image)
            left = moving
            if not left:
                break
        return found


def _seen(ran: set[str], name: str, *_: Any) -> None:
    ran.add(name)


def _unit(v: Tensor) -> Tensor:
    """Rows of length one, but for those of zeros."""
    largest = v.abs().amax(dim=1, keepdim=True) if v.shape[1] else v.new_ones(len(v), 1)
    v = v / largest.clamp_min(torch.finfo(v.dtype).tiny)  # squares then neither vanish nor overflow
    unit: Tensor = v / v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return unit


def _image(
    found: Sequence[tuple[GradientEdge, Tensor | None]], values: Sequence[Tensor], v: Tensor
) -> Tensor:
    """H v of each sample, in what a layer reads in all its calls."""
    if not found:
        return torch.zeros_like(v)
    edges, bases = zip(*found, strict=True)
    split = v.split([x.numel() // len(v) for x in values], dim=1)
    along = [piece.reshape(x.shape) for piece, x in zip(split, values, strict=True)]
    images = bent(bases, edges, along)
    return torch.cat([image.reshape(len(v), -1) for image in images], dim=1).to(v)
