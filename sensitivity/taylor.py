"""What a Taylor series of the loss says of rounding: gradient times change, per layer and option.

``dW = Q(W) - W`` is what rounding does to a weight, ``dx = Q(x) - x`` what it does to a layer's
input, and g the gradient of the loss there.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpsearch.batches import call, checked, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.slopes import (
    Layers,
    Place,
    Reads,
    Role,
    Term,
    finite,
    loss_of,
    one_of,
    reached,
    slopes,
    watching,
)
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Variant = Literal["autoround", "llm-mq", "second-order"]
Absolute = Literal["elements", "sum"]
Given = Mapping[str, Option]


@dataclass(frozen=True)
class Taylor:
    """The loss's Taylor series along what rounding changes: weights, inputs, or both.

    - ``autoround`` (Intel's AutoScheme): ``sum |g * dW| + sum |g * dx|``, with the gradient at the
      rounded tensors of a network in which every layer is at the option. A layer that may not take
      the option is left in float there.
    - ``llm-mq`` (Li et al. 2023, LLM-MQ): ``|g . dW|`` and ``|g . dx|``, with the gradient in the
      float network. Where the paper takes the absolute value is not certain: here it is
      that of the sum over all elements and batches, unless ``absolute`` says otherwise. It wants a
      loss of the task's own: the divergence from the float output has no slope there.
    - ``second-order``: ``g . d + d . H d / 2`` in the float network, with d all that the option
      changes in the layer and H the Hessian there. Signed, in the loss's own unit; one
      Hessian-vector product for each layer, option and batch.

    In a context the gradient is that in the context's network, whatever the variant, and without a
    loss of the task's own that of the divergence from the float output, which has a slope there.

    Numbers are means over samples of what each batch says; the standard error is over batches.

    Attributes:
        variant: One of the three.
        absolute: Of each element in each batch, or of the sum; by default the variant's own.
        context: What all layers have where gradients are taken:
            :mod:`mpsearch.sensitivity.surroundings`.
        draws: How many random networks.
        seed: Of their options.
    """

    variant: Variant = "autoround"
    absolute: Absolute | None = None
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that nothing follows."""
        one_of("variant", self.variant, get_args(Variant))
        if self.absolute is not None:
            one_of("absolute", self.absolute, get_args(Absolute))
        if self.absolute and self.variant == "second-order":
            raise ValueError(
                f"absolute is {self.absolute!r}, but 'second-order' is signed; leave it out"
            )
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
        """Table of Taylor terms.

        Raises:
            ValueError: Batches, a model, a loss or a format it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        task, network = at.task, at.network
        if self.variant == "llm-mq" and task.loss is None and not at.given:
            raise ValueError(
                "'llm-mq' takes the gradient in the float network, where the divergence from its"
                " own output has none; give Task(loss=...), or use 'autoround' or 'second-order'"
            )
        layers = Layers.of(at)
        rows = reached(self._rows(layers, at.study), network)
        sizes = np.array([samples(batch) for batch in task.batches], float)
        share = (sizes / sizes.sum())[:, None, None]
        if self._absolute == "sum":
            rows = rows * np.where((share[..., None] * rows).sum(axis=0) < 0, -1, 1)
        each, count = rows.sum(axis=-1), len(rows)
        values = (share * each).sum(axis=0)
        spread = ((share * (each - values)) ** 2).sum(axis=0)
        stderr = np.sqrt(spread * count / (count - 1)) if count > 1 else None
        names = {"autoround": "AutoRound", "llm-mq": "LLM-MQ"}
        rank = f"rank score ({names.get(self.variant)})"
        said = f"{layers.unit}, to second order" if self.variant == "second-order" else rank
        return Table(network.layers, at.options, values, said, stderr=stderr, allowed=layers.mask)

    @property
    def _absolute(self) -> Absolute | None:
        own: dict[Variant, Absolute] = {"autoround": "elements", "llm-mq": "sum"}
        return self.absolute or own.get(self.variant)

    def _rows(self, layers: Layers, sweep: Sweep) -> Floats:
        """(batches, layers, options, 2) scores of weights and inputs; NaN without a gradient."""
        named = {str(option): option for option in layers.options}
        each = self.variant == "autoround"  # the float network serves all options at once
        groups = [(name,) for name in named] if each else [tuple(named)]
        settings = (layers.key, self.variant, self._absolute or "")
        count = len(layers.task.batches)

        def compute(unit: Unit) -> list[float]:
            options = [named[str(name)] for name in unit[3:-1]]
            found: list[float] = self._scores(layers, options, int(unit[-1])).flatten().tolist()
            return found

        units: list[Unit] = [(*settings, *group, i) for group in groups for i in range(count)]
        found = sweep.run("taylor", units, compute)
        blocks = np.reshape(found, (len(groups), count, layers.mask.shape[0], -1, 2))
        return np.concatenate(list(blocks), axis=2)

    def _scores(self, layers: Layers, options: Sequence[Option], number: int) -> Floats:
        """(layers, options, 2) of one batch."""
        scores = np.zeros((layers.mask.shape[0], len(options), 2))
        if not any(changes(option) for option in options):
            return scores
        at_option = self.variant == "autoround" and not layers.surrounded
        given = _all_at(layers, options[0]) if at_option else {}
        second = self.variant == "second-order"
        reads, found = _differentiated(layers, options, number, given, graph=second)
        for row, column in np.ndindex(scores.shape[:2]):
            terms = layers.terms(row, options[column], reads, found)
            if any(term.slope is None for term in terms):
                scores[row, column] = np.nan
                continue
            scores[row, column] = [
                finite(one, layers.named(row), options[column]) for one in self._score(terms)
            ]
        return scores

    def _score(self, terms: Sequence[Term]) -> tuple[float, float]:
        if self.variant == "second-order":
            return second_order(terms), 0.0
        found: dict[Role, float] = {"weight": 0.0, "input": 0.0}
        for term in terms:
            product = term.slope.double() * term.change.double()  # type: ignore[union-attr]
            product = product.abs() if self._absolute == "elements" else product
            found[term.role] += float(product.sum())
        return found["weight"], found["input"]


def _all_at(layers: Layers, option: Option) -> dict[str, Option]:
    """Every module of the layers that may be at an option at it."""
    allowed = [i for i in range(len(layers.mask)) if layers.allows(i, option)]
    return {name: option for row in allowed for name in layers.network.layers[row].modules}


def _differentiated(
    layers: Layers, options: Sequence[Option], number: int, given: Given, *, graph: bool
) -> tuple[Reads, dict[int, Tensor | None]]:
    """What modules read for a batch with some of them quantized, and the gradients there."""
    task, model, batch = layers.task, layers.model, layers.task.batches[number]
    reference = None
    if (given or layers.surrounded) and task.loss is None:
        with torch.no_grad():
            reference = tensor_of(call(layers.bench.model, batch))
    readers = layers.readers(options)
    with layers.bench.at(given) if given else nullcontext(), watching(model, readers) as reads:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            output = call(model, batch)
            found = tensor_of(output).detach() if reference is None else reference
            value = loss_of(task, output, batch, found)
        places: list[Place] = [one.edge for calls in reads.values() for one in calls]
        return reads, slopes(value, [*places, *layers.weights(options)], graph=graph)


def second_order(terms: Sequence[Term]) -> float:
    """``g . d + d . H d / 2`` along the terms together."""
    images = bent([t.slope for t in terms], [t.place for t in terms], [t.change for t in terms])
    return sum(
        _dot(term.slope, term.change) + _dot(image, term.change) / 2
        for term, image in zip(terms, images, strict=True)
    )


def bent(
    bases: Sequence[Tensor | None], places: Sequence[Place], v: Sequence[Tensor]
) -> list[Tensor]:
    """H v in some places together; ``bases`` are the slopes there, with their graph."""
    pairs = [
        (base, x.to(base))
        for base, x in zip(bases, v, strict=True)
        if base is not None and base.requires_grad
    ]
    if not pairs:
        return [torch.zeros_like(x) for x in v]
    outputs, given = zip(*pairs, strict=True)
    at: Any = places  # tensors and edges mixed are taken, too
    found = torch.autograd.grad(outputs, at, given, retain_graph=True, allow_unused=True)
    images: Sequence[Tensor | None] = found
    return [
        torch.zeros_like(x) if image is None else image for image, x in zip(images, v, strict=True)
    ]


def _dot(one: Tensor | None, other: Tensor) -> float:
    return 0.0 if one is None else float((one.detach().double() * other.double()).sum())
