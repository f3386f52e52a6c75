"""One run of a model, followed operation by operation: which layer reads what which one wrote.

Every tensor operation passes by here and hands the origin of what it reads on to what it writes.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode

from mpsearch.network import Window
from mpsearch.tracing.origins import INPUT, NOWHERE, Origin, Origins, Token, tensors
from mpsearch.tracing.sites import Site

# The two factors of each product, by position: what is read, then the weight, where it matters.
_FACTORS = {
    "aten.addmm": (1, 2),
    "aten.addmv": (1, 2),
    "aten.baddbmm": (1, 2),
    "aten.bmm": (0, 1),
    "aten.convolution": (0, 1),
    "aten.dot": (0, 1),
    "aten.embedding": (1, 0),
    "aten.linear": (0, 1),
    "aten.mm": (0, 1),
    "aten.mul": (0, 1),
    "aten.mv": (0, 1),
}
_ONE_WAY = ("aten.convolution", "aten.embedding")  # the weight is always the second factor
_OPAQUE = ("gru", "lstm", "rnn", "trilinear", "grouped_mm", "scaled_mm")
_COPIES = ("aten.clone", "aten._to_copy")
_VALUES = ("aten._local_scalar_dense", "aten.equal", "aten.is_nonzero")


@dataclass(frozen=True)
class Use:
    """One time a site's weight met a tensor; counts are of the whole batch."""

    site: str
    reads: Token
    origin: Origin
    macs: int
    inputs: int
    outputs: int
    window: Window | None = None


@dataclass(frozen=True)
class Elsewhere:
    """A parameter read by an operation outside its module, or after it was changed."""

    op: str
    module: str
    derived: bool


class Lineage(TorchDispatchMode):
    """Follows one run: ``with Lineage(model, sites, example) as run: model(example)``.

    Attributes:
        uses: In order of execution.
        sums: Origins of the two sides of each addition of two branches.
        ops: Operations on tensors that depend on the example; ``(data,data)`` marks a product of
            two of them.
        calls: How often each module was called.
        elsewhere: Parameters of two or more axes that met tensors outside the sites, by name.
        decisions: Modules in which the value of a tensor was read.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], example: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: list[Use] = []
        self.sums: list[tuple[Origin, Origin]] = []
        self.ops: set[str] = set()
        self.calls: Counter[nn.Module] = Counter()
        self.elsewhere: dict[str, Elsewhere] = {}
        self.decisions: dict[str, None] = {}
        self._origins = Origins(model, example)
        self._names = {module: name for name, module in model.named_modules()}
        self._sites: dict[str, list[Site]] = {}  # by parameter
        self._running: list[tuple[nn.Module, Tensor | None]] = []
        self._hooks: list[Any] = []
        for site in sites:
            if site.weight is not None and (name := self._origins.parameter(site.weight)):
                self._sites.setdefault(name, []).append(site)

    def __enter__(self) -> Self:
        """Begin to follow."""
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._begin),
            hooks.register_module_forward_hook(self._end, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Leave no hook behind."""
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._running.append((module, next(tensors(args), None)))
        self.calls[module] += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        while self._running and self._running.pop()[0] is not module:
            pass

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and hand the origins on."""
        kwargs = kwargs or {}
        name = _name(func)
        read = list(tensors((args, kwargs)))
        origin = self._read(name, read, args)
        use = self._use(name, args)
        copy_of = self._origins.token(read[0]) if name in _COPIES else None
        output = func(*args, **kwargs)
        if use:
            use = _counted(use, name, args, output)
            self.uses.append(use)
            origin = _written_by(use, name)
        self._origins.wrote(_written(func, args, kwargs), origin)
        self._origins.made(output, origin, copy_of)
        return output

    def _read(self, name: str, read: Sequence[Tensor], args: Any) -> Origin:
        """The origin of what is computed from these tensors."""
        each = [self._origins.of(tensor) for tensor in read]
        origin = NOWHERE
        for one in each:
            origin |= one
        if not origin.data:
            return origin
        self.ops.add(name + self._mark(name, args))
        if name in _VALUES:
            self.decisions[self._where()] = None
        branches = [one for one in each if one.sources - {INPUT}]
        if name == "aten.add" and len(branches) == 2:
            self.sums.append((branches[0], branches[1]))
            return replace(origin, branch=frozenset())
        return origin

    def _mark(self, name: str, args: Any) -> str:
        """What has to be known of the operands to tell whether the operation is linear."""
        if name == "aten.div":
            return "(data)" if self._depends(args[1]) else ""
        if "batch_norm" in name:
            return "(training)" if any(a is True for a in args[5:6]) else ""
        factors = [args[i] for i in _FACTORS.get(name, ()) if i < len(args)]
        return "(data,data)" if len(factors) == 2 and all(map(self._depends, factors)) else ""

    def _depends(self, value: Any) -> bool:
        return isinstance(value, Tensor) and self._origins.of(value).data

    def _where(self) -> str:
        return self._names.get(self._running[-1][0], "") if self._running else ""

    def _use(self, name: str, args: Any) -> Use | None:
        """The use of a site's weight that the operation is, if it is one."""
        if any(word in name for word in _OPAQUE):
            for tensor in tensors(args):
                self._outside(name, tensor)
        if name not in _FACTORS or name == "aten.mul":
            return None
        factors = tuple(args[i] for i in _FACTORS[name])
        pairs = [factors] if name in _ONE_WAY else [factors, factors[::-1]]
        for read, weight in pairs:
            for site, first in self._meets(weight):
                packed = isinstance(site.module, nn.MultiheadAttention)
                given = read if packed or first is None else first  # before it pads, say
                token, origin = self._origins.token(given), self._origins.of(read)
                return Use(site.name, token, origin, 0, given.numel(), 0)
        for _, weight in pairs:
            if not self._depends(weight) or name == "aten.convolution":
                self._outside(name, weight)
        return None

    def _meets(self, weight: Tensor) -> Iterator[tuple[Site, Tensor | None]]:
        """The site of this weight whose module is running, with what the module was called on."""
        sites = self._sites.get(self._origins.parameter(weight) or "", ())
        for module, first in reversed(self._running):
            for site in sites:
                if site.module is module:
                    yield site, first

    def _outside(self, name: str, weight: Tensor) -> None:
        derived = self._origins.parameter(weight) is None
        for parameter in self._origins.of(weight).weights:
            self.elsewhere.setdefault(parameter, Elsewhere(name, self._where(), derived))


def _name(func: OpOverload) -> str:
    """``aten.relu``, for the operation in place too."""
    name = str(func.overloadpacket)
    return name if name.endswith("__") else name.removesuffix("_")


def _counted(use: Use, name: str, args: Any, output: Tensor) -> Use:
    """The use with its multiply-accumulates and outputs."""
    read, weight = (args[i] for i in _FACTORS[name])
    if name == "aten.convolution":
        each = read if args[6] else output  # a transposed one spreads every input
        macs = each.numel() * math.prod(weight.shape[1:])
        use = replace(use, window=_window(args, output))
    else:
        macs = output.numel() * read.shape[-1]
    return replace(use, macs=0 if name == "aten.embedding" else macs, outputs=output.numel())


def _window(args: Any, output: Tensor) -> Window:
    """Of ``aten.convolution(read, weight, bias, stride, padding, dilation, transposed, ...)``."""
    read, weight, _, stride, padding, dilation, transposed, _, groups = args
    sizes = [weight.shape[2:], stride, padding, dilation]
    kernel, stride, padding, dilation = (tuple(int(n) for n in size) for size in sizes)
    image, made = (tuple(int(n) for n in t.shape[2:]) for t in (read, output))
    return Window(kernel, stride, padding, dilation, int(groups), image, made, bool(transposed))


def _written_by(use: Use, name: str) -> Origin:
    """The origin of a site's output; a lookup is none, so that a tied head makes no cycle."""
    if name == "aten.embedding":
        return Origin(data=True)
    return Origin(frozenset({use.site}), use.origin.branch | {use.site}, data=True)


def _written(func: OpOverload, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors an operation writes in place."""
    for position, argument in enumerate(func._schema.arguments):  # noqa: SLF001
        if argument.alias_info and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from tensors(value)
