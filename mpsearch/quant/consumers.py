"""Who reads what in one forward: which operations take a tensor that a module returned."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mpsearch.batches import call
from mpsearch.quant.reads import read_of


@dataclass(frozen=True, eq=False)
class Consumer:
    """One operation that reads a tensor.

    Attributes:
        name: Of the operation.
        module: The innermost that was being run.
        weight: What the operation multiplies by, if it is a layer's.
    """

    name: str
    module: nn.Module | None
    weight: Tensor | None


class _Watching(TorchFunctionMode):
    """Notes operations that read some tensors; those that return none (a size) only look."""

    def __init__(self, *, through: bool) -> None:
        super().__init__()
        self.through = through
        self.running: list[nn.Module] = []
        self.made: dict[int, tuple[Tensor, nn.Module]] = {}  # kept alive, so that ids stay theirs
        self.found: dict[nn.Module, list[Consumer]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {id(x): x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        read = {self.made[i][1]: (x, x._version) for i, x in given.items() if i in self.made}  # noqa: SLF001
        output = func(*args, **(kwargs or {}))
        if not any(isinstance(x, Tensor) for x in tree_leaves(output)):
            return output
        layer = read_of(func, args, kwargs)
        weight = None if layer is None else layer.given.get("weight")
        for maker, (x, version) in read.items():
            if self.through and x._version == version and _rows_of(x, output):  # noqa: SLF001
                self.made[id(output)] = output, maker
                continue
            module = self.running[-1] if self.running else None
            self.found[maker].append(Consumer(func.__name__, module, weight))
        return output


def _rows_of(x: Tensor, output: Any) -> bool:
    """Whether an operation returned a tensor's own rows: all, or some, in whatever order."""
    return (
        isinstance(output, Tensor)
        and output.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        and (output.shape[-1:], output.stride()[-1:]) == (x.shape[-1:], x.stride()[-1:])
    )


@torch.no_grad()
def consumers(
    model: nn.Module, batch: Any, modules: Iterable[nn.Module], *, through: bool = False
) -> dict[nn.Module, Sequence[Consumer]]:
    """What reads the tensor that each of these modules returned, if it was called just once.

    What the model returns itself is read by no module. Where it goes ``through``, operations that
    only lay out or choose rows anew (a view, a slice, dropout) hand on what they read: it is what
    reads theirs that counts.
    """
    watching, again = _Watching(through=through), set[nn.Module]()

    def begins(module: nn.Module, _: Any) -> None:
        watching.running.append(module)

    def ends(module: nn.Module, _: Any, output: Any) -> None:
        watching.running.pop()
        if module in wanted and isinstance(output, Tensor):
            again.update({module} & watching.found.keys())
            watching.found[module] = []
            watching.made[id(output)] = output, module

    wanted = set(modules)
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(begins).remove)
            stack.callback(module.register_forward_hook(ends).remove)
        with watching:
            output = call(model, batch)
    for tensor in tree_leaves(output):
        if id(tensor) in watching.made:
            watching.found[watching.made[id(tensor)][1]].append(Consumer("return", None, None))
    return {module: found for module, found in watching.found.items() if module not in again}
