"""A quantized network on a backend's kernels, and which of them each layer runs."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from mpsearch import registry
from mpsearch.allocation import Allocation
from mpsearch.batches import call
from mpsearch.formats import Option
from mpsearch.kernels import timing
from mpsearch.kernels.on_codes import OnCodes
from mpsearch.kernels.plain import Floats, floated, in_place_of, runs_as
from mpsearch.kernels.timing import Taken
from mpsearch.network import Layer
from mpsearch.protocols import Backend
from mpsearch.quant import model as modules
from mpsearch.quant.activations import fake_quantize
from mpsearch.quant.bos import FirstKept
from mpsearch.quant.modules import Stored
from mpsearch.quant.recipe import Recipe
from mpsearch.tracing import module_weight
from mpsearch.tracing.sites import kind_of

Fallback = Literal["plain"]


@runtime_checkable
class WholeNetworks(Protocol):
    """A backend that also puts kernels together in its own way."""

    def network(
        self,
        model: nn.Module,
        kernels: Mapping[str, nn.Module],
        batches: Sequence[Any],
        recipe: Recipe,
    ) -> nn.Module | None:
        """The quantized model on the kernels of its layers; ``None`` to have them put in place."""
        ...


def quantize(
    model: nn.Module,
    allocation: Mapping[str, Option | str] | Allocation,
    batches: Sequence[Any],
    recipe: Recipe | None = None,
    *,
    backend: str | Backend | None = None,
    fallback: Fallback | None = None,
    trainable: bool = False,
) -> nn.Module:
    """A new module with each layer at its option, in eval mode; ``model`` is left as it was.

    ``allocation`` maps modules to options. Ranges and corrections are computed on ``batches``, as
    the recipe says: the one given, else the allocation's own, else the default. Fused attention
    becomes explicit.

    Without a backend, the module rounds as the formats say and computes in floats. With one, by
    name or as it is, the same codes, grids and corrections run on its kernels, and :func:`ran` says
    on which. Where these multiply the codes that the option names, sums are exact, and on the same
    input a layer's output is within a thousandth of a step of an 8-bit grid over it, in ``onnx``
    half a unit of its sums more, as biases are whole ones there; bfloat16 is rounded as such.
    ``fallback="plain"`` gives layers without a kernel torch's float ones, on the weight its codes
    stand for and the rounded input. Layers hand on floats, so that nothing else is rounded; with
    ``torch-cpu:codes`` they hand on 8-bit codes where they can.

    Where it is ``trainable``, on no backend, layers keep float weights that are rounded at every
    call, and gradients pass straight through (:func:`mpsearch.quant.quantize` says more).

    Raises:
        KeyError: A module the model does not have.
        ValueError: A format that cannot be rounded to, or layers the backend has no kernel for.
    """
    if trainable and backend is not None:
        raise ValueError(
            f"kernels pass no gradients, and backend is {backend!r}; leave it out to train, and put"
            " what mpsearch.quant.packed then returns on kernels by on_kernels"
        )
    if recipe is None:
        recipe = Recipe.read(allocation.recipe if isinstance(allocation, Allocation) else None)
    new = modules.quantize(model, allocation, batches, recipe, trainable=trainable)
    if backend is None:
        if fallback is not None:
            raise ValueError(f"fallback is {fallback!r} and there is no backend; name one")
        return new
    for name in modules.by_module(allocation):
        module_weight(model, name)
    return on_kernels(new, allocation, backend, batches, recipe, fallback=fallback)


def on_kernels(
    quantized: nn.Module,
    allocation: Mapping[str, Option | str] | Allocation,
    backend: str | Backend,
    batches: Sequence[Any] = (),
    recipe: Recipe | None = None,
    *,
    fallback: Fallback | None = None,
) -> nn.Module:
    """A quantized module, such as one that was trained, on a backend's kernels; a new module.

    A backend that keeps tensors as codes between layers finds their ranges on the batches, as the
    recipe says.

    Raises:
        ValueError: Layers the backend has no kernel for, unless ``fallback`` says what they run.
    """
    given: Any = fallback  # a caller may pass anything
    if given not in (None, "plain"):
        raise ValueError(f"fallback is {given!r}; wanted 'plain' or none")
    by: Backend = registry.make("backends", backend) if isinstance(backend, str) else backend
    new, options = copy.deepcopy(quantized), modules.by_module(allocation)
    kernels = _kernels(new, options, by, plain=fallback == "plain")
    if isinstance(by, WholeNetworks):
        whole = by.network(new, kernels, batches, recipe or Recipe())
        if whole is not None:
            return _alone(whole)
    return _placed(new, kernels)


def _placed(model: nn.Module, kernels: Mapping[str, nn.Module]) -> nn.Module:
    """The quantized model with its layers replaced by kernels, in place."""
    for name, kernel in kernels.items():
        if not name:
            return kernel
        model.set_submodule(name, kernel)
    return model


def _kernels(
    model: nn.Module, options: Mapping[str, Option], backend: Backend, *, plain: bool
) -> dict[str, nn.Module]:
    """The kernel of each layer of a quantized model, one of two names under both."""
    made: dict[nn.Module, nn.Module] = {}
    places: dict[str, nn.Module] = {}
    missing: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        option = module.option if isinstance(module, Stored) else options.get(name)
        if option is None or isinstance(module, FirstKept):  # the layer inside gets a kernel
            continue
        places[name] = module
        if module in made:
            continue
        kernel = _kernel(backend, name, option, module, plain=plain)
        made[module] = module if kernel is None else kernel
        missing += [f"{name!r} at {str(option)!r}"] * (kernel is None)
    if missing:
        raise ValueError(
            f"{backend!r} has no kernel for {len(missing)} of {len(made)} layers:"
            f" {', '.join(missing)}; give them options it has kernels for, name another backend,"
            " or say fallback='plain' to compute them in floats"
        )
    return {name: made[module] for name, module in places.items()}


def _kernel(
    backend: Backend, name: str, option: Option, module: nn.Module, *, plain: bool
) -> nn.Module | None:
    if isinstance(module, nn.Embedding):
        return _alone(Lookup(module))
    found: Any = backend.kernel(Layer(name, kind=kind_of(module) or "layer"), option, module)
    if found is not None:
        found.runs_as = runs_as(found, option)
    elif plain:
        found = InFloats(option, module)
    return None if found is None else _alone(in_place_of(module, found))


def _alone(kernel: nn.Module) -> nn.Module:
    """The kernel, which has no state to be read apart from it."""
    kernel.register_state_dict_pre_hook(_stateless)
    return kernel


def _stateless(*_: Any) -> None:
    raise ValueError(
        "a network on kernels has no state_dict: their weights are laid out for this machine; take"
        " that of the quantized network, made without a backend, and put what loads it on kernels"
        " by on_kernels, or save the network as a whole with torch.save"
    )


class Lookup(nn.Module):
    """An embedding table, of the values its codes stand for."""

    runs_as = "lookup"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.table = floated(module)

    def forward(self, indices: Tensor) -> Tensor:
        """The rows."""
        found: Tensor = self.table(indices)
        return found

    @property
    def weight(self) -> Tensor:
        """The table, for what else reads it."""
        found: Any = self.table.weight
        return cast("Tensor", found)


class InFloats(nn.Module):
    """What stands in for a kernel that is not there: the rounded input, and plain floats."""

    def __init__(self, option: Option, module: nn.Module) -> None:
        super().__init__()
        self.grid = module.grid if isinstance(module, Stored) else None
        self.kernel = Floats(floated(module), torch.float32)
        self.runs_as = f"{self.kernel.runs_as} in place of {option}"

    def forward(self, x: Tensor) -> Tensor:
        """What the quantized module computes, in the type of the input."""
        found: Tensor = self.kernel(x if self.grid is None else fake_quantize(x, self.grid))
        return found


def ran(model: nn.Module) -> dict[str, str]:
    """What each layer multiplies on its kernel, weight and input, such as ``int8/int8``.

    ``model`` is one :func:`quantize` gave. A layer in plain floats says in place of what, one on no
    backend what its floats stand for, one that no option was given to that it was left. Of a
    network whose layers hand on codes it also says what runs ``beside the layers``.
    """
    if isinstance(model, OnCodes):
        others = [f"{count} {kernel}" for kernel, count in model.others.items()]
        return {**model.layers, "beside the layers": ", ".join(others) or "nothing"}
    return dict(_ran("", model))


def in_turns(models: Sequence[nn.Module], batch: Any, rounds: int) -> list[Taken]:
    """What each network takes for a batch: all in every round, so that load meets all alike.

    Each runs right after itself, as it does on one input after another.
    """
    seconds: list[list[float]] = [[] for _ in models]
    with timing.pinned():
        for _ in range(rounds):
            for model, taken in zip(models, seconds, strict=True):
                call(model, batch)
                taken.append(timing.once(partial(call, model, batch)))
    return [Taken.of(each) for each in seconds]


def _ran(name: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    said = getattr(module, "runs_as", None)
    if said is not None:
        yield name, str(said)
    elif isinstance(module, Stored):
        yield name, f"floats that stand for {module.option}"
    elif kind_of(module) is not None:
        yield name, "left as it was"
    else:
        for child, each in module._modules.items():  # noqa: SLF001  (one module, two names)
            if each is not None:
                yield from _ran(f"{name}.{child}" if name else child, each)
