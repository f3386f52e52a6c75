"""Correction towards the float network: what rounding moved in mean and variance is moved back.

In the order of execution each batch norm's running statistics are shifted so that its output keeps
the moments it has in float on the calibration batch, and each other quantized layer's bias so that
its output keeps its float mean (bias correction: Nagel et al. 2019, Data-Free Quantization).
Each sees its predecessors corrected, so one forward corrects all.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS: dict[Any, int] = {  # -> spatial axes
    F.conv1d: 1,
    F.conv2d: 2,
    F.conv3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}
_WEIGHT_AT: dict[Any, int] = {**dict.fromkeys([F.linear, *_CONVOLUTIONS], 1), torch.addmm: 2}
_DEAD = 1e-6  # of a batch norm's own deviation: below it a channel is constant


@dataclass(frozen=True, eq=False)
class Moments:
    """The float network's moments on the calibration batch.

    Attributes:
        norms: Mean and standard deviation of each batch norm's input, by channel.
        means: Mean of each layer's output, by channel, where no batch norm reads it.
        order: Number at which each module was first called.
    """

    norms: Mapping[nn.Module, tuple[Tensor, Tensor]]
    means: Mapping[str, Tensor]
    order: Mapping[nn.Module, int]


class _Outputs(TorchFunctionMode):
    """Hands on what the operation returns that reads one of some weights.

    That is the layer's own output, also where a subclass pads before or activates after.
    """

    def __init__(
        self, weights: Mapping[int, str], seen: Callable[[str, Tensor, int], Tensor]
    ) -> None:
        super().__init__()
        self.weights, self.seen = weights, seen

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        place = _WEIGHT_AT.get(func)
        if place is None:
            return output
        weight = args[place] if len(args) > place else (kwargs or {}).get("weight")
        name = self.weights.get(id(weight))
        if name is None:
            return output
        spatial = _CONVOLUTIONS.get(func)
        axis = output.dim() - 1 if spatial is None else output.dim() - 1 - spatial
        return self.seen(name, output, axis)


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
    model: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], Any]
) -> Moments:
    """What one forward of the float model shows. Modules called more than once are left out."""
    norms: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    means: dict[str, Tensor] = {}
    order: dict[nn.Module, int] = {}
    again: set[Any] = set()
    last: dict[str, Callable[[], Tensor | None]] = {}

    def called(module: nn.Module, _: Any) -> None:
        order.setdefault(module, len(order))

    def norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        again.update({module} & norms.keys())
        norms[module] = _mean_and_deviation(args[0], 1)
        for name, output in last.items():
            if output() is args[0]:
                again.add(name)  # the batch norm does it

    def seen(name: str, output: Tensor, axis: int) -> Tensor:
        again.update({name} & means.keys())
        means[name] = _mean(output, axis)
        last[name] = weakref.ref(output)
        return output

    with ExitStack() as stack:
        for module in [*layers.values(), *norms_of(model)]:
            stack.callback(module.register_forward_pre_hook(called).remove)
        for module in norms_of(model):
            stack.callback(module.register_forward_pre_hook(norm).remove)
        stack.enter_context(_Outputs(_biased(layers), seen))
        run()
    return Moments(
        {module: found for module, found in norms.items() if module not in again},
        {name: mean for name, mean in means.items() if name not in again},
        order,
    )


def _biased(layers: Mapping[str, nn.Module]) -> dict[int, str]:
    """The layers that a bias can correct, by weight: not the table a head shares."""
    return {id(m.weight): n for n, m in layers.items() if not isinstance(m, nn.Embedding)}


@contextmanager
def correcting(moments: Moments, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While inside, one forward corrects what comes at or after the first of these layers.

    ``layers`` are the quantized ones by name. The changes stay; see :func:`undone`.
    """
    start = min((moments.order.get(module, -1) for module in layers.values()), default=0)
    found: dict[str, Tensor] = {}

    def norm(module: _BatchNorm, args: tuple[Any, ...]) -> None:
        shift(module, moments.norms[module], _mean_and_deviation(args[0], 1))

    def seen(name: str, output: Tensor, axis: int) -> Tensor:
        found[name] = moments.means[name] - _mean(output, axis)
        width = [1] * output.dim()
        width[axis] = -1
        return output + found[name].to(output.dtype).view(width)

    with ExitStack() as stack:
        for module in moments.norms:
            if moments.order[module] >= start:
                stack.callback(module.register_forward_pre_hook(norm).remove)
        weights = {weight: n for weight, n in _biased(layers).items() if n in moments.means}
        stack.enter_context(_Outputs(weights, seen))
        yield
    for name, error in found.items():
        add_to_bias(layers[name], error)


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


@contextmanager
def undone(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Put statistics and biases back on the way out."""
    statistics = [
        (buffer, buffer.clone())
        for norm in norms_of(model)
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    biases = [(module, module.bias) for module in layers if hasattr(module, "bias")]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in statistics:
                buffer.copy_(value)
        for module, bias in biases:
            module.bias = bias


def _mean(x: Tensor, axis: int) -> Tensor:
    return x.detach().double().mean([i for i in range(x.dim()) if i != axis])


def _mean_and_deviation(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    others = [i for i in range(x.dim()) if i != axis]
    variance, mean = torch.var_mean(x.detach().double(), others, correction=0)
    return mean, variance.sqrt()
