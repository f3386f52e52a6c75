"""Units of work: run with progress, kept in a cache, stopped and taken up again.

Estimators and measurements are made of units, each with a key that says all its result depends on.
What was computed stays in the cache when a run is interrupted, so that the next one goes on there.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mpsearch.formats import Option
from mpsearch.limits import read_limit
from mpsearch.network import numbered
from mpsearch.reading import write_bytes
from mpsearch.tables import Table

T = TypeVar("T")
Unit = tuple[str | int | float, ...]


@dataclass(frozen=True, eq=False)
class Sweep:
    """How units of work are run.

    Attributes:
        progress: Whether to draw a progress bar on standard error.
        cache: Results by key; pass the same one again to go on where a run was stopped.
        study: What all units of this run depend on: model, data, recipe; part of every key.
        memory: Most bytes that samples are run and kept in, with their gradients: a number, or a
            text such as ``4GB``, which is the default. Beside it are the model, its copy, weights
            and their gradients, the Hessian of what one layer reads, the batches themselves, and
            the recipe's samples put together. ``taylor``, ``lrp`` and the curvature of a task's own
            loss take a batch whole: give smaller batches.
    """

    progress: bool = False
    cache: MutableMapping[str, Any] = field(default_factory=dict, repr=False)
    study: str = ""
    memory: float | str = "4GB"

    def __post_init__(self) -> None:
        """Read the limit on memory."""
        object.__setattr__(self, "memory", read_memory(self.memory))

    def run(
        self, title: str, units: Sequence[Unit], compute: Callable[[Unit], list[float]]
    ) -> list[list[float]]:
        """The result of every unit, in their order: from the cache, else computed and kept."""
        results = []
        for unit in self.steps(title, units):
            key = self._key(title, unit)
            if key not in self.cache:
                self.cache[key] = compute(unit)
            results.append(self.cache[key])
        return results

    def missing(self, title: str, units: Iterable[Unit]) -> list[Unit]:
        """The units whose results are not in the cache."""
        return [unit for unit in units if self._key(title, unit) not in self.cache]

    def _key(self, title: str, unit: Unit) -> str:
        return json.dumps([self.study, title, *unit])

    def steps(self, title: str, items: Sequence[T]) -> Iterable[T]:
        """The items, under a progress bar."""
        if not self.progress or len(items) < 2:
            return items
        from tqdm import tqdm

        bar: Iterable[T] = tqdm(items, desc=title, file=sys.stderr, leave=False, mininterval=0.2)
        return bar


def read_memory(given: float | str) -> float:
    """Bytes, from a number of them or a text.

    >>> read_memory("1.5GiB")
    1610612736
    """
    bytes_ = Table(
        numbered(1, 0), (Option.parse("w32a32"),), np.zeros((1, 1)), "byte", name="memory"
    )
    try:
        limit = read_limit(bytes_, given) if isinstance(given, str) else given
        if limit > 0:
            return limit
    except (ValueError, TypeError):
        pass  # said below
    raise ValueError(
        f"memory is {given!r}; wanted a positive number of bytes, such as 4GB, 500MB or 2GiB"
    )


class Folder(MutableMapping[str, Any]):
    """A cache on disk: one small JSON file a result, each written whole or not at all."""

    def __init__(self, path: str | Path) -> None:
        """Make the folder where it is not there."""
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as reason:
            raise OSError(
                f"cannot make the cache folder {str(path)!r}: {reason.strerror}"
            ) from None

    def _file(self, key: str) -> Path:
        return self.path / (hashlib.sha256(key.encode()).hexdigest() + ".json")

    def __getitem__(self, key: str) -> Any:
        """The result kept under a key; a damaged file counts as none."""
        try:
            body = json.loads(self._file(key).read_bytes())
        except (OSError, ValueError):
            raise KeyError(key) from None
        if not isinstance(body, dict) or body.get("key") != key or "result" not in body:
            raise KeyError(key)
        return body["result"]

    def __setitem__(self, key: str, result: Any) -> None:
        """Keep a result."""
        write_bytes(self._file(key), json.dumps({"key": key, "result": result}).encode())

    def __delitem__(self, key: str) -> None:
        """Forget a result."""
        try:
            self._file(key).unlink()
        except OSError:
            raise KeyError(key) from None

    def __iter__(self) -> Any:
        """Every key."""
        for file in sorted(self.path.glob("*.json")):
            try:
                yield json.loads(file.read_bytes())["key"]
            except (OSError, ValueError, KeyError, TypeError):
                continue

    def __len__(self) -> int:
        """How many results are kept."""
        return sum(1 for _ in self)
