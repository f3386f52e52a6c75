"""What the commands share: how they read words, and how they say results."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsearch.allocation import Allocation
from mpsearch.formats import Option
from mpsearch.formats import options as read_options
from mpsearch.report.text import readable, table
from mpsearch.tables import Cost, Stages

if TYPE_CHECKING:
    from mpsearch.sweep import Sweep


@dataclass(frozen=True)
class Said:
    """What a command has to say: one JSON object, and the same as prose."""

    document: Mapping[str, Any]
    text: str


def pairs(texts: Sequence[str], form: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping; a regular expression may itself hold ``=``."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (
            text.rpartition("=") if form.startswith("REGEX") else text.partition("=")
        )
        if not (name and equals and value):
            raise ValueError(f"got {text!r}; wanted {form}")
        if name in found:
            raise ValueError(f"{name!r} is given twice; give it once")
        found[name] = value
    return found


def split_options(text: str) -> tuple[Option, ...]:
    """Options separated by commas."""
    return read_options(*(name.strip() for name in text.split(",") if name.strip()))


def writable(path: str | None) -> None:
    """Refuse an output path before the long part, not after it."""
    if path is None:
        return
    folder = Path(path).resolve().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(
            f"cannot write {path!r}; name a file in a folder that exists and may be written to"
        )


def progress() -> "Sweep":
    """A sweep that shows progress."""
    from mpsearch.sweep import Sweep

    return Sweep(progress=True)


def verdict(answer: Allocation) -> str:
    """One sentence on how good the answer is proven to be, one on the guard where it acted."""
    lines = [
        f"{answer.status.value}: loss {answer.loss:.6g}, bound {answer.bound:.6g} ({answer.unit})"
    ]
    for name, figure in answer.figures.items():
        if figure.limit is not None:
            held = f"{readable(figure.value, figure.unit)} of {readable(figure.limit, figure.unit)}"
            lines.append(f"{name}: {held}")
    if "guard" in answer.provenance:
        lines.append(str(answer.provenance["guard"]))
    if answer.measured is None:
        lines.append("not verified: no held-out run was made")
    return "\n".join(lines)


def table_text(made: Cost) -> str:
    """A table or stages as aligned columns."""
    if isinstance(made, Stages):
        return f"{made.name} ({made.unit}): the largest of {len(made.stages)} stages"
    rows = [
        [layer.name, *(f"{v:.6g}" if ok else "-" for v, ok in zip(values, oks, strict=True))]
        for layer, values, oks in zip(made.layers, made.values.tolist(), made.allowed, strict=True)
    ]
    return f"{made.name} ({made.unit})\n" + table(["layer", *map(str, made.options)], rows)


def plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """A document with lists in place of arrays."""
    return {
        key: value.tolist() if hasattr(value, "tolist") else value for key, value in body.items()
    }


def figures(was: Mapping[str, Any]) -> list[str]:
    """The measured mean, its standard error and the metrics, as text."""
    mean = was.get("kl", was.get("relative_mse", math.nan))
    metrics = ", ".join(f"{k} {v:.4g}" for k, v in was.get("metrics", {}).items())
    return [f"{mean:.6g}", f"{was.get('stderr', 0):.2g}", metrics]
