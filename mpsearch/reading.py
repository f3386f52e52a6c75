"""Strict reading of JSON and npz documents: every error names the document and the place in it."""

import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 1 << 30
DEEPEST = 40


class BadDocument(ValueError):
    """A document that cannot be read; the message names the place."""


@dataclass(frozen=True)
class Node:
    """A value in a document, and where it stands."""

    value: Any
    place: str

    def error(self, wanted: str) -> BadDocument:
        """The error that this value is not what was wanted."""
        return BadDocument(f"{self.place}: got {_short(self.value)}; wanted {wanted}")

    def object(self, required: str = "", optional: str = "") -> "dict[str, Node]":
        """The members of an object that has all required keys and no unknown ones."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        must, may = required.split(), optional.split()
        for key in must:
            if key not in self.value:
                raise BadDocument(f"{self.place}: has no {key!r}; it is required")
        for key in self.value:
            if key not in must and key not in may:
                known = ", ".join([*must, *may])
                raise BadDocument(f"{self.place}: key {key!r} is not known; keys are {known}")
        return self.members()

    def members(self) -> "dict[str, Node]":
        """The members of an object, whatever its keys."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return {key: Node(value, f"{self.place}.{key}") for key, value in self.value.items()}

    def items(self, least: int = 0, exactly: int | None = None) -> "list[Node]":
        """The items of a list."""
        wanted = f"a list of {exactly}" if exactly is not None else "a list"
        if not isinstance(self.value, list) or (exactly is not None and len(self.value) != exactly):
            raise self.error(wanted)
        if len(self.value) < least:
            raise self.error(f"a list of at least {least}")
        return [Node(value, f"{self.place}[{i}]") for i, value in enumerate(self.value)]

    def text(self) -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error("a text that is not empty")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in self.value):
            raise self.error("a text of whole Unicode characters")
        return self.value

    def number(self) -> float:
        """A finite number; an integer stays one."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error("a finite number")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise self.error("a number below 2^63")
        if not math.isfinite(value):
            raise self.error("a finite number")
        return value

    def count(self) -> int:
        """An integer that is not negative."""
        value = self.number()
        if not isinstance(value, int) or value < 0:
            raise self.error("an integer that is not negative")
        return value

    def one_of(self, known: Mapping[str, int], what: str) -> int:
        """The index of a known name."""
        name = self.text()
        if name not in known:
            there = ", ".join(repr(k) for k in list(known)[:6]) + (
                ", ..." if len(known) > 6 else ""
            )
            raise BadDocument(f"{self.place}: no {what} is named {name!r}; there are {there}")
        return known[name]

    def none(self) -> bool:
        """Whether it is null."""
        return self.value is None

    def matrix(self, rows: int, columns: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(rows, columns) numbers, 0 where null, and a mask that is false there.

        The numbers are int64 where all are written as integers, else float64. In an array NaN
        stands for null; beside it whole numbers are integers.
        """
        if isinstance(self.value, np.ndarray):
            return self._array(rows, columns)
        cells = [row.items(exactly=columns) for row in self.items(exactly=rows)]
        mask = np.array([[not cell.none() for cell in row] for row in cells])
        numbers = [[0 if cell.none() else cell.number() for cell in row] for row in cells]
        whole = all(isinstance(number, int) for row in numbers for number in row)
        return np.array(numbers, dtype=np.int64 if whole else np.float64), mask

    def _array(self, rows: int, columns: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        array = self.value
        if array.shape != (rows, columns) or array.dtype.kind not in "iuf":
            raise BadDocument(
                f"{self.place}: got an array of shape {array.shape} and type {array.dtype};"
                f" wanted numbers of shape {(rows, columns)}"
            )
        if array.dtype.kind == "u" and int(array.max()) >= 1 << 63:
            raise BadDocument(f"{self.place}: holds a number of 2^63 or more; wanted less")
        if array.dtype.kind in "iu":
            return array.astype(np.int64), np.ones(array.shape, bool)
        with np.errstate(over="ignore"):
            array = array.astype(np.float64)
        if np.isinf(array).any():
            row, column = np.argwhere(np.isinf(array))[0]
            raise BadDocument(
                f"{self.place}[{row}][{column}]: got {array[row, column]}; wanted a finite number"
            )
        mask = ~np.isnan(array)
        numbers = np.where(mask, array, 0)
        small = (numbers == np.round(numbers)) & (np.abs(numbers) < 2.0**53)
        whole = bool(small.all() and not mask.all())
        return numbers.astype(np.int64) if whole else numbers, mask


def _short(value: Any) -> str:
    text = f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse(text: str | bytes, name: str) -> Node:
    """Read JSON text: no NaN, no infinity, no key twice, no deeper than 40."""
    if len(text) > MOST_BYTES:
        raise BadDocument(f"{name}: {len(text)} bytes; at most {MOST_BYTES} are read")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(items)
        if len(members) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BadDocument(f"{name}: key {twice!r} stands twice in one object; write it once")
        return members

    def constant(word: str) -> Any:
        raise BadDocument(
            f"{name}: holds {word}; JSON has finite numbers only, null masks an option"
        )

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError:
        raise BadDocument(f"{name}: nested too deep; at most {DEEPEST} levels are read") from None
    except BadDocument:
        raise
    except ValueError as reason:
        raise BadDocument(f"{name}: is not JSON: {reason}") from None
    if _depth(value) > DEEPEST:
        raise BadDocument(f"{name}: nested too deep; at most {DEEPEST} levels are read")
    return Node(value, name)


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return depth


def read(path: str | Path) -> Node:
    """Read a ``.json`` or ``.npz`` document."""
    path = Path(path)
    try:
        if path.suffix != ".npz" and path.stat().st_size > MOST_BYTES:
            raise BadDocument(f"{path}: {path.stat().st_size} bytes; at most {MOST_BYTES} are read")
        data = path.read_bytes()
    except OSError as reason:
        raise BadDocument(f"{path}: cannot be read: {reason.strerror or reason}") from None
    return _npz(data, str(path)) if path.suffix == ".npz" else parse(data, str(path))


def _npz(data: bytes, name: str) -> Node:
    """An npz of JSON texts by top-level key, and of arrays by dotted place (``loss.values``)."""
    document: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            whole = sum(entry.file_size for entry in opened.infolist())
        if whole > MOST_BYTES:
            raise BadDocument(f"{name}: unpacks to {whole} bytes; at most {MOST_BYTES} are read")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for key in archive.files:
                array = archive[key]
                if array.dtype.kind == "U" and array.shape == ():
                    document[key] = parse(str(array), f"{name}.{key}").value
                else:
                    arrays[key] = array
    except BadDocument:
        raise
    except Exception as reason:  # noqa: BLE001 zipfile, zlib and numpy raise a dozen kinds
        raise BadDocument(f"{name}: is not an npz of texts and numbers: {reason}") from None
    for key, array in arrays.items():
        *outer, last = key.split(".")
        at = document
        for part in outer:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise BadDocument(f"{name}: array {key!r} stands inside what is no object")
        at[last] = array
    return Node(document, name)


def write(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write a document whole or not at all; ``OSError`` says which path could not be written."""
    path = Path(path)
    data = _as_npz(document) if path.suffix == ".npz" else _as_json(document)
    write_bytes(path, data)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    try:
        handle, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            mask = os.umask(0)
            os.umask(mask)
            Path(made).chmod(0o666 & ~mask)
            Path(made).replace(path)
        except BaseException:
            Path(made).unlink(missing_ok=True)
            raise
    except OSError as reason:
        raise OSError(
            f"cannot write {str(path)!r}: {reason.strerror}; name a file in a folder that"
            " exists and may be written to"
        ) from None


def _as_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False, default=_plain) + "\n").encode()


def _as_npz(document: Mapping[str, Any]) -> bytes:
    arrays: dict[str, Any] = {}

    def without_arrays(value: Any, place: str) -> Any:
        if not isinstance(value, Mapping):
            return value
        inside = {key: f"{place}.{key}" for key in value}
        arrays.update({inside[k]: v for k, v in value.items() if isinstance(v, np.ndarray)})
        return {
            key: without_arrays(inner, inside[key])
            for key, inner in value.items()
            if not isinstance(inner, np.ndarray)
        }

    texts = {
        key: np.array(json.dumps(without_arrays(value, key), allow_nan=False))
        for key, value in document.items()
        if not isinstance(value, np.ndarray)
    }
    arrays |= {key: value for key, value in document.items() if isinstance(value, np.ndarray)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **texts, **arrays)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [[None if math.isnan(x) else x for x in row] for row in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not written as JSON")
