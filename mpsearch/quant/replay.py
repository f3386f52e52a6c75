"""One float forward remembered, so that a change in one module reruns only what comes after it.

Module calls that end before the changed module is first called hand back what they returned; the
code between modules runs again. Over all layers of a chain that saves about half of the work. Of
what does not fit within a limit on memory, the work that is least for its bytes is done again.
"""

import copy
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.batches import call, tensor_of


@dataclass(eq=False)
class _Call:
    """One call of one module, numbered in the order they begin; a clock ticks twice a call.

    Attributes:
        after: Number of the next call that is not inside this one.
        innermost: Whether no module was called inside.
        bytes: Of what it returned.
        work: Multiplications, and numbers written, of all innermost modules called inside.
    """

    module: nn.Module
    parent: "_Call | None"
    begin: int
    end: int = 0
    after: int = 0
    innermost: bool = True
    bytes: int = 0
    work: int = 0
    output: Any = None
    versions: tuple[int, ...] = ()


class Replay:
    """What every module call of one float forward returned, as far as a later run can use it.

    Attributes:
        reference: What the float model returned, as a tensor.
        ran: Calls of innermost modules that :meth:`run` has made so far.
        skipped: Those it has not.
        whole: Why nothing is reused; empty where it is.
    """

    def __init__(
        self, model: nn.Module, batch: Any, names: Sequence[str], *, memory: float = math.inf
    ) -> None:
        """Run the model, in eval mode, to see what is worth keeping, and again to keep it.

        ``names`` are the modules that a run will begin from, ``memory`` the most bytes to keep.
        Raises ``ValueError`` where two runs give different outputs.
        """
        self.model, self.batch = model, batch
        self.ran = self.skipped = 0
        self.whole = ""
        calls, once = _record(model, batch, {})
        self._first = _first(model, calls, names)
        kept = _within(memory, calls, _worth_keeping(calls, self._first))
        self._kept = frozenset(kept)
        self._calls, self.reference = _record(model, batch, dict.fromkeys(kept, False))
        if not _same(once, self.reference) or len(calls) != len(self._calls):
            raise ValueError(
                "two runs of the model in eval mode on one batch gave different outputs; make the"
                " model deterministic: seed or remove what is random in it"
            )
        self._changed = {
            i for i in kept if _versions(self._calls[i].output) != self._calls[i].versions
        }
        if self._changed:  # in place, after it was returned: keep what was returned
            self._calls, _ = _record(model, batch, {i: i in self._changed for i in kept})
        self._inner = list(accumulate((c.innermost for c in self._calls), initial=0))
        self._check()

    def run(self, names: Sequence[str]) -> Tensor:
        """The output now that these modules are changed, equal to that of a whole forward."""
        return tensor_of(self.returned(names))

    @torch.no_grad()
    def returned(self, names: Sequence[str]) -> Any:
        """As :meth:`run`, but all that the model returns."""
        start = -1 if self.whole else min((self._first[name] for name in names), default=-1)
        with self._skipping(start) as handed:
            output = call(self.model, _copied(self.batch, clone=True))
        for number in handed:
            if number not in self._changed and (
                _versions(self._calls[number].output) != self._calls[number].versions
            ):
                raise RuntimeError(
                    "the model changed a tensor in place that it leaves alone in float; reuse of"
                    " earlier work would be wrong: make its control flow independent of its values"
                )
        skipped = sum(self._inner[self._calls[i].after] - self._inner[i] for i in handed)
        self.skipped += skipped
        self.ran += self._inner[-1] - skipped
        return output

    @contextmanager
    def _skipping(self, start: int) -> Iterator[list[int]]:
        """Calls that end before ``start`` return what they did; yields the numbers of those."""
        calls, handed, cursor = self._calls, list[int](), 0
        last = _until(calls, start)

        def shortened(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal cursor
                if cursor >= last:
                    return forward(*args, **kwargs)
                number, this = cursor, calls[cursor]
                if this.module is not module:
                    raise RuntimeError(
                        "the model called its modules in another order than before; reuse of"
                        " earlier work needs the same order on the same batch"
                    )
                if this.end < start and number in self._kept:
                    cursor = this.after
                    handed.append(number)
                    return _copied(this.output, clone=number in self._changed)
                cursor += 1
                return forward(*args, **kwargs)

            return run

        with _forwards(dict.fromkeys(c.module for c in calls[:last]), shortened):
            yield handed

    def _check(self) -> None:
        """Replay the float forward from two places; where it is not the same, reuse nothing."""
        order = sorted(self._first, key=self._first.__getitem__)
        for name in {*order[-1:], *order[len(order) // 2 : len(order) // 2 + 1]}:
            try:
                same = _same(self.run([name]), self.reference)
                reason = "" if same else f"from {name!r} on the replayed output is another one"
            except Exception as error:  # noqa: BLE001  (any model's code may fail in any way)
                reason = f"replaying from {name!r} on fails: {error}"
            if reason:
                self.whole = reason
                break
        self.ran = self.skipped = 0


def refuse_inference_mode() -> None:
    """Raise ``ValueError`` where tensors count no changes."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode is on: tensors made in it count no changes, by which it is known"
            " what work to use again; call this outside of it (torch.no_grad will do)"
        )


def kept_bytes(model: nn.Module, batch: Any, names: Sequence[str]) -> int:
    """What a :class:`Replay` keeps without a limit; one forward."""
    calls, _ = _record(model, batch, {})
    return sum(calls[number].bytes for number in _worth_keeping(calls, _first(model, calls, names)))


def _record(model: nn.Module, batch: Any, keep: Mapping[int, bool]) -> tuple[list[_Call], Tensor]:
    """Every call of one forward, and the output; ``keep`` says of which, and whether cloned."""
    calls: list[_Call] = []
    open_calls: list[_Call] = []
    clock = iter(range(1 << 62))

    def watched(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            number, parent = len(calls), open_calls[-1] if open_calls else None
            this = _Call(module, parent, next(clock))
            if parent is not None:
                parent.innermost = False
            calls.append(this)
            open_calls.append(this)
            output = forward(*args, **kwargs)
            open_calls.pop()
            this.end, this.after = next(clock), len(calls)
            _weigh(this, output)
            if number in keep:
                this.output = _copied(output, clone=keep[number])
                this.versions = _versions(this.output)
            return output

        return run

    with torch.no_grad(), _forwards(dict.fromkeys(model.modules()), watched):
        output = tensor_of(call(model, _copied(batch, clone=True)))
    return calls, output.detach().clone()


def _first(model: nn.Module, calls: Sequence[_Call], names: Sequence[str]) -> dict[str, int]:
    """When each module is first called; -1 where it is not."""
    first = {call.module: call.begin for call in reversed(calls)}
    return {name: first.get(model.get_submodule(name), -1) for name in names}


def _weigh(this: _Call, output: Any) -> None:
    """Count what a call returned, and what it did."""
    sizes = [(tensor.numel(), tensor.element_size()) for tensor in _tensors(output)]
    this.bytes = sum(count * size for count, size in sizes)
    if this.innermost:
        weight = getattr(this.module, "weight", None)
        each = weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 0
        this.work = sum(count for count, _ in sizes) * (1 + each)
    if this.parent is not None:
        this.parent.work += this.work


def _worth_keeping(calls: Sequence[_Call], first: Mapping[str, int]) -> dict[int, int]:
    """Outermost among the calls that end before one of the starts; before how many."""
    starts, kept = sorted(first.values()), {}
    for number, one in enumerate(calls):
        until = len(starts) if one.parent is None else bisect_left(starts, one.parent.end)
        count = until - bisect_right(starts, one.end)
        if count > 0:
            kept[number] = count
    return kept


def _within(memory: float, calls: Sequence[_Call], uses: Mapping[int, int]) -> list[int]:
    """Those that save the most work for their bytes, as far as they fit."""
    kept, left = [], memory
    for number in sorted(uses, key=lambda i: -uses[i] * calls[i].work / max(calls[i].bytes, 1)):
        if calls[number].bytes <= left:
            kept.append(number)
            left -= calls[number].bytes
    return sorted(kept)


def _until(calls: Sequence[_Call], start: int) -> int:
    """Number of the first call that begins at ``start`` or later."""
    return bisect_right(calls, start - 1, key=lambda one: one.begin)


@contextmanager
def _forwards(
    modules: Mapping[nn.Module, Any],
    wrapped: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Each module's ``forward`` replaced on the instance, and put back."""
    before = {module: module.__dict__.get("forward") for module in modules}
    try:
        for module in modules:
            module.forward = wrapped(module, module.forward)
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward


def _copied(value: Any, *, clone: bool) -> Any:
    """The value in new containers, its tensors cloned where asked; what is neither is shared."""
    if isinstance(value, Tensor):
        return value.clone() if clone else value
    if isinstance(value, tuple):
        parts = [_copied(part, clone=clone) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, list):
        return [_copied(part, clone=clone) for part in value]
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, part in value.items():
            new[key] = _copied(part, clone=clone)
        return new
    return value


def _versions(value: Any) -> tuple[int, ...]:
    """How often each tensor inside was changed in place."""
    return tuple(x._version for x in _tensors(value))  # noqa: SLF001  (documented in torch's notes)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())
