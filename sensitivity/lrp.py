"""How much of the network's answer passes through each layer: layer-wise relevance propagation.

From LRP-QViT (Ranjan and Savakis 2024, arXiv 2401.11243), for any network.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.batches import call, checked, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Layer, Network
from mpsearch.quant.attention import explicit
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.relevance import Relevance, Split
from mpsearch.sensitivity.rules import Name, Rule
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sensitivity.weight_error import squared_errors
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic, module_weight

Price = Literal["bits", "error"]
_FULL = 16  # bits of what is not quantized


@dataclass(frozen=True)
class LRP:
    """A layer's share of relevance, times what an option takes from it. It only ranks.

    Relevance 1 starts at each sample's likeliest class (of several tokens, shared among them; of
    other outputs, among all elements by their size) and is handed back as in
    :mod:`mpsearch.sensitivity.relevance`. A layer's score is the mean over samples of the sum of
    ``|R|`` where it arrives at the layer's outputs, divided by the sum of all layers' scores. As
    relevance is kept, layers one after another have equal scores by the ``zplus`` rule, whose
    shares are all positive; branches divide it, and other rules make positive and negative parts.

    Reading: the paper's objective is not stated in what could be read of it. ``bits`` maximises the
    sum of score times bits, weights and inputs counted; ``error`` weights the score by the relative
    squared error of the layer's rounded weights instead. The standard error is over samples.

    Attributes:
        rule: How layers divide relevance.
        epsilon: Of the other two rules; see :class:`Rule`.
        gamma: Of the rule of that name.
        split: How skips, attention and gates divide it.
        price: What an option takes from a layer.
        context: What all layers have: :mod:`mpsearch.sensitivity.surroundings`.
        draws: How many random networks.
        seed: Of their options.
    """

    rule: Name = "zplus"
    epsilon: float = 0.25
    gamma: float = 0.25
    split: Split = "signed"
    price: Price = "bits"
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        Rule(self.rule, self.epsilon, self.gamma)
        check_context(self.context, self.draws)
        for name, value, known in (
            ("split", self.split, get_args(Split)),
            ("price", self.price, get_args(Price)),
        ):
            if value not in known:
                raise ValueError(
                    f"{name} is {value!r}; there are {', '.join(map(repr, known))}: take one"
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
        """Table of scores times bits or errors.

        Raises:
            ValueError: Batches, a format or an operation it cannot work with; a layer that never
                runs; relevance that is not finite.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        prices = self._prices(at)
        scores = self.scores(at.inside, at.network, sweep=at.study)
        scores /= scores.mean(axis=0).sum() or 1.0
        stderr = scores.std(axis=0, ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else None
        return Table(
            at.network.layers,
            at.options,
            scores.mean(axis=0)[:, None] * prices,
            "rank score (LRP)",
            stderr=None if stderr is None else stderr[:, None] * prices,
            allowed=at.network.mask(at.options),
        )

    def scores(self, task: Task, network: Network, *, sweep: Sweep) -> Floats:
        """(N, L) the sum of ``|R|`` that arrives at each layer's outputs, for each sample."""
        with _propagating(task.model) as model:
            weights = [
                {id(w): w for w in (module_weight(model, name) for name in layer.modules)}
                for layer in network.layers
            ]
            names = " ".join(layer.name for layer in network.layers)
            units: list[Unit] = [(number, names) for number in range(len(task.batches))]

            def compute(unit: Unit) -> list[float]:
                batch = task.batches[int(unit[0])]
                arrived = self.propagate(model, batch, [w for ws in weights for w in ws.values()])
                rows = [[next(arrived) for _ in ws] for ws in weights]
                found = [
                    _size(layer, [x for use in uses for x in use], samples(batch))
                    for layer, uses in zip(network.layers, rows, strict=True)
                ]
                return [float(x) for x in torch.stack(found, dim=1).flatten()]

            found = sweep.run("lrp", units, compute)
        return np.concatenate([np.reshape(rows, (-1, len(network.layers))) for rows in found])

    def propagate(
        self, model: nn.Module, batch: Any, weights: Sequence[Tensor]
    ) -> Iterator[list[Tensor]]:
        """For each weight the relevance at the outputs of each of its uses.

        ``model`` is in eval mode and none of its parameters wants gradients.
        """
        mode = Relevance(Rule(self.rule, self.epsilon, self.gamma), self.split, weights)
        batch = _wanting(batch)
        with torch.enable_grad():
            with mode:
                output = tensor_of(call(model, batch))
            if not output.requires_grad:
                raise ValueError(
                    "the output does not depend on the batch in a way that autograd follows;"
                    " wanted a forward without torch.no_grad or detach, or use 'kl'"
                )
            output.backward(_answer(output.detach(), samples(batch)))
        return iter(mode.arrived)

    def _prices(self, at: Around) -> Floats:
        """(L, K) what each option takes from each layer."""
        if self.price == "bits":
            found = [[_missing(layer, o) for o in at.options] for layer in at.network.layers]
            return np.array(found)
        layers = stored(at.task.model, at.network)
        norms = [sum(float(s.weight.detach().double().square().sum()) for s in w) for w in layers]
        errors = squared_errors(layers, at.options, at.recipe, at.sweep)
        return np.stack([e.sum(axis=0) / (n or 1.0) for e, n in zip(errors, norms, strict=True)])


def _missing(layer: Layer, option: Option) -> float:
    """Bits that a layer's weights and inputs lack of 16; an embedding reads indices."""
    changes(option)  # refuses what cannot be quantized to
    formats = [option.weight] if layer.kind == "embedding" else [option.weight, option.activation]
    return float(sum(max(0, _FULL - form.bits) for form in formats))


@contextmanager
def _propagating(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in eval mode, attention written out, that wants no gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield explicit(copy.deepcopy(model)).eval().requires_grad_(False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _wanting(batch: Any) -> Any:
    """The batch with new tensors; what is no index wants gradients."""
    if isinstance(batch, Tensor):
        new = batch.detach().clone()
        return new.requires_grad_() if new.is_floating_point() else new
    if isinstance(batch, dict):
        return {key: _wanting(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_wanting(value) for value in batch)
    return batch


def _answer(output: Tensor, count: int) -> Tensor:
    """Relevance 1 for each sample."""
    start = torch.zeros_like(output)
    if output.dim() in (2, 3):
        start.scatter_(-1, output.argmax(-1, keepdim=True), 1.0)
    else:
        start = output.abs()
    flat = start.reshape(count, -1)
    return (flat / flat.sum(1, keepdim=True).clamp_min(1e-30)).reshape(output.shape)


def _size(layer: Layer, uses: Sequence[Tensor], count: int) -> Tensor:
    """(N,) the sum of ``|R|`` over a layer's uses, for each sample."""
    if not uses:
        raise ValueError(
            f"layer {layer.name!r} never runs on these batches or does not reach the output, so it"
            " has no relevance; give batches that reach it, or skip it"
        )
    total = torch.stack([use.double().abs().reshape(count, -1).sum(1) for use in uses]).sum(0)
    if not torch.isfinite(total).all():
        raise ValueError(
            f"layer {layer.name!r}: its relevance is NaN or infinite; check weights and batches,"
            " use another rule, or float32 where the model is in half precision"
        )
    return total
