"""Modules that hold their weight as packed codes, and compute what a reference kernel computes.

Each is of a class made from the module's own, which it stays an instance of: a subclass that pads
before the operation or activates after it keeps doing so.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.quant.activations import Grid
from mpsearch.quant.arguments import rounded
from mpsearch.quant.codes import Codes
from mpsearch.quant.inputs import Rounding, made
from mpsearch.quant.recipe import Ranges
from mpsearch.quant.training import again, floats, straight
from mpsearch.tracing import output_first

_ALWAYS = ("codes", "scale", "zero_point")  # buffers of every module, empty or not
_INPUT = ("input_scale", "input_zero_point")  # and of tables input_values, input_bounds


class Stored(nn.Module):
    """What every quantized module has beside what its own class gives it.

    Buffers: ``codes`` (uint8 stream, or the values where the format has 16 bits or more), ``scale``
    (16 bits each, or a uint8 stream), ``zero_point`` (uint8 stream), what else the format stores by
    the names of ``Format.streams``, ``input_scale`` and ``input_zero_point``.

    One that is trained has the parameter ``master`` too, float weights with outputs first, and what
    it computes with, and stores in the end, are these rounded.
    """

    option: Option
    codes: Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    master: nn.Parameter | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    _type: Tensor  # empty; its type is the one to compute in
    _shape: tuple[int, ...]
    _streams: tuple[str, ...]
    _rounding: Rounding | None
    _input: tuple[int, int]
    _turned: Callable[[Tensor], Tensor]
    _ranges: Ranges = "mse"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """That of the weight, outputs first, which is not computed for it."""
        return self._shape

    @property
    def weight(self) -> Tensor:
        """The weight the codes stand for, as the module's class lays it out."""
        values = self.stored().dequantize().to(self._type.dtype)
        if self.master is not None:
            values = straight(values, self.master)
        return self._turned(values).contiguous()

    def stored(self) -> Codes:
        """The codes, one integer each, outputs first."""
        stored = {name: getattr(self, name) for name in self._streams}
        codes = Codes.read(stored, self.option.weight, self._shape)
        return codes if self.master is None else again(self.master, codes, self._ranges)

    @property
    def _names(self) -> set[str]:
        """Of the buffers."""
        more = self._rounding.buffers() if self._rounding else ()
        return {*_ALWAYS, *self._streams, *_INPUT, *(f"input_{name}" for name in more)}

    @property
    def grid(self) -> Grid | None:
        """The grid of the input, where it is quantized."""
        if self._rounding is not None:
            found = {name: getattr(self, f"input_{name}") for name in self._rounding.buffers()}
            return Grid(1.0, 0, 0, 0, made(self._rounding, found))
        if self.input_scale is None or self.input_zero_point is None:
            return None
        return Grid(float(self.input_scale), int(self.input_zero_point), *self._input)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Round the input, and do what the module's class does."""
        grid = self.grid
        if grid is not None:
            args, kwargs = rounded(args, kwargs, grid)
        return super().forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """What the module's class says, and the option."""
        said = super().extra_repr()
        return f"{said}, {self.option}" if said else str(self.option)

    def __reduce__(self) -> Any:
        """Its class is made again from the one it was made of, as no module holds it."""
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _empty, (class_of(self),), state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: getattr(self, name) for name in self._names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in kept.items():  # a change of type is one of what is computed in
            if old is not None and getattr(self, name).dtype != old.dtype:
                setattr(self, name, old.to(getattr(self, name).device))
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        bias = state_dict.get(prefix + "bias")
        for name in self._streams:
            mine, given = getattr(self, name), state_dict.get(prefix + name)
            if isinstance(given, Tensor) and given.is_floating_point():
                setattr(self, name, mine.to(given.dtype))  # fp16 or bf16, as the weights asked for
        if isinstance(bias, Tensor) and getattr(self, "bias", None) is None:
            self.bias = nn.Parameter(torch.zeros_like(bias, device=self.codes.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


_CLASSES: dict[type, type[nn.Module]] = {}


def quantized_class(of: type[nn.Module]) -> type[nn.Module]:
    """The class of quantized modules that are otherwise of class ``of``."""
    if of not in _CLASSES:
        _CLASSES[of] = _made(of)
    return _CLASSES[of]


def class_of(module: nn.Module) -> Any:
    """The class of a module, of a quantized one that it was made from."""
    return type(module).__bases__[1] if isinstance(module, Stored) else type(module)


def _made(of: type[nn.Module]) -> type[nn.Module]:
    return type(f"Quantized{of.__name__}", (Stored, of), {"__doc__": Stored.__doc__})


def _empty(of: type[nn.Module]) -> nn.Module:
    made = quantized_class(of)
    return made.__new__(made)


def store(
    module: nn.Module, option: Option, codes: Codes, grid: Grid | None, like: torch.dtype
) -> Stored:
    """Make a module a quantized one, in place, in whatever modules it is part of."""
    turned = _turning(module)
    del module.weight
    module.__class__ = quantized_class(type(module))
    this: Any = module
    stored, empty = codes.stored(), codes.codes.device
    this.option, this._shape, this._turned = option, codes.shape, turned  # noqa: SLF001
    this._streams = tuple(stored)  # noqa: SLF001
    this._input = (grid.low, grid.high) if grid else (0, 0)  # noqa: SLF001
    for name in dict.fromkeys((*_ALWAYS, *stored)):
        module.register_buffer(name, stored.get(name))
    this._rounding = grid.other if grid else None  # noqa: SLF001
    affine = grid if grid and grid.other is None else None
    scale = torch.tensor(affine.scale, device=empty) if affine else None
    place = torch.tensor(affine.zero, dtype=torch.int16, device=empty) if affine else None
    module.register_buffer("input_scale", scale)
    module.register_buffer("input_zero_point", place)
    for name, value in this._rounding.buffers().items() if this._rounding else ():  # noqa: SLF001
        module.register_buffer(f"input_{name}", value.to(empty))
    module.register_parameter("master", None)
    module.register_buffer("_type", torch.empty(0, dtype=like, device=empty), persistent=False)
    return cast("Stored", module)


def share(module: nn.Module, other: nn.Module) -> None:
    """Let a module read the codes another holds: one weight, stored once."""
    this: Any = module
    for name in (*this._streams, "master", "_ranges"):  # noqa: SLF001
        setattr(module, name, getattr(other, name))


def train(module: Stored, weight: Tensor, ranges: Ranges) -> None:
    """Let a module, in place, be trained from its own float weight, outputs first."""
    start = floats(weight, module.stored(), ranges)
    module._ranges = ranges  # noqa: SLF001
    module.master = nn.Parameter(start.contiguous(), weight.requires_grad)


def settle(module: Stored) -> None:
    """End the training of a module, in place: its codes become those of its float weights."""
    stored = module.stored().stored()
    module.master = None
    for name in module._streams:  # noqa: SLF001
        setattr(module, name, stored[name])


def _turning(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """From outputs first to how the module's class lays its weight out."""
    weight = module.weight
    if not isinstance(weight, Tensor) or output_first(weight, module) is weight:
        return _same
    if isinstance(module, nn.modules.conv._ConvTransposeNd):  # noqa: SLF001
        return _Transposed(module.groups)
    return torch.t


def _same(weight: Tensor) -> Tensor:
    return weight


class _Transposed:
    """The layout of a transposed convolution."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def __call__(self, weight: Tensor) -> Tensor:
        apart = weight.unflatten(0, (self.groups, -1))
        turned: Tensor = apart.transpose(1, 2).flatten(0, 1)
        return turned
