"""The Hessian of each layer's squared output error in a row of its weight: ``2/N sum x x^T``.

From GPTQ (Frantar et al. 2023, arXiv 2210.17323), with x what the layer reads at one position and N
the number of samples. All rows share it; a grouped convolution has one for each group.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mpsearch.batches import call, parts, samples
from mpsearch.quant.attention import explicit
from mpsearch.sensitivity.uses import Use, Uses
from mpsearch.sensitivity.weights import Stored
from mpsearch.task import Task
from mpsearch.tracing import module_weight, output_first, sites

_ELEMENTS = 1 << 27  # of Hessians that are in memory at once
_SAMPLES = 16  # that go through the model together
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def as_rows(weight: Tensor, module: nn.Module) -> Tensor:
    """(groups, rows, columns) a weight as the matrix that meets what its module reads, float64."""
    groups = int(getattr(module, "groups", 1))
    values = weight.detach().double()
    if isinstance(module, nn.Embedding):
        return values.t()[None]
    if isinstance(module, _TRANSPOSED):
        return values.reshape(groups, len(values) // groups, -1).mT
    first = output_first(values, module)
    return first.reshape(groups, len(first) // groups, -1)


def users(model: nn.Module) -> dict[int, nn.Module]:
    """What multiplies by each weight, by the weight's id: not the embedding that shares it."""
    found: dict[int, nn.Module] = {}
    for site in sites(model):
        before = found.get(id(site.weight))
        if site.weight is not None and (before is None or isinstance(before, nn.Embedding)):
            found[id(site.weight)] = site.module
    return found


@dataclass(frozen=True, eq=False)
class InputHessians:
    """The Hessians of some weights, made when asked for, as many at a time as memory allows.

    Attributes:
        model: A copy of the task's, in eval mode.
        task: Whose batches are read.
        weights: The copy's weights by name.
        modules: What multiplies by each.
    """

    model: nn.Module
    task: Task
    weights: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, task: Task, layers: Sequence[Sequence[Stored]]) -> "InputHessians":
        """On a copy of the task's model."""
        model = explicit(copy.deepcopy(task.model)).eval().requires_grad_(False)
        using = users(model)
        weights = {s.name: module_weight(model, s.name) for layer in layers for s in layer}
        modules = {name: using[id(weight)] for name, weight in weights.items()}
        return cls(model, task, weights, modules)

    def __getitem__(self, name: str) -> Tensor:
        """(groups, p, p) the Hessian of a weight; of an embedding (1, p), its diagonal.

        Raises:
            ValueError: A layer that is never called, or reads only zeros, NaN or infinity.
        """
        if name not in self._kept:
            self._kept.clear()
            self._kept.update(self._made(self._chunk(name)))
        return self._kept[name]

    def _chunk(self, name: str) -> list[str]:
        """The name and those after it whose Hessians fit in memory beside its own."""
        names = list(self.weights)
        chosen, used = [name], self._size(name)
        for other in names[names.index(name) + 1 :]:
            used += self._size(other)
            if used > _ELEMENTS:
                break
            chosen.append(other)
        return chosen

    def _size(self, name: str) -> int:
        groups, _, columns = as_rows(self.weights[name], self.modules[name]).shape
        return columns * (1 if isinstance(self.modules[name], nn.Embedding) else groups * columns)

    def _made(self, names: Sequence[str]) -> dict[str, Tensor]:
        weights = [self.weights[name] for name in names]
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in self.task.batches:
            for part in parts(batch, _SAMPLES):
                count += samples(part)
                for name, found in zip(names, self._uses(part, weights).found, strict=True):
                    for use in found:
                        if use.lookup == isinstance(self.modules[name], nn.Embedding):
                            sums[name] = sums.get(name, 0) + _gram(use)
        return {name: _checked(name, sums.get(name)) * (2 / count) for name in names}

    def _uses(self, part: object, weights: Sequence[Tensor]) -> Uses:
        uses = Uses(weights)
        try:
            for weight in weights:
                weight.requires_grad_()
            with torch.enable_grad(), uses:
                call(self.model, part)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        return uses


def _gram(use: Use) -> Tensor:
    """The sum over positions of x x^T, for a lookup of its diagonal."""
    if use.lookup:
        ids = use.given["input"].flatten()
        return torch.bincount(ids, minlength=len(use.given["weight"])).double()[None]
    read = use.inputs(1)[0].double()
    return read @ read.mT


def _checked(name: str, total: Tensor | None) -> Tensor:
    if total is None:
        raise ValueError(
            f"layer {name!r} is not called on the calibration batches, so it has no salience; give"
            " batches that reach it, or leave it out with skip"
        )
    if not torch.isfinite(total).all():
        raise ValueError(
            f"layer {name!r} reads NaN or infinity on the calibration batches; wanted finite"
            " numbers: a model in half precision may overflow, give it in float32"
        )
    if not total.any():
        raise ValueError(
            f"layer {name!r} reads only zeros on the calibration batches, so its Hessian is zero;"
            " give batches that reach it, or leave it out with skip"
        )
    return total
