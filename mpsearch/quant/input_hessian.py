"""The Hessian of each layer's squared output error in a row of its weight: ``2/N sum x x^T``.

From GPTQ (Frantar et al. 2023, arXiv 2210.17323), with x what the layer reads at one position and N
the number of samples. All rows share it; a grouped convolution has one for each group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call, parts, samples
from mpsearch.quant.reads import Read, Reads
from mpsearch.tracing import module_weight, output_first, sites

_ELEMENTS = 1 << 27  # of Hessians that are in memory at once
_READ = 1 << 24  # numbers that are multiplied at once
_SAMPLES = 16  # that go through the model together


def as_rows(weight: Tensor, module: nn.Module) -> Tensor:
    """(groups, rows, columns) a weight as the matrix that meets what its module reads, float64."""
    groups = int(getattr(module, "groups", 1))
    values = weight.detach().double()
    if isinstance(module, nn.Embedding):
        return values.t()[None]
    first = output_first(values, module)
    return first.reshape(groups, len(first) // groups, -1)


def from_rows(rows: Tensor, module: nn.Module, shape: Sequence[int]) -> Tensor:
    """What :func:`as_rows` took apart, in the ``shape`` the module stores its weight in."""
    if isinstance(module, nn.Embedding):
        return rows[0].t()
    first = output_first(torch.empty(tuple(shape), device="meta"), module)
    return output_first(rows.reshape(first.shape), module)


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
        model: In eval mode, with attention made explicit; it is run, and not changed.
        batches: That it is run on.
        weights: Of the model, by name.
        modules: What multiplies by each.
        most: Samples that go through the model together.
    """

    model: nn.Module
    batches: Sequence[Any]
    weights: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]
    most: int = _SAMPLES
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, model: nn.Module, batches: Sequence[Any], names: Sequence[str], most: int = _SAMPLES
    ) -> "InputHessians":
        """Of the weights of these names."""
        using = users(model)
        weights = {name: module_weight(model, name) for name in names}
        modules = {name: using[id(weight)] for name, weight in weights.items()}
        return cls(model, batches, weights, modules, min(most, _SAMPLES))

    def __getitem__(self, name: str) -> Tensor:
        """(groups, p, p) the Hessian of a weight; of an embedding (1, p), its diagonal.

        Raises:
            ValueError: A layer that is never called, or reads only zeros, NaN or infinity.
        """
        total = self._found(name)
        if not total.any():
            raise ValueError(
                f"layer {name!r} reads only zeros on the calibration batches, so its Hessian is"
                " zero; give batches that reach it, or leave it out with skip"
            )
        return total

    def rounding(self, name: str) -> Tensor:
        """The same, to round a weight by; the identity where a layer reads only zeros.

        So it is behind activations that are dead on the batches: any integers do as well there, and
        by the identity they are as near to the weight as can be.
        """
        total = self._found(name)
        if total.any():
            return total
        columns = total.shape[-1]
        return torch.eye(columns).to(total).expand(total.shape) if total.dim() > 2 else total + 1

    def _found(self, name: str) -> Tensor:
        if name not in self._kept:
            self._kept.clear()
            self._kept.update(self._made(self._chunk(name)))
        return _checked(name, self._kept[name])

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

    @torch.no_grad()
    def _made(self, names: Sequence[str]) -> dict[str, Tensor]:
        tables = {name for name in names if isinstance(self.modules[name], nn.Embedding)}
        sums: dict[str, Tensor] = {name: torch.zeros(()) for name in names}
        count = 0

        def add(name: str, read: Read, output: Tensor) -> Tensor:
            if read.lookup == (name in tables):
                sums[name] = sums[name] + _gram(read, output)
            return output

        reads = Reads({id(self.weights[name]): name for name in names}, add)
        for batch in self.batches:
            for part in parts(batch, self.most):
                count += samples(part)
                with reads:
                    call(self.model, part)
        return {name: total * (2 / count) for name, total in sums.items()}


def _gram(read: Read, output: Tensor) -> Tensor:
    """The sum over positions of x x^T, for a lookup of its diagonal."""
    weight, x = read.given["weight"], read.given["input"]
    if read.lookup:
        return torch.bincount(x.flatten(), minlength=len(weight)).double()[None]
    numbers = x.numel()
    if weight.dim() > 2:  # of patches; a transposed convolution has more of them than it reads
        numbers = weight[0, 0].numel() * max(
            numbers, numbers // x[0, 0].numel() * output[0, 0].numel()
        )
    step = max(1, _READ * len(x) // max(1, numbers)) if x.dim() > 1 else 1
    total: Any = 0
    for part in x.split(step) if x.dim() > 1 else [x]:
        seen = Read(read.func, {**read.given, "input": part}).inputs(1)[0].double()
        total = total + seen @ seen.mT
    return total  # type: ignore[no-any-return]


def _checked(name: str, total: Tensor) -> Tensor:
    if total.dim() == 0:
        raise ValueError(
            f"layer {name!r} is not called on the calibration batches, or multiplies by its weight"
            " in its own way (F.linear, addmm and convolutions are known), so its input has no"
            " Hessian; give batches that reach it, or leave it out with skip"
        )
    if not torch.isfinite(total).all():
        raise ValueError(
            f"layer {name!r} reads NaN or infinity on the calibration batches; wanted finite"
            " numbers: a model in half precision may overflow, give it in float32"
        )
    return total
