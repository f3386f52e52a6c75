"""A machine as data: figures from a TOML file, each with where it comes from.

``devices/*.toml`` are ours; a path to a file of the same form is a device of the user's own::

    title = "STM32H743, Arm Cortex-M7 at 480 MHz"
    model = "mcu"            # the hardware model that prices it

    [figures.clock]
    value = 480e6
    unit = "Hz"
    basis = "published"      # or "measured", or "assumed"
    source = "ST, data sheet DS12110"
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "devices"
BASES = ("published", "measured", "assumed")


@dataclass(frozen=True)
class Figure:
    """One number of a machine, and where it comes from."""

    value: float
    unit: str
    basis: str
    source: str


@dataclass(frozen=True)
class Device:
    """A machine.

    Attributes:
        name: What it is called by.
        title: What it is.
        model: The hardware model that prices it.
        figures: Its numbers, all above zero; a dotted name such as ``cycles.conv2d.w4a8`` is one of
            a family.
    """

    name: str
    title: str
    model: str
    figures: Mapping[str, Figure] = field(repr=False)

    def __getitem__(self, figure: str) -> float:
        """The value of a figure."""
        if figure not in self.figures:
            there = ", ".join(self.figures)
            raise LookupError(f"device {self.name!r} has no figure {figure!r}; it has {there}")
        return self.figures[figure].value

    def get(self, figure: str, otherwise: float) -> float:
        """The value of a figure, or of what stands for it where there is none."""
        return self.figures[figure].value if figure in self.figures else otherwise

    def family(self, name: str) -> dict[str, float]:
        """The figures ``name.*``, by what follows the dot."""
        return {
            key.removeprefix(f"{name}."): figure.value
            for key, figure in self.figures.items()
            if key.startswith(f"{name}.")
        }


def devices() -> dict[str, Device]:
    """Ours, by name."""
    return {path.stem: read_device(path) for path in sorted(FOLDER.glob("*.toml"))}


def device(name: str, *, model: str | None = None) -> Device:
    """A device of ours by name, or of the user's own by the path of its file.

    ``LookupError`` where there is none, ``ValueError`` where the file is wrong, or where the device
    is priced by another model than ``model``.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        there = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))
        raise LookupError(
            f"no device is named {name!r}; there are {there}, or give the path of a .toml file"
        )
    found = read_device(path)
    if model is not None and found.model != model:
        raise ValueError(f"device {name!r} is priced by model {found.model!r}, not {model!r}")
    return found


def read_device(path: Path) -> Device:
    """The device of a file; ``ValueError`` says what is wrong in it."""
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as reason:
        raise ValueError(f"{path}: is not TOML ({reason})") from None
    unknown = sorted(set(document) - {"title", "model", "figures"})
    if unknown:
        raise ValueError(f"{path}: has {unknown[0]!r}; a device has title, model and figures")
    for key in ("title", "model"):
        if not isinstance(document.get(key), str):
            raise ValueError(  # noqa: TRY004  the file is wrong, not an argument
                f"{path}: {key} is {document.get(key)!r}; wanted a text"
            )
    given = document.get("figures")
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{path}: has no figures; give at least one")
    figures = {name: _figure(path, name, entry) for name, entry in _flat(given).items()}
    return Device(path.stem, document["title"], document["model"], figures)


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables by dotted name; a figure is a table with a value."""
    flat: dict[str, Any] = {}
    for key, entry in tree.items():
        name = f"{above}{key}"
        if isinstance(entry, dict) and "value" not in entry:
            flat |= _flat(entry, f"{name}.")
        else:
            flat[name] = entry
    return flat


def _figure(path: Path, name: str, entry: Any) -> Figure:
    keys = {"value", "unit", "basis", "source"}
    if not isinstance(entry, dict) or set(entry) != keys:
        raise ValueError(
            f"{path}: figure {name!r} is {entry!r}; wanted value, unit, basis and source"
        )
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{path}: figure {name!r} is {value!r}; wanted a number above zero")
    if entry["basis"] not in BASES:
        raise ValueError(
            f"{path}: the basis of {name!r} is {entry['basis']!r}; wanted {', '.join(BASES)}"
        )
    return Figure(value, str(entry["unit"]), entry["basis"], str(entry["source"]))
