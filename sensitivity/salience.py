"""Which weights are salient, and what rounding them would cost: SliM-LLM, GPTQ, SpQR, GWQ.

From SliM-LLM (Huang et al. 2025, arXiv 2405.14917, eq. 5), GPTQ (Frantar et al. 2023, arXiv
2210.17323, eq. 2), SpQR (Dettmers et al. 2023, arXiv 2306.03078, eq. 2) and GWQ (Shao et al. 2024,
arXiv 2411.00850). With H the Hessian of a layer's squared output error in a row of its weight, and
``H^-1 = U^T U`` with U upper triangular, ``U_jj^2`` is what of ``(H^-1)_jj`` is left once the
columns before j are settled.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mpsearch.batches import checked, samples
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.attention import explicit
from mpsearch.quant.bench import at_layer, changes
from mpsearch.quant.input_hessian import InputHessians, as_rows
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.input_hessian import input_hessians
from mpsearch.sensitivity.labels import sloped_loss, slopes
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sensitivity.weights import Stored, rounded, stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic, module_weight, output_first

Method = Literal["slim", "gptq", "spqr", "gwq", "magnitude"]
_NAMES = {"slim": "SliM-LLM", "gptq": "GPTQ", "spqr": "SpQR", "gwq": "GWQ", "magnitude": "|w|"}


@dataclass(frozen=True)
class Salience:
    """A rank score of rounding each layer's weights; the format of activations does not enter.

    With q the rounded weight w, and sums over all weights of a layer:

    - ``slim``: ``sum w^2 / U_jj^2`` times ``||q - w||^2 / ||w||^2``. SliM-LLM ranks groups by the
      first factor and has no price for a format; the second one is this package's reading.
    - ``magnitude``: the same, with ``sum |w|``; it sees no data.
    - ``gptq``: ``sum (q - w)^2 / (2 U_jj^2)``, what GPTQ adds up as its loss, here of weights
      rounded as the recipe says, without its feedback of errors to later columns.
    - ``spqr``: ``sum (q - w)^2 / (2 (H^-1)_jj)``: each weight rounded alone, all others free to
      make up for it.
    - ``gwq``: ``sum |g (q - w)|`` over the weights of the largest ``|g|`` in a matrix, which GWQ
      keeps at 16 bits; g is the mean gradient of the task's loss, or of cross-entropy with labels.
      How GWQ would price a format is this package's reading.

    Attributes:
        method: As above.
        damp: Added to the diagonal of H: as it is for ``slim``, as SliM-LLM's search does, else
            times the diagonal's mean.
        share: Of the weights of a matrix, that ``gwq`` looks at.
        context: What all layers have where inputs and gradients are seen:
            :mod:`mpsearch.sensitivity.surroundings`; it changes nothing for ``magnitude``.
        draws: How many random networks.
        seed: Of their options.
    """

    method: Method = "slim"
    damp: float = 0.01
    share: float = 0.01
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that no method has."""
        if self.method not in get_args(Method):
            known = ", ".join(map(repr, get_args(Method)))
            raise ValueError(f"no method is named {self.method!r}; there are {known}")
        if not 0 < self.damp < float("inf"):
            raise ValueError(f"damp is {self.damp!r}; wanted a number above 0, such as 0.01")
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share!r}; wanted a number above 0 and at most 1")
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
        """Table of rank scores.

        Raises:
            ValueError: Batches, a model or a format it cannot work with; for ``gwq`` also a loss,
                or labels that are missing.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        for option in options:
            changes(option)  # refuses what cannot be quantized to, before the long part
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        layers, options = stored(at.task.model, at.network), at.options
        weights = {one.name: one for layer in layers for one in layer}
        formats = {str(option.weight): option for option in options}
        prices = _Prices(self, at.inside, layers, at.recipe)

        def compute(unit: Unit) -> list[float]:
            name, form = str(unit[-2]), str(unit[-1])
            return [prices.of(weights[name], formats[form])]

        units: list[Unit] = [(repr(self), name, form) for name in weights for form in formats]
        prices_of = at.study.run("salience", units, compute)
        found = {unit[1:]: price for unit, (price,) in zip(units, prices_of, strict=True)}
        values = [
            [sum(found[one.name, str(o.weight)] for one in layer) for o in options]
            for layer in layers
        ]
        return Table(
            at.network.layers,
            options,
            np.array(values),
            f"rank score ({_NAMES[self.method]})",
            allowed=at.network.mask(options),
        )


def stiffness(hessian: Tensor, damp: float) -> Tensor:
    """(..., p) ``1 / U_jj^2`` for the inverse ``U^T U`` of a Hessian to which damp I was added.

    Raises:
        ValueError: A Hessian that is not positive definite.
    """
    factor = _factor(hessian.flip(-1, -2), damp)  # H = R R^T with R upper, so that U = R^-1
    return factor.diagonal(dim1=-2, dim2=-1).flip(-1).square()


def group_salience(weight: Tensor, hessian: Tensor, group: int, damp: float = 0.01) -> Floats:
    """(groups,) SliM-LLM's ``sum w^2 / U_jj^2`` over all rows and each ``group`` columns.

    Args:
        weight: (rows, columns), of a linear layer.
        hessian: (columns, columns).
        group: Columns that share a bit-width; the last group may be shorter.
        damp: Added to the diagonal.
    """
    if group < 1:
        raise ValueError(f"group is {group!r}; wanted at least one column")
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} and a Hessian of shape"
            f" {tuple(hessian.shape)}; wanted (rows, columns) and (columns, columns)"
        )
    columns = (weight.double().square() * stiffness(hessian.double(), damp)).sum(0)
    return np.array([float(part.sum()) for part in columns.split(group)])


def outliers(gradient: Tensor, share: float) -> Tensor:
    """Mask of the share of a matrix with the largest ``|gradient|``, at least one weight."""
    count = max(1, round(share * gradient.numel()))
    kept = gradient.abs().flatten().topk(count).indices
    mask = torch.zeros(gradient.numel(), dtype=torch.bool, device=gradient.device)
    mask[kept] = True
    return mask.reshape(gradient.shape)


@dataclass(frozen=True, eq=False)
class _Prices:
    """What each format costs each weight.

    Attributes:
        task: In its surroundings.
        layers: In float.
    """

    salience: Salience
    task: Task
    layers: Sequence[Sequence[Stored]]
    recipe: Recipe

    def of(self, one: Stored, option: Option) -> float:
        if not option.weight.quantized:
            return 0.0
        weight = one.weight.detach()
        error = _rounded(one, option, self.recipe).double() - weight.double()
        if self.salience.method == "gwq":
            gradient = self._slopes[one.name]
            return float((gradient * error).abs()[outliers(gradient, self.salience.share)].sum())
        if self.salience.method == "magnitude":
            return float(weight.double().abs().sum()) * _relative(error, weight)
        module = self._hessians.modules[one.name]
        column = self._columns(one.name)[:, None, :]
        if self.salience.method == "slim":
            salience = float((as_rows(weight, module).square() * column).sum())
            return salience * _relative(error, weight)
        return float((as_rows(error, module).square() * column).sum()) / 2

    @cached_property
    def _hessians(self) -> InputHessians:
        return input_hessians(self.task, self.layers)

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        return {}

    def _columns(self, name: str) -> Tensor:
        """(groups, columns) what one over the squared error of a weight in each column costs."""
        if name not in self._kept:
            self._kept[name] = at_layer(name, stiff, self._hessians[name], self.salience)
        return self._kept[name]

    @cached_property
    def _slopes(self) -> Mapping[str, Tensor]:
        """The gradient of the mean loss over all samples in each weight."""
        model = explicit(copy.deepcopy(self.task.model)).eval().requires_grad_(False)
        names = [one.name for layer in self.layers for one in layer]
        weights = [module_weight(model, name).requires_grad_() for name in names]
        total = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
        count = sum(map(samples, self.task.batches))
        for batch in self.task.batches:
            found = slopes(model, weights, batch, sloped_loss(self.task))
            for one, slope in zip(total, found, strict=True):
                one.add_(slope, alpha=samples(batch) / count)
        return dict(zip(names, total, strict=True))


def stiff(hessian: Tensor, salience: Salience) -> Tensor:
    """(groups, p) what a squared error in each column costs, damped as the settings say."""
    if hessian.dim() == 2:  # an embedding's diagonal: U and H^-1 are diagonal, too
        mean = 1.0 if salience.method == "slim" else float(hessian.mean())
        return hessian + salience.damp * mean
    if salience.method == "slim":
        return stiffness(hessian, salience.damp)
    damp = salience.damp * float(hessian.diagonal(dim1=-2, dim2=-1).mean())
    if salience.method == "gptq":
        return stiffness(hessian, damp)
    inverse = torch.cholesky_inverse(_factor(hessian, damp))
    return inverse.diagonal(dim1=-2, dim2=-1).reciprocal()


def _factor(hessian: Tensor, damp: float) -> Tensor:
    damped = hessian.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damp)
    factor: Tensor
    factor, wrong = torch.linalg.cholesky_ex(damped)
    if wrong.any() or not torch.isfinite(factor).all():
        raise ValueError(
            f"its Hessian is not positive definite with {damp:.3g} added to the diagonal; give a"
            " larger damp or more samples"
        )
    return factor


def _rounded(one: Stored, option: Option, recipe: Recipe) -> Tensor:
    """The weight as its module stores it, rounded."""
    return output_first(rounded(one, option, recipe), one.module)


def _relative(error: Tensor, weight: Tensor) -> float:
    norm = float(weight.double().square().sum())
    return float(error.square().sum()) / norm if norm else 0.0
