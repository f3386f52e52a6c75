"""Correction towards the float network: what rounding moved in mean and variance is moved back.

In the order of execution, as a recipe's corrections say:

- ``moments``: each batch norm's running statistics are shifted so that its output keeps the moments
  it has in float on the calibration batch. The output of a convolution that none reads, as where it
  was folded in, keeps them too, by its scales and bias; every other quantized layer's its mean.
- ``bias``: the latter for every quantized layer (bias correction: Nagel et al. 2019, Data-Free
  Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721).
- ``spread``: every layer's output that no batch norm reads keeps mean and deviation, linear layers'
  too (:mod:`mpsearch.quant.spreading` says whose deviation can be kept; the rest keep their mean).
- ``batchnorm``: each batch norm's statistics become those of what it reads now (batch-norm tuning:
  Hubara et al. 2020, CalibTIP, arXiv 2006.10518).

Each sees its predecessors corrected, so one forward corrects all.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpsearch.quant.codes import Codes
from mpsearch.quant.reads import Read, Reads
from mpsearch.quant.recipe import Correction
from mpsearch.quant.spreading import by_output, put, ratio, times
from mpsearch.tracing.sites import kind_of

_SURE = 0.02  # of the mean square: a smaller variance is not found by subtraction
_DEAD = 1e-6  # of a batch norm's own deviation: below it a channel is constant


@dataclass(frozen=True, eq=False)
class Moments:
    """The float network's moments on the calibration batch.

    Attributes:
        norms: Mean and standard deviation of each batch norm's input, by channel.
        means: Mean of each layer's output, by channel, where that is to be kept.
        deviations: Standard deviation of the same, where that is.
        order: Number at which each module was first called.
        corrections: What is done with them.
    """

    norms: Mapping[nn.Module, tuple[Tensor, Tensor]]
    means: Mapping[str, Tensor]
    deviations: Mapping[str, Tensor]
    order: Mapping[nn.Module, int]
    corrections: Sequence[Correction] = ("moments",)


def norms_of(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that carry statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
    ]


def float_moments(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    run: Callable[[], Any],
    corrections: Sequence[Correction] = ("moments",),
) -> Moments:
    """What one forward of the float model shows. Modules called more than once are left out."""
    kinds = {"bias", "moments", "spread"} & set(corrections)
    norms: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    means: dict[str, Tensor] = {}
    deviations: dict[str, Tensor] = {}
    order: dict[nn.Module, int] = {}
    again: set[Any] = set()
    normed: set[Any] = set()  # whose output a batch norm reads
    last: dict[str, Callable[[], Tensor | None]] = {}

    def called(module: nn.Module, _: Any) -> None:
        order.setdefault(module, len(order))

    def norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        again.update({module} & norms.keys())
        norms[module] = _mean_and_deviation(args[0], 1)
        for name, output in last.items():
            if output() is args[0]:
                normed.add(name)

    def seen(name: str, read: Read, output: Tensor) -> Tensor:
        own = getattr(layers[name], "bias", None)
        if kinds and not read.lookup and read.given.get("bias", read) is own:  # or it is of no use
            again.update({name} & means.keys())
            axis = output.dim() + read.channels
            if "spread" in kinds or ("moments" in kinds and _is_convolution(layers[name])):
                means[name], deviations[name] = _mean_and_deviation(output, axis)
            else:
                means[name] = _mean(output, axis)
            last[name] = weakref.ref(output)
        return output

    with ExitStack() as stack:
        for module in [*layers.values(), *norms_of(model)]:
            stack.callback(module.register_forward_pre_hook(called).remove)
        for module in norms_of(model):
            stack.callback(module.register_forward_pre_hook(norm).remove)
        stack.enter_context(Reads(_biased(layers), seen))
        run()
    left = again if "bias" in kinds else again | normed  # the batch norm does it
    return Moments(
        {module: found for module, found in norms.items() if module not in again},
        {name: mean for name, mean in means.items() if name not in left},
        {name: found for name, found in deviations.items() if name not in again | normed},
        order,
        tuple(corrections),
    )


def _is_convolution(module: nn.Module) -> bool:
    return (kind_of(module) or "").startswith("conv")


def _biased(layers: Mapping[str, nn.Module]) -> dict[int, str]:
    """The layers that a bias can correct, by weight: not the table a head shares."""
    return {id(m.weight): n for n, m in layers.items() if not isinstance(m, nn.Embedding)}


@contextmanager
def correcting(
    moments: Moments, layers: Mapping[str, nn.Module], codes: Mapping[str, Codes] | None = None
) -> Iterator[dict[str, Codes]]:
    """While inside, one forward corrects what comes at or after the first of these layers.

    ``layers`` are the quantized ones by name, ``codes`` what their weights are stored as. Yields
    those whose scales are moved. The changes stay; see :func:`undone`.
    """
    start = _start(moments, layers.values())
    moved: dict[str, Codes] = {}
    movable = {n: c for n, c in by_output(codes or {}, layers).items() if n in moments.deviations}
    correct = estimate if "batchnorm" in moments.corrections else shift
    norms = {"batchnorm", "moments"} & set(moments.corrections)

    def norm(module: _BatchNorm, args: tuple[Any, ...]) -> None:
        correct(module, moments.norms[module], _mean_and_deviation(args[0], 1))

    def seen(name: str, read: Read, output: Tensor) -> Tensor:
        if read.lookup:
            return output
        axis, wanted = output.dim() + read.channels, moments.means[name]
        if name in movable:
            got = _mean_and_deviation(output, axis)[1]
            moved[name] = times(movable[name], ratio(moments.deviations[name], got, wanted))
            put(moved[name], layers[name])
            output = read.again()
        add_to_bias(layers[name], wanted - _mean(output, axis))
        return read.again(bias=layers[name].bias)  # to the last bit what it will return from now on

    with ExitStack() as stack:
        for module in moments.norms if norms else ():
            if moments.order[module] >= start:
                stack.callback(module.register_forward_pre_hook(norm).remove)
        weights = {weight: n for weight, n in _biased(layers).items() if n in moments.means}
        if weights:
            stack.enter_context(Reads(weights, seen))
        yield moved


def estimate(norm: _BatchNorm, _: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor]) -> None:
    """Set running statistics to the moments of the input."""
    with torch.no_grad():
        for statistic, found in zip(_statistics(norm), (got[0], got[1].square()), strict=True):
            statistic.copy_(found)


def shift(norm: _BatchNorm, wanted: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor]) -> None:
    """Change running statistics so that an input of other moments gives the output of the old.

    With input mean and deviation ``m, s`` in float and ``m', s'`` now: ``sigma' = sigma s' / s``
    and ``mu' = m' - (m - mu) sigma' / sigma``. Constant channels keep their deviation.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics has nothing to correct")
    sigma = (variance.double() + norm.eps).sqrt()
    (m, s), (m_now, s_now) = wanted, got
    alive = (s > _DEAD * sigma) & (s_now > _DEAD * sigma)
    ratio = torch.where(alive, s_now / s.clamp_min(1e-300), 1.0)
    with torch.no_grad():
        mean.copy_(m_now - (m - mean.double()) * ratio)
        variance.copy_((sigma * ratio).square() - norm.eps)


def add_to_bias(module: nn.Module, error: Tensor) -> None:
    """Add to a layer's bias, or give it one."""
    bias, weight = getattr(module, "bias", None), module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"a layer's weight is a tensor, got {type(weight).__name__}")
    new = error if bias is None else bias.detach().double() + error
    module.bias = nn.Parameter(new.to(weight.dtype), requires_grad=False)


@dataclass(frozen=True, eq=False)
class Corrected:
    """What a correction changed, to be put in place once more.

    Attributes:
        statistics: Running means and variances, each with its corrected value.
        biases: Of the layers that are quantized.
        codes: Of those whose scales were moved.
    """

    statistics: Sequence[tuple[Tensor, Tensor]] = ()
    biases: Sequence[tuple[nn.Module, Any]] = ()
    codes: Sequence[tuple[Codes, nn.Module]] = ()

    @classmethod
    def of(
        cls, moments: Moments, layers: Mapping[str, nn.Module], moved: Mapping[str, Codes]
    ) -> "Corrected":
        """As they are now in a model, where :func:`correcting` has been with these layers."""
        start = _start(moments, layers.values())
        norms = [norm for norm in moments.norms if moments.order[norm] >= start]
        return cls(
            tuple((buffer, buffer.clone()) for norm in norms for buffer in _statistics(norm)),
            tuple((module, module.bias) for module in layers.values() if hasattr(module, "bias")),
            tuple((stored, layers[name]) for name, stored in moved.items()),
        )

    def apply(self) -> None:
        """Correct the model again; see :func:`undone`."""
        with torch.no_grad():
            for buffer, value in self.statistics:
                buffer.copy_(value)
        for module, bias in self.biases:
            module.bias = bias
        for codes, module in self.codes:
            put(codes, module)


@contextmanager
def undone(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Put statistics and biases back on the way out; weights are the caller's."""
    before = Corrected(
        [(buffer, buffer.clone()) for norm in norms_of(model) for buffer in _statistics(norm)],
        [(module, module.bias) for module in layers if hasattr(module, "bias")],
    )
    try:
        yield
    finally:
        before.apply()


def _statistics(norm: nn.Module) -> tuple[Tensor, ...]:
    return norm.get_buffer("running_mean"), norm.get_buffer("running_var")


def _start(moments: Moments, layers: Iterable[nn.Module]) -> int:
    """Number at which the first of these layers is called."""
    return min((moments.order.get(module, -1) for module in layers), default=0)


def _mean(x: Tensor, axis: int) -> Tensor:
    """(channels,) in float64, of each sample's means in the tensor's own precision: far faster."""
    x = x.detach()
    if axis == 0 or x.dtype in (torch.float16, torch.bfloat16):
        x = x.double()
    inner = [i for i in range(1, x.dim()) if i != axis]
    each = x.mean(inner) if inner else x
    return each.double().mean(0) if axis else each


def _mean_and_deviation(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """By channel, in float64: from mean squares, unless these are nearly all of the mean."""
    mean = _mean(x, axis)
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    square = _mean(x.square(), axis)
    variance = square - mean.square()
    unsure = (variance <= _SURE * square).nonzero().flatten()
    if len(unsure):
        variance[unsure] = _about(x.index_select(axis, unsure), mean[unsure], axis)
    return mean, variance.sqrt()


def _about(x: Tensor, mean: Tensor, axis: int) -> Tensor:
    """(channels,) the variance about a mean, which is to be far more exact than the values."""
    middle = mean.to(x.dtype)
    far = x.movedim(axis, -1) - middle
    square = _mean(far.square_().movedim(-1, axis), axis)
    return (square - (middle.double() - mean).square()).clamp_min(0)
