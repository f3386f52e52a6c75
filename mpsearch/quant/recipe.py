"""How a network is quantized once its options are chosen: a plain record, no torch.

Estimators, verification and the final network take the same one, and an allocation records it, so
that what was predicted is what is run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Ranges = Literal["minmax", "mse"]
Rounding = Literal["nearest", "gptq", "adaround", "adaquant", "quantease", "decoupleq"]
Correction = Literal["moments", "bias", "batchnorm", "spread"]
Salience = Literal["magnitude", "hessian"]
Preparation = Literal["fold", "smooth", "rotate", "shift", "align", "clip"]
ActivationRanges = Literal["minmax", "percentile", "mse"]


@dataclass(frozen=True)
class Recipe:
    """Range choice, rounding and corrections.

    Attributes:
        ranges: What a weight's scale is chosen by: ``minmax`` covers every value, ``mse`` clips to
            the least squared error.
        rounding: How weights become integers: to ``nearest``, or so that the layer's output errs
            least: ``gptq``, ``decoupleq`` (and its scales in turn), ``quantease`` (by descent),
            ``adaround`` (by gradients, and slow), ``adaquant`` (so, and its scales).
            Weights in other formats are rounded to nearest; an option may name another method.
        corrections: What is done after rounding: ``moments`` gives every batch norm's output its
            float mean and variance back, and likewise that of a convolution that none reads, as
            where it was folded in, if its weights are plain integers with scales of each channel;
            other quantized layers' outputs get their float mean. ``bias`` gives every quantized
            layer's output its float mean; ``batchnorm`` estimates the statistics of every batch
            norm again; ``spread`` gives linear layers' outputs the deviation too, as ``moments``
            does convolutions'. That is no default because transformers of 2 and 3 bits lose
            (``tests/bench/recipes.py`` measures all).
        activation_ranges: What an input's static range is chosen by.
        percentile: Share of the values, in percent, that the ``percentile`` range covers, and
            ``clip``'s.
        samples: Most calibration samples that corrections, and roundings that look at inputs, are
            computed on.
        damp: Added to the diagonal of ``gptq``'s, ``decoupleq``'s and ``salience``'s Hessians,
            times its mean.
        act_order: Whether they begin with the columns that read the largest inputs.
        steps: Of ``adaround``'s and ``adaquant``'s descent.
        preparations: What is done first, and keeps the network's function: ``fold`` lets layers
            multiply as the batch norms after them do; ``smooth`` moves the range of what layer
            norms return into the weights that read it; ``rotate`` turns what lies between a
            transformer's blocks, so that no channel stands out; ``shift`` takes the mean of what
            layer norms return, by channel, into the biases that follow (before ``smooth`` it is
            SQ-b); ``align`` gives its channels one range, ``clip`` one that covers ``percentile``
            of each. None is a default: ``fold`` changes little, and the others help inputs of few
            bits at the weights' expense (``tests/bench/recipes.py`` measures it).
        alpha: Share of the range that ``smooth`` moves.
        bos: Linear layers, by regular expressions found in their names, that keep what they write
            for the first token, which must be always the same, in floats: the keys and values of
            cross-attention (MixDQ), or those of a language model whose prompts begin with one
            token (:mod:`mpsearch.quant.bos`).
        salience: What a format that keeps some weights at more bits chooses them by: the largest
            (``magnitude``), or those that the layer's output needs most (``hessian``:
            :mod:`mpsearch.quant.keeping`).
    """

    ranges: Ranges = "mse"
    rounding: Rounding = "nearest"
    corrections: tuple[Correction, ...] = ("moments",)
    activation_ranges: ActivationRanges = "mse"
    percentile: float = 99.9
    samples: int = 256
    damp: float = 0.01
    act_order: bool = True
    steps: int = 500
    preparations: tuple[Preparation, ...] = ()
    alpha: float = 0.5
    bos: tuple[str, ...] = ()
    salience: Salience = "magnitude"

    def __post_init__(self) -> None:
        """Refuse values no code stands behind."""
        _one_of("ranges", self.ranges, get_args(Ranges))
        _one_of("rounding", self.rounding, get_args(Rounding))
        _one_of("salience", self.salience, get_args(Salience))
        _one_of("activation_ranges", self.activation_ranges, get_args(ActivationRanges))
        self._list("corrections", get_args(Correction))
        self._list("preparations", get_args(Preparation))
        self._list("bos", None)
        if {"moments", "batchnorm"} <= set(self.corrections):
            raise ValueError(
                "recipe: corrections 'moments' and 'batchnorm' both set what batch norms know of"
                " their inputs; name one of them"
            )
        if not _is_number(self.percentile) or not 50 < self.percentile <= 100:
            raise ValueError(
                f"recipe: percentile is above 50 and at most 100, got {self.percentile!r}"
            )
        for name in ("samples", "steps"):
            value = getattr(self, name)
            if not _is_number(value) or value < 1 or value % 1 != 0:
                raise ValueError(f"recipe: {name} is a whole number from 1 up, got {value!r}")
            object.__setattr__(self, name, int(value))  # a document may say 256.0
        if not _is_number(self.alpha) or not 0 <= self.alpha <= 1:
            raise ValueError(f"recipe: alpha is a number from 0 to 1, got {self.alpha!r}")
        if not _is_number(self.damp) or not 0 < self.damp < float("inf"):
            raise ValueError(f"recipe: damp is a number above 0, got {self.damp!r}")
        flag: Any = self.act_order
        if not isinstance(flag, bool):
            raise ValueError(f"recipe: act_order is true or false, got {flag!r}")  # noqa: TRY004

    def _list(self, name: str, known: Sequence[str] | None) -> None:
        """Check a list of known names, or where none are known, of regular expressions."""
        given: Any = getattr(self, name)  # a document may hold anything
        if not isinstance(given, tuple | list):
            raise ValueError(f"recipe: {name} are a list, got {given!r}")  # noqa: TRY004
        object.__setattr__(self, name, tuple(given))
        for one in given:
            if known is None:
                _expression(name, one)
            else:
                _one_of(name, one, known)
        if len(set(given)) != len(given):
            raise ValueError(f"recipe: one of {name} is named twice in {tuple(given)!r}")

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
        return {k: list(value) if isinstance(value, tuple) else value for k, value in body.items()}


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"recipe: {name} has {value!r}; known are {', '.join(map(repr, known))}")


def _expression(name: str, value: object) -> None:
    try:
        re.compile(value)  # type: ignore[call-overload]
    except (TypeError, re.error) as error:
        raise ValueError(
            f"recipe: {name} has {value!r}, which is no regular expression: {error}"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
