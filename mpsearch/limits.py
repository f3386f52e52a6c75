"""Limits as people write them: ``6.7MB``, ``25%``, ``4.0bit``, ``uniform:w4a8``."""

import re
from fractions import Fraction

from mpsearch.formats import Option
from mpsearch.tables import Cost, Stages

_UNITS: dict[str, int | Fraction] = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
    "s": 1, "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "ns": Fraction(1, 10**9),
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "J": 1, "mJ": Fraction(1, 10**3), "uJ": Fraction(1, 10**6),
}  # fmt: skip
_LIMIT = re.compile(
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*(?P<unit>[A-Za-z%]*)", re.ASCII
)


def read_limit(cost: Cost, limit: str) -> float:
    """The number a text means for a cost; see :meth:`mpsearch.Budget.of`."""
    if limit.startswith("uniform:"):
        return _uniform_cost(cost, limit.removeprefix("uniform:"))
    match = _LIMIT.fullmatch(limit.strip())
    unit = match["unit"] if match else ""
    scale = Fraction(1) if unit == "" else _scale(unit, cost.unit)
    if match and unit == "%":
        if cost.reference is None:
            raise ValueError(
                f"cost {cost.name!r} has no unquantized reference, so {limit!r} means nothing;"
                f" give the budget in {cost.unit}"
            )
        scale = Fraction(cost.reference) / 100
    elif match and unit in ("bit", "bits"):
        return _number(Fraction(match["number"]) * _weights(cost) / 8 + Fraction(cost.fixed))
    if match is None or scale is None:
        raise ValueError(
            f"budget {cost.name}={limit} is not understood; {cost.name!r} is counted in"
            f" {cost.unit}: write a number, 25%, uniform:OPTION"
            + (", 4.0bit, or a unit such as kB, MB or MiB" if cost.unit == "byte" else "")
        )
    return _number(Fraction(match["number"]) * scale)


def _number(value: Fraction) -> float:
    return int(value) if value.denominator == 1 else float(value)


def _scale(unit: str, counted: str) -> Fraction | None:
    """How many of what a cost is counted in a unit is; ``None`` where it is none of its kind."""
    if unit in ("k", "M", "G", "T"):
        return Fraction(_UNITS[unit])
    kinds = {u: u[-1] for u in _UNITS} | {"byte": "B"}
    if unit not in _UNITS or kinds.get(counted) != kinds[unit]:
        return None
    return Fraction(_UNITS[unit]) / _UNITS.get(counted, 1)


def _weights(cost: Cost) -> int:
    count = sum(layer.params for layer in cost.layers)
    if cost.unit != "byte" or not count:
        raise ValueError(
            f"a budget in bits is a mean over stored weights; {cost.name!r} is counted in"
            f" {cost.unit} over {count} weights: give it in {cost.unit}"
        )
    return count


def _uniform_cost(cost: Cost, text: str) -> float:
    option = Option.read(text)
    if option not in cost.options:
        known = ", ".join(str(o) for o in cost.options)
        raise ValueError(f"no option is {text!r} here; there are {known}")
    if isinstance(cost, Stages):
        return cost.total([cost.options.index(option)] * len(cost.layers))
    choice = cost.uniform(option)
    if choice is None:
        row = int((~cost.allowed[:, cost.options.index(option)]).argmax())
        raise ValueError(
            f"layer {cost.layers[row].name!r} may not take {text!r}; name another option"
        )
    return cost.total(choice)
