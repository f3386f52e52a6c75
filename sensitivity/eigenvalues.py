"""The largest eigenvalue of every layer's block of the Hessian, in weights and in inputs.

By power iteration. Where the Hessian is the Gauss-Newton matrix (`mpsearch.sensitivity.traces`),
those of inputs come from a backward pass for each element of a sample's output, if that is less.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.batches import call, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import Bench
from mpsearch.quant.memory import divided, fitting
from mpsearch.sensitivity.gauss_newton import columns
from mpsearch.sensitivity.hutchinson import Curvature
from mpsearch.sensitivity.slopes import (
    Read,
    Reads,
    differentiable,
    input_change,
    loss_of,
    slopes,
    together,
    watching,
)
from mpsearch.sensitivity.taylor import bent
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats
from mpsearch.task import Task

Images = Callable[[Sequence[int], Sequence[Tensor]], list[Tensor]]
"""``images(rows, v)``: for some blocks H v, each row of v for itself."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Every layer's block of the Hessian.

    Attributes:
        bench: Where grids are from.
        model: In its surroundings.
        iterations: Most products for each eigenvalue.
        tolerance: Relative change, over all samples, at which the iteration stops.
        seed: Of the vectors it starts from.
    """

    task: Task
    network: Network
    bench: Bench
    model: nn.Module
    iterations: int
    tolerance: float
    seed: int

    def of_weights(self, sweep: Sweep) -> Floats:
        """(layers,) that of each layer's weights together, for the mean loss of all samples."""
        layers = stored(self.model, self.network)
        every = [one for layer in layers for one in layer]
        weights = [one.weight.requires_grad_() for one in every]
        ends = np.cumsum([len(layer) for layer in layers]).tolist()
        cuts = [slice(end - len(layer), end) for layer, end in zip(layers, ends, strict=True)]
        batches = self._bendable(weights, float(sweep.memory))
        share = [samples(batch) / sum(map(samples, batches)) for batch in batches]

        ran: set[str] = set()

        @lru_cache(maxsize=1)
        def blocks(number: int) -> list[Curvature]:
            with ExitStack() as stack:
                for one in every:
                    seen = partial(_seen, ran, one.name)
                    stack.callback(one.module.register_forward_pre_hook(seen).remove)
                whole = Curvature.of(self.model, weights, batches[number], self._loss)
            return [Curvature(whole.weights[cut], whole.slopes[cut]) for cut in cuts]

        def images(rows: Sequence[int], v: Sequence[Tensor]) -> list[Tensor]:
            found = [torch.zeros_like(v[row]) for row in rows]
            for number, part in enumerate(share):
                for place, row in enumerate(rows):
                    found[place] += part * blocks(number)[row].product(v[row][0])
            return found

        def compute(_: Unit) -> list[float]:
            shapes = [(1, sum(one.weight.numel() for one in layer)) for layer in layers]
            starts = self._starts(shapes, weights[0])
            top = [float(one) for one in self._top(starts, images, self.iterations)]
            for one in every:
                if one.name not in ran:
                    raise ValueError(
                        f"module {one.name!r} does not run on any batch, so its Hessian is not"
                        " known; give batches that reach it, or skip it"
                    )
            return top

        key: Unit = ("weights", *self._key, *(one.name for one in every))
        return np.array(sweep.run("hessian eigenvalue", [key], compute)[0])

    def _bendable(self, weights: Sequence[Tensor], memory: float) -> list[Any]:
        """The batches, in parts where the loss is known to be a mean over samples."""
        if self.task.loss is not None:
            return list(self.task.batches)

        def bend(batch: Any) -> None:
            curvature = Curvature.of(self.model, weights, batch, self._loss)
            curvature.product(torch.cat([weight.detach().flatten() for weight in weights]))

        most = fitting(bend, self.task.batches, memory)
        return list(divided(self.task.batches, most).values())

    @property
    def _key(self) -> Unit:
        return self.iterations, self.tolerance, self.seed

    def _loss(self, output: Any, batch: Any) -> Tensor:
        return loss_of(self.task, output, batch, tensor_of(output).detach())

    def of_inputs(self, options: Sequence[Option], sweep: Sweep) -> tuple[Floats, Floats, Floats]:
        """Of each sample's inputs: eigenvalues, elements (samples, layers), squared errors."""
        most = 1
        if together(self.task, self.network, self.model):
            once = partial(self._of_part, options=options, iterations=1)
            most = fitting(once, self.task.batches, float(sweep.memory))
        of = divided(self.task.batches, most)

        def compute(unit: Unit) -> list[float]:
            batch, first, end = map(int, unit[-3:])
            return self._of_part(of[batch, first, end], options, self.iterations)

        modules = [name for layer in self.network.layers for name in (layer.name, *layer.modules)]
        named = ("inputs", *self._key, *modules)
        units: list[Unit] = [(*named, *map(str, options), *place) for place in of]
        blocks = sweep.run("hessian eigenvalue", units, compute)
        width = 2 + len(options)
        rows = np.concatenate(
            [np.reshape(b, (-1, len(self.network.layers), width)) for b in blocks]
        )
        return rows[..., 0], rows[..., 1], rows[..., 2:]

    def _of_part(self, batch: Any, options: Sequence[Option], iterations: int) -> list[float]:
        """For each sample and layer: eigenvalue, elements, and squared error at each option."""
        count, model = samples(batch), self.model
        members = [layer.modules for layer in self.network.layers]
        names = [name for layer in members for name in layer]
        with watching(model, names) as reads, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            output = call(model, batch)
            value = self._loss(output, batch)
        calls = [[read for name in names for read in reads[name]] for names in members]
        sizes = [sum(read.value.numel() for read in layer) // count for layer in calls]
        if self._few:
            tops = self._by_columns(tensor_of(output), calls, count)
        else:
            shapes = [(count, size) for size in sizes]
            tops = [count * top for top in self._by_products(value, calls, shapes, iterations)]
        each = [
            torch.stack(
                [top, torch.full_like(top, size), *self._errors(row, reads, options, count)]
            )
            for row, (top, size) in enumerate(zip(tops, sizes, strict=True))
        ]
        flat: list[float] = torch.stack(each).permute(2, 0, 1).flatten().tolist()
        return flat

    @cached_property
    def _few(self) -> bool:
        """Whether few gradients give the Hessian."""
        with differentiable(self.task, self.network, self.model) as traces:
            return traces.method("auto", self.iterations) == "exact"

    def _by_columns(
        self, output: Tensor, calls: Sequence[Sequence[Read]], count: int
    ) -> list[Tensor]:
        """(count,) each layer's, of ``J^T S S^T J``, which has those of the small ``S^T J J^T S``.

        One backward pass for each column of S serves all layers.
        """
        edges = [read.edge for layer in calls for read in layer]
        found: list[list[Tensor]] = [[] for _ in calls]
        for s in columns(output, count, None, torch.Generator()):
            at: Iterator[Tensor | None] = iter(
                torch.autograd.grad(
                    output, edges, s.to(output), retain_graph=True, allow_unused=True
                )
            )
            for rows, layer in zip(found, calls, strict=True):
                each = [next(at) for _ in layer]
                flat = [slope.reshape(count, -1) for slope in each if slope is not None]
                rows.append(torch.cat([output.new_zeros(count, 1), *flat], dim=1))
        tops = []
        for row, slopes_of in enumerate(found):
            stacked = torch.stack(slopes_of, dim=1).double()
            self._check(row, stacked)
            tops.append(torch.linalg.eigvalsh(stacked @ stacked.mT)[:, -1])
        return tops

    def _by_products(
        self,
        value: Tensor,
        calls: Sequence[Sequence[Read]],
        shapes: Sequence[tuple[int, int]],
        iterations: int,
    ) -> list[Tensor]:
        """(count,) each layer's, of the Hessian of a mean over samples."""
        at = slopes(value, [read.edge for layer in calls for read in layer], graph=True)
        found = [[(read.edge, at[id(read.edge)]) for read in layer] for layer in calls]
        values = [[read.value for read in layer] for layer in calls]

        def images(rows: Sequence[int], v: Sequence[Tensor]) -> list[Tensor]:
            return [_image(found[row], values[row], v[row]) for row in rows]

        return self._top(self._starts(shapes, value), images, iterations)

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
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        return [each.to(like.device, like.dtype) for each in drawn]

    def _top(self, v: Sequence[Tensor], images: Images, iterations: int) -> list[Tensor]:
        """(rows,) each block's eigenvalues, one for each row of its v."""
        v = [_unit(each) for each in v]
        found = [torch.full((len(each),), torch.nan, dtype=torch.float64) for each in v]
        left = list(range(len(v)))
        for _ in range(iterations):
            moving = []
            for row, image in zip(left, images(left, v), strict=True):
                now = (v[row] * image).sum(dim=1, dtype=torch.float64)
                self._check(row, now)
                moved = (now - found[row]).abs().sum()
                if not moved <= self.tolerance * now.abs().sum():
                    moving.append(row)
                found[row] = now
                v[row] = _unit(image)
            left = moving
            if not left:
                break
        return found

    def _check(self, row: int, numbers: Tensor) -> None:
        if not torch.isfinite(numbers).all():
            raise ValueError(
                f"layer {self.network.layers[row].name!r}: its curvature is out of range; run the"
                " model in float32, or scale its loss"
            )


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
