"""Which outputs a tensor descends from, kept per storage so that views and writes in place share.

Storages are told apart by address. A weak reference to each is held, without which a later one
could be given the address of one that is gone.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

INPUT = ""  # the source that stands for the example itself
_INDICES = (torch.bool, torch.int32, torch.int64)  # tokens, masks and steps are looked up, not read

Token = tuple[int, int, int, int]
"""A tensor's value: its storage, the writes to it so far, where it begins, how many elements."""


@dataclass(frozen=True)
class Origin:
    """What a tensor descends from.

    Attributes:
        sources: Sites whose output it is, with no site between, and `INPUT`.
        branch: Sites upstream of it, as far back as the nearest sum of two branches.
        weights: Parameters of two or more axes it was computed from since the last site.
        data: Whether it depends on the example.
    """

    sources: frozenset[str] = frozenset()
    branch: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    data: bool = False

    def __or__(self, other: "Origin") -> "Origin":
        """The origin of what is computed from both."""
        if other == self:
            return self
        return Origin(
            self.sources | other.sources,
            self.branch | other.branch,
            self.weights | other.weights,
            self.data or other.data,
        )


NOWHERE = Origin()


class Origins:
    """The origin of every tensor met during one run."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._known: dict[int, Origin] = {}
        self._alive: dict[int, StorageWeakRef] = {}
        self._writes: Counter[int] = Counter()
        self._copies: dict[int, Token] = {}  # what a storage was made as a copy of
        self._parameters: dict[int, list[tuple[range, str]]] = {}
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                begin = int(parameter.storage_offset())
                extent = range(begin, begin + parameter.numel())
                self._parameters.setdefault(self._key(parameter), []).append((extent, name))
        for tensor in tensors(example):
            source = () if tensor.dtype in _INDICES else (INPUT,)
            self._known[self._key(tensor)] = Origin(frozenset(source), data=True)

    def of(self, tensor: Tensor) -> Origin:
        """What the tensor descends from."""
        key = self._key(tensor)
        if key in self._parameters:
            name = self.parameter(tensor)
            return Origin(weights=frozenset({name})) if name else NOWHERE
        return self._known.get(key, NOWHERE)

    def token(self, tensor: Tensor) -> Token:
        """Equal for tensors that hold the same value: views of all of it, and copies."""
        key = self._key(tensor)
        begin, count = int(tensor.storage_offset()), tensor.numel()
        here = (key, self._writes[key], begin, count)
        copied = self._copies.get(key)
        return copied if copied and copied[3] == count and not here[1] else here

    def parameter(self, tensor: Tensor) -> str | None:
        """The parameter of two or more axes that the tensor is, views and copies included."""
        key, _, begin, _ = self.token(tensor)
        extents = self._parameters.get(key, ())
        return next((name for extent, name in extents if begin in extent), None)

    def wrote(self, written: Iterable[Tensor], origin: Origin) -> None:
        """An operation wrote into these tensors."""
        for tensor in written:
            if key := self._key(tensor):
                self._writes[key] += 1
                self._known[key] = origin

    def made(self, output: Any, origin: Origin, copy_of: Token | None = None) -> None:
        """An operation returned this; what is no view of something known is new."""
        for tensor in tensors(output):
            if _storage(tensor) not in self._alive and (key := self._key(tensor)):
                self._known[key] = origin
                if copy_of:
                    self._copies[key] = copy_of

    def _key(self, tensor: Tensor) -> int:
        key = _storage(tensor)
        if key and key not in self._alive:
            self._alive[key] = StorageWeakRef(tensor.untyped_storage())
        return key


def _storage(tensor: Tensor) -> int:
    """The storage's address; 0 for tensors that have none, such as sparse ones."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  (there is no public name)
    except (NotImplementedError, RuntimeError):
        return 0


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
