"""The trace of every weight's Hessian block, by the cheapest way that is exact enough.

A divergence from the model's own output has the Gauss-Newton matrix as its Hessian, whatever the
network; so has softmax cross-entropy, block by block, where the output is piecewise linear in each
weight. Those traces take no curvature products. What is left takes Hutchinson's probes.
"""

import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.batches import call, divergence, parts, samples, tensor_of
from mpsearch.network import Network
from mpsearch.quant.attention import explicit
from mpsearch.quant.memory import divided, fitting
from mpsearch.sensitivity.cross_entropy import bends_as_kl
from mpsearch.sensitivity.gauss_newton import TOGETHER, GaussNewton, run, separable
from mpsearch.sensitivity.hutchinson import Curvature, Deflated
from mpsearch.sensitivity.seeded import seeded
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats
from mpsearch.task import Task
from mpsearch.tracing import curved

Method = Literal["auto", "exact", "sampled", "hutchinson"]

_DIRECTIONS = 1 << 29  # most bytes of directions and their images

# Where the values of an example may decide which rows a layer reads, as in a mixture of experts.
_ROUTING = """
    _local_scalar_dense _unique2 argsort bincount index index_put is_nonzero masked_scatter
    masked_select nonzero sort topk unique_dim
""".split()


@dataclass(frozen=True, eq=False)
class Traces:
    """The weights of a network on a copy of its model, and the loss that is bent.

    Attributes:
        task: Whose batches, and whose loss where it has one.
        network: Whose layers.
        model: The copy, in eval mode.
        weights: W parameters of the copy: each layer's in turn.
    """

    task: Task
    network: Network
    model: nn.Module
    weights: tuple[Tensor, ...]

    @classmethod
    def of(cls, task: Task, network: Network) -> "Traces":
        """On a copy in which only the layers' weights want gradients."""
        model = explicit(copy.deepcopy(task.model)).eval().requires_grad_(False)
        layers = stored(model, network)
        weights = tuple(one.weight for layer in layers for one in layer)
        for weight in weights:
            weight.requires_grad_()
        return cls(task, network, model, weights)

    def method(self, asked: Method, probes: int) -> Method:
        """The method asked for, where it applies; for ``auto`` the first one that does."""
        if asked == "hutchinson":
            return asked
        why = self._hindrance()
        if asked == "auto":
            few = self.outputs <= probes
            return "hutchinson" if why else "exact" if few else "sampled"
        if why:
            raise ValueError(f"method {asked!r} does not apply: {why}; use 'hutchinson' or 'auto'")
        return asked

    def _hindrance(self) -> str:
        """Why the Gauss-Newton matrix is not the Hessian, block by block; empty where it is."""
        if self.task.loss is None:
            return ""
        if ops := curved(self.network):
            return f"the network is not piecewise linear: it uses {', '.join(ops[:3])}"
        if any(len(found) > 1 for found in self._first[1].found):
            return "a weight is used more than once"
        for batch in self.task.batches:
            with torch.no_grad():
                output = call(self.model, batch)
            if not bends_as_kl(self.task.loss, output, batch):
                return "the loss is not softmax cross-entropy, averaged over samples"
        return ""

    @cached_property
    def _first(self) -> tuple[Tensor, Any]:
        """The output of one sample, and what it used the weights for."""
        return run(self.model, parts(self.task.batches[0], 1)[0], self.weights)

    @property
    def outputs(self) -> int:
        """Elements of a sample's output."""
        return self._first[0].numel()

    def by_sample(self, groups: int | None, seed: int, sweep: Sweep) -> Floats:
        """(samples, W) traces of the Gauss-Newton blocks; ``groups`` is that of its columns."""
        blocks = GaussNewton(self.model, self.weights, groups, together=self.together())
        some = replace(blocks, groups=min(groups or TOGETHER, TOGETHER))
        most = 1
        if blocks.together:
            memory = float(sweep.memory)
            most = fitting(lambda x: some.traces(x, seeded(seed)), self.task.batches, memory)
        pieces = divided(self.task.batches, most)

        def compute(unit: Unit) -> list[float]:
            batch, first, end = map(int, unit[-3:])
            signs = [seeded(seed, batch, sample) for sample in range(first, end)]
            found: list[float] = blocks.traces(pieces[batch, first, end], signs).flatten().tolist()
            return found

        units: list[Unit] = [("columns", groups or 0, seed, *place) for place in pieces]
        rows = sweep.run("hessian trace", units, compute)
        return np.concatenate([np.reshape(row, (-1, len(self.weights))) for row in rows])

    def by_product(self, products: int, seed: int, sweep: Sweep) -> Floats:
        """(probes, W) unbiased estimates of the traces, from so many products on each batch.

        The batches are taken in parts where the loss is the divergence; only then is it known to be
        a mean over samples.
        """
        memory = float(sweep.memory) / 2
        pieces = divided(self.task.batches, self._bendable(memory))
        size = sum(weight.nbytes for weight in self.weights)
        rank = min(products // 4, int(min(memory, _DIRECTIONS) // (2 * size)))
        probes = products - 2 * rank

        @lru_cache(maxsize=1)
        def deflated(*place: int) -> Deflated:
            return Deflated.of(self._curvature(pieces[place]), rank, seeded(seed, *place[:2]))

        def compute(unit: Unit) -> list[float]:
            *place, probe = map(int, unit[-4:])
            return deflated(*place).probe(seeded(seed, *place[:2], probe + 1))

        units: list[Unit] = [
            ("products", products, rank, seed, *place, probe)
            for place in pieces
            for probe in range(probes)
        ]
        found = sweep.run("hessian trace", units, compute)
        sizes = np.array([samples(piece) for piece in pieces.values()])
        each = np.reshape(found, (len(pieces), probes, len(self.weights)))
        return np.average(each, axis=0, weights=sizes)

    def _curvature(self, batch: Any) -> Curvature:
        return Curvature.of(self.model, self.weights, batch, self.task.loss or _own)

    def _bendable(self, memory: float) -> int:
        """Of how many samples the loss is bent at once."""
        if self.task.loss is not None:
            return max(map(samples, self.task.batches))

        def bend(batch: Any) -> None:
            curvature = self._curvature(batch)
            curvature.product(curvature.signs(seeded(0)))

        return fitting(bend, self.task.batches, memory)

    def together(self) -> bool:
        """Whether samples may go through the model together."""
        routing = any(op.removeprefix("aten.") in _ROUTING for op in self.network.ops)
        return not routing and separable(self.model, self.task.batches[0], self.weights)


def _own(output: Any, _: Any) -> Tensor:
    """The mean divergence from the output itself."""
    found = tensor_of(output)
    return divergence(found.detach(), found).mean()
