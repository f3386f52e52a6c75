"""How a network is quantized once its options are chosen: a plain record, no torch.

Estimators, verification and the final network take the same one, and an allocation records it, so
that what was predicted is what is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Ranges = Literal["minmax", "mse"]
Rounding = Literal["nearest"]
Correction = Literal["moments"]
ActivationRanges = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True)
class Recipe:
    """Range choice, rounding and corrections.

    Attributes:
        ranges: What a weight's scale is chosen by: ``minmax`` covers every value, ``mse`` clips to
            the least squared error.
        rounding: How a weight becomes a code.
        corrections: What is done after rounding: ``moments`` gives every batch norm's output its
            float mean and variance back, and every other quantized layer's output its float mean.
        activation_ranges: What an input's static range is chosen by.
        percentile: Share of the values, in percent, that the ``percentile`` range covers.
        samples: Most calibration samples that corrections are computed on.
    """

    ranges: Ranges = "mse"
    rounding: Rounding = "nearest"
    corrections: tuple[Correction, ...] = ("moments",)
    activation_ranges: ActivationRanges = "mse"
    percentile: float = 99.9
    samples: int = 256

    def __post_init__(self) -> None:
        """Refuse values no code stands behind."""
        _one_of("ranges", self.ranges, get_args(Ranges))
        _one_of("rounding", self.rounding, get_args(Rounding))
        _one_of("activation_ranges", self.activation_ranges, get_args(ActivationRanges))
        given: Any = self.corrections  # a document may hold anything
        if not isinstance(given, tuple | list):
            raise ValueError(f"recipe: corrections are a list, got {given!r}")  # noqa: TRY004
        object.__setattr__(self, "corrections", tuple(self.corrections))
        for correction in self.corrections:
            _one_of("corrections", correction, get_args(Correction))
        if len(set(self.corrections)) != len(self.corrections):
            raise ValueError(f"recipe: a correction is named twice in {self.corrections!r}")
        if not _is_number(self.percentile) or not 50 < self.percentile <= 100:
            raise ValueError(
                f"recipe: percentile is above 50 and at most 100, got {self.percentile!r}"
            )
        if not _is_number(self.samples) or self.samples < 1 or self.samples % 1 != 0:
            raise ValueError(f"recipe: samples is a whole number from 1 up, got {self.samples!r}")

    @classmethod
    def read(cls, document: Mapping[str, Any] | None) -> "Recipe":
        """The recipe a document states; what it leaves out is the default.

        Raises:
            ValueError: A key or a value that no recipe has.

        >>> Recipe.read({"ranges": "minmax", "corrections": []}).corrections
        ()
        """
        given: Any = document
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"a recipe is an object such as {cls().document()}, got {given!r}")
        known = {field.name for field in fields(cls)}
        unknown = [key for key in document or {} if key not in known]
        if unknown:
            raise ValueError(
                f"recipe: no setting is named {unknown[0]!r}; there are {', '.join(sorted(known))}"
            )
        return cls(**(document or {}))

    def document(self) -> dict[str, Any]:
        """The recipe as an allocation records it: every setting, so that defaults may change."""
        body = {field.name: getattr(self, field.name) for field in fields(self)}
        return body | {"corrections": list(self.corrections)}


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"recipe: {name} has {value!r}; known are {', '.join(map(repr, known))}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
