"""Scores of layers that quantize nothing: the baselines of EMQ, each layer at its own bit-width.

From EMQ (Dong et al. 2023, arXiv 2307.10554), which scores a whole configuration by the sum over
layers of a metric times the bits of the weight. The metrics are those of SNIP (Lee et al. 2019,
arXiv 1810.02340), SynFlow (Tanaka et al. 2020, arXiv 2006.05467), OMPQ (Ma et al. 2023, arXiv
2109.07865), the Quantization Entropy Score (Sun et al. 2022) and the number of parameters. EMQ's
code pairs bits with layers by position and slips where a shortcut has a convolution; here layers go
by name.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mpsearch.batches import call, checked, joined, samples, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.attention import explicit
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.code_entropy import lost_nats, stage_weights
from mpsearch.sensitivity.labels import sloped_loss, slopes
from mpsearch.sensitivity.relative_error import check_called, watching
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sensitivity.weights import stored
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

Method = Literal["snip", "synflow", "orm", "ompq", "qe", "bparams"]
Initial = Literal["gaussian", "trained"]
_NAMES = {"snip": "SNIP", "synflow": "SynFlow", "bparams": "BParams"}  # others in capitals
_FULL = 16  # bits that lose nothing


@dataclass(frozen=True)
class ZeroCost:
    """A metric of each layer times the bits its weight lacks of 16: a rank score.

    The sum over layers of metric times bits, which EMQ makes as large as it can, is a constant less
    the total of this table. An option of 16 or 32 bits loses nothing, and the activations' format
    enters ``qe`` only.

    - ``snip``: ``sum |w dL/dw|`` over a layer's weights, L the task's loss or cross-entropy with
      labels; mean over batches, with its standard error.
    - ``synflow``: ``sum |w dR/dw|``, R the sum of outputs for one input of ones, all parameters
      replaced by their magnitudes, batch norms left out, in float64. ReLU6 and hardtanh are taken
      as ReLU: saturated, they would let nothing through.
    - ``orm``: ``exp(-beta gamma) / L`` for L layers, gamma the sum of a layer's
      :func:`orthogonality` with each other layer, as in EMQ.
    - ``ompq``: the mean of ``exp(-beta gamma)`` over the layer and all that follow it: what OMPQ's
      linear program weighs bits with.
    - ``qe``: the nats that the codes of Gaussian weights and inputs lose, times how often later
      stages count the layer: `mpsearch.sensitivity.code_entropy`.
    - ``bparams``: MiB of weights.

    Attributes:
        method: As above.
        initial: What ``synflow`` looks at: weights drawn from a standard Gaussian, as EMQ does, or
            the trained ones.
        beta: Of ``orm`` (1 in EMQ) and ``ompq`` (1e-9 to 100, by network).
        samples: Most samples that ``orm`` and ``ompq`` look at.
        ratios: What each stage of a network counts in ``qe``, the last one last.
        seed: Of Gaussian weights, and of random options.
        context: What all layers have: :mod:`mpsearch.sensitivity.surroundings`; it changes nothing
            for ``qe`` and ``bparams``, nor for ``synflow``, of float weights and no data.
        draws: How many random networks.
    """

    method: Method = "synflow"
    initial: Initial = "gaussian"
    beta: float = 1.0
    samples: int = 32
    ratios: tuple[float, ...] = (0, 0, 1, 1, 6)
    seed: int = 0
    context: Context = "alone"
    draws: int = 4

    def __post_init__(self) -> None:
        """Refuse settings that no method has."""
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("initial", self.initial, get_args(Initial)),
        ):
            if value not in known:
                raise ValueError(f"no {name} is {value!r}; there are {', '.join(map(repr, known))}")
        check_context(self.context, self.draws)
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta is {self.beta!r}; wanted a number above 0")
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples!r}; wanted at least 2")
        if not self.ratios or min(self.ratios) < 0 or self.ratios[-1] <= 0:
            raise ValueError(
                f"ratios are {self.ratios!r}; wanted numbers from 0 up, the last one above 0"
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
        """Table of rank scores.

        Raises:
            ValueError: Batches or a model it cannot work with; for ``snip`` also a loss, or labels
                that are missing.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, network, options, recipe=recipe, sweep=sweep)
        return averaged(map(self._table, each))

    def _table(self, at: Around) -> Table:
        network, options = at.network, at.options
        lacking = np.array([_lacking(option.weight.bits) for option in options])
        stderr = None
        if self.method == "qe":
            values = np.outer(stage_weights(network, self.ratios), lost_nats(options))
        else:
            rows = self._rows(at)
            values = np.outer(rows.mean(axis=0), lacking)
            if len(rows) > 1:
                stderr = np.outer(rows.std(axis=0, ddof=1) / len(rows) ** 0.5, lacking)
        return Table(
            network.layers,
            options,
            values,
            f"rank score ({_NAMES.get(self.method, self.method.upper())})",
            stderr=stderr,
            allowed=network.mask(options),
        )

    def _rows(self, at: Around) -> Floats:
        """(batches or 1, layers) metrics."""
        if self.method == "bparams":
            return np.array([[layer.params / 8 / 2**20 for layer in at.network.layers]])
        network, task = at.network, at.task if self.method == "synflow" else at.inside
        model = explicit(copy.deepcopy(task.model)).eval().requires_grad_(False)
        check_called(model, task, network)

        def compute(unit: Unit) -> list[float]:
            if self.method == "snip":
                return _snip(model, task, network, int(unit[-1]))
            if self.method == "synflow":
                return _synflow(model, task, network, self)
            return self._orthogonal(model, task, network)

        batches = range(len(task.batches) if self.method == "snip" else 1)
        units: list[Unit] = [(repr(self), batch) for batch in batches]
        return np.array(at.study.run("zero cost", units, compute))

    def _orthogonal(self, model: nn.Module, task: Task, network: Network) -> list[float]:
        names = [layer.name for layer in network.layers]
        features = _features(model, joined(task.batches, self.samples), network)
        matrix = orthogonality(features, names)
        gamma = matrix.sum(axis=1) - matrix.diagonal()
        theta = np.exp(-self.beta * gamma)
        if self.method == "orm":
            return [float(each) for each in theta / len(theta)]
        after = np.cumsum(theta[::-1])[::-1]
        return [float(each) for each in after / np.arange(len(theta), 0, -1)]


def orthogonality(features: Sequence[Tensor], names: Sequence[str] = ()) -> Floats:
    """(L, L) how alike two layers' outputs are: 0 where orthogonal, 1 where the same.

    ``<K_i, K_j> / (||K_i|| ||K_j||)`` with K the centred Gram matrix of (N, ...) features.

    Raises:
        ValueError: Features that do not vary over the samples.
    """
    grams = []
    for number, feature in enumerate(features):
        rows = feature.double().flatten(1)
        rows = rows - rows.mean(0)
        gram = rows @ rows.mT
        norm = float(gram.norm())
        if not np.isfinite(norm) or norm <= 0:
            raise ValueError(
                f"layer {(names or range(number + 1))[number]!r} writes the same for every sample,"
                " or NaN or infinity; give other batches, give the model in float32, or leave the"
                " layer out with skip"
            )
        grams.append(gram.flatten() / norm)
    stacked = torch.stack(grams)
    return np.array((stacked @ stacked.mT).numpy(force=True))


def _features(model: nn.Module, batch: Any, network: Network) -> list[Tensor]:
    """What each layer's last member writes the first time it is called, samples first."""
    count = samples(batch)
    found: dict[str, Tensor] = {}
    last = {layer.modules[-1]: layer.name for layer in network.layers}

    def see(name: str, _: Tensor | None, wrote: Tensor) -> None:
        found.setdefault(name, wrote.reshape(count, -1))

    if count < 2:
        raise ValueError("layers are compared over samples, got 1; give batches of more samples")
    with torch.no_grad(), watching(model, list(last), see):
        call(model, batch)
    return [found[name] for name in last]


def _snip(model: nn.Module, task: Task, network: Network, batch: int) -> list[float]:
    """For each layer ``sum |w dL/dw|`` on one batch."""
    layers = stored(model, network)
    weights = [one.weight.requires_grad_() for layer in layers for one in layer]
    try:
        found = slopes(model, weights, task.batches[batch], sloped_loss(task))
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    scores = iter(
        float((w.detach().double() * g).abs().sum()) for w, g in zip(weights, found, strict=True)
    )
    return [sum(next(scores) for _ in layer) for layer in layers]


def _synflow(model: nn.Module, task: Task, network: Network, settings: ZeroCost) -> list[float]:
    """For each layer ``sum |w dR/dw|``; the model, a copy, is left with other parameters."""
    model = _linear(model.double(), network, settings)
    layers = stored(model, network)
    weights = [one.weight.requires_grad_() for layer in layers for one in layer]
    with torch.enable_grad(), _Unsaturated():
        total = tensor_of(call(model, _ones(joined(task.batches, 1)))).sum()
    found = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    products = [float((w * g).abs().sum().detach()) for w, g in zip(weights, found, strict=True)]
    if not np.isfinite(products).all() or max(products) > 1e290:
        raise ValueError(
            f"the sum of outputs is {float(total.detach()):g}, too large for SynFlow; use"
            " initial='trained'"
        )
    scores = iter(products)
    flows = [sum(next(scores) for _ in layer) for layer in layers]
    if 0 in flows:
        raise ValueError(
            f"nothing flows through layer {network.layers[flows.index(0)].name!r}, so SynFlow has"
            " no score for it; leave it out with skip, or use 'snip'"
        )
    return flows


class _Unsaturated(TorchFunctionMode):
    """While it is entered, activations that clip at both ends are ReLU."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation."""
        given = dict(kwargs or {})
        if func in (F.relu6, F.hardtanh):
            return F.relu(args[0] if args else given["input"])
        return func(*args, **given)


def _linear(model: nn.Module, network: Network, settings: ZeroCost) -> nn.Module:
    """The model with batch norms left out, Gaussian weights where asked, and all of it positive."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001  (base of all)
                setattr(module, name, nn.Identity())
    if settings.initial == "gaussian":
        generator = torch.Generator().manual_seed(settings.seed)
        for layer in stored(model, network):
            for one in layer:
                drawn = torch.randn(one.weight.shape, generator=generator, dtype=torch.float64)
                one.weight.data = drawn.to(one.weight.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.abs()
    return model


def _ones(batch: Any) -> Any:
    """The batch with ones for every number that is no index."""
    if isinstance(batch, Tensor):
        return torch.ones_like(batch, dtype=torch.float64) if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _ones(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_ones(value) for value in batch)
    return batch


def _lacking(bits: int) -> int:
    return max(0, _FULL - bits)
