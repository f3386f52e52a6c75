"""A program with interactions as one quadratic form on a grid of classes and options.

An answer takes one option of every class; it loses ``linear . x + x' pairs x``, where x is 1 at the
options taken and 0 elsewhere. Numbers are counted in a power of two, so that their sizes add up to
between 1 and 2 whatever the losses are counted in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpsearch.problem import Problem, expand
from mpsearch.solvers.program import ULP, Program
from mpsearch.tables import Floats, Mask

Integers = NDArray[np.int64]
MOST_OPTIONS = 4096  # the matrix of pairs then takes 128 MiB


@dataclass(frozen=True, eq=False)
class Form:
    """Pick one option of each of n classes of at most K: option k of class i stands at i K + k.

    Attributes:
        program: What it is made of.
        allowed: (n, K) which options there are.
        linear: (n K,) what each option loses alone, above the least of its class.
        pairs: (n K, n K) symmetric, half of what each pair loses; zero within a class.
        usage: (R, n K) what each option adds to each row, above the least of its class.
        unit: The loss that a loss of 1 stands for.
    """

    program: Program
    allowed: Mask
    linear: Floats
    pairs: Floats
    usage: Floats
    unit: float

    @classmethod
    def of(cls, program: Program) -> "Form":
        """The form of a program; ``ValueError`` where its matrix would be too large."""
        rank = np.arange(len(program.owner)) - program.starts[program.owner]
        shape = len(program.layers), int(rank.max()) + 1
        if math.prod(shape) > MOST_OPTIONS:
            raise ValueError(
                f"{shape[0]} classes of up to {shape[1]} options interact; quadratic takes"
                f" {MOST_OPTIONS} options in all: use milp, or leave out small interactions"
            )
        place = program.owner * shape[1] + rank
        loss = program.loss - program.least(program.loss)[program.owner]
        size = float(program.most(loss).sum()) + math.fsum(abs(q) for *_, q in program.pairs)
        unit = math.ldexp(1.0, math.frexp(size)[1] - 1)
        first, second, both = (np.array(column) for column in zip(*program.pairs, strict=True))
        allowed = np.zeros(shape, bool)
        allowed.flat[place] = True
        linear, pairs = np.zeros(allowed.size), np.zeros((allowed.size, allowed.size))
        linear[place] = loss / unit
        np.add.at(pairs, (place[first], place[second]), both / unit / 2)
        usage = np.zeros((len(program.rows), allowed.size))
        usage[:, place] = program.usage
        return cls(program, allowed, linear, pairs + pairs.T, usage, unit)

    @property
    def room(self) -> Floats:
        """(R,) what each row may add up to."""
        return self.program.room

    @property
    def shape(self) -> tuple[int, int]:
        """Classes, and the most options one has."""
        classes, options = self.allowed.shape
        return classes, options

    @cached_property
    def slip(self) -> float:
        """How far a value computed here may be from the loss it stands for."""
        size = float(np.abs(self.linear).sum() + np.abs(self.pairs).sum())
        return self.program.slip * self.program.unit / self.unit + ULP * self.shape[0] * 4 * size

    def value(self, picks: Integers) -> float:
        """What an answer, (n,) the place of the option taken of each class, loses."""
        return float(self.linear[picks].sum() + self.pairs[np.ix_(picks, picks)].sum())

    def bound(self, value: float) -> float:
        """The bound on the loss that a bound on the value is."""
        low = self.program.least(self.program.loss).tolist()
        return math.fsum([*self.program.constant, *low, (value - self.slip) * self.unit])

    def choice(self, picks: Integers) -> tuple[int, ...]:
        """The option of every merged layer."""
        rank = picks - np.arange(len(picks)) * self.shape[1]
        return self.program.choice(self.program.starts + rank)

    def picks(self, choice: tuple[int, ...]) -> Integers | None:
        """The answer that gives each merged layer its option; ``None`` where one was left out."""
        found = np.zeros(self.shape[0], np.int64)
        ends = [*self.program.starts[1:], len(self.program.owner)]
        for i, (start, end) in enumerate(zip(self.program.starts, ends, strict=True)):
            layers = self.program.layers[i]
            wanted = [choice[layer] for layer in layers]
            same = (self.program.columns[start:end, : len(layers)] == wanted).all(axis=1)
            if not same.any():
                return None
            found[i] = i * self.shape[1] + int(same.argmax())
        return found

    def projected(self) -> tuple["Form", float]:
        """The form whose matrix is the nearest that is positive semidefinite, as CLADO has it.

        The diagonal is the losses as given. Beside it the share of the eigenvalues' sizes that was
        removed.
        """
        given = np.zeros(self.linear.shape)
        place = np.flatnonzero(self.allowed)
        given[place] = self.program.loss / self.unit
        values, vectors = np.linalg.eigh(self.pairs + np.diag(given))
        matrix = (vectors * np.maximum(values, 0.0)) @ vectors.T
        size = float(np.abs(values).sum())
        removed = float(-np.minimum(values, 0.0).sum()) / size if size else 0.0
        linear = matrix.diagonal().copy()
        owner = np.repeat(np.arange(self.shape[0]), self.shape[1])
        pairs = np.where(owner[:, None] == owner, 0.0, matrix)
        return replace(self, linear=linear, pairs=pairs), removed


@dataclass(frozen=True)
class Answer:
    """A choice that keeps every condition, its loss, and its value as the form has it."""

    choice: tuple[int, ...] = ()
    loss: float = math.inf
    value: float = math.inf


class Answers:
    """The best answer to a problem so far, of those offered as picks of its form."""

    def __init__(self, problem: Problem, form: Form, groups: Sequence[int]) -> None:
        self.problem, self.form, self.groups = problem, form, groups
        self.best = Answer()

    def offer(self, picks: Integers) -> bool:
        """Whether an answer keeps every condition, exactly; it is kept if it is the best so far."""
        choice = expand(self.form.choice(picks), self.groups)
        if not self.problem.feasible(choice):
            return False
        value = self.form.value(picks)
        if value <= self.best.value + 2 * self.form.slip:  # else its loss is larger, too
            answer = Answer(choice, self.problem.total(choice), value)
            self.best = min(self.best, answer, key=lambda one: (one.loss, one.value))
        return True
