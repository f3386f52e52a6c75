"""Simulated annealing by moves of two options at once, then descent to where none of them helps.

A move changes the options of two classes, so that one can pay for the other within the budgets; it
is taken where it adds less than an exponential variate times the temperature (Kirkpatrick, Gelatt
and Vecchi, "Optimization by Simulated Annealing", Science 1983, accept with probability
exp(-d / T)). What every option would lose beside the others is kept up to date, so that a move
costs one row of the matrix. All chains move in step: numpy does one move of each at a time.
"""

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.form import Form
from mpsearch.tables import Floats, Mask

Integers = NDArray[np.int64]
BLOCK = 256  # moves drawn at a time
COLDEST = 0.03  # of the first temperature
SPREAD = (0.15, 0.6)  # first temperatures of the chains, in what another option typically changes


def searched(form: Form, start: Integers, *, chains: int, moves: int, seed: int) -> list[Integers]:
    """Answers that no change of two classes betters, best first, of so many moves an option."""
    count = moves * int(form.allowed.sum())
    found = np.unique(annealed(form, start, chains=chains, moves=count, seed=seed), axis=0)
    ends = np.unique([descended(form, picks) for picks in found], axis=0)
    return sorted(ends, key=form.value)


def annealed(form: Form, start: Integers, *, chains: int, moves: int, seed: int) -> Integers:
    """(chains, n) the best answer of every chain, each begun at a feasible one."""
    state = _Chains(form, start, chains)
    rng = np.random.default_rng(seed)
    first = _typical(form, start) * np.geomspace(*SPREAD, chains)
    n, k = form.shape
    for at in range(0, moves, BLOCK):
        shape = (min(BLOCK, moves - at), chains)
        one = rng.integers(n, size=shape)
        two = (one + rng.integers(1, n, size=shape)) % n
        options = rng.integers(k, size=(2, *shape))
        ladder = COLDEST ** ((at + np.arange(len(one))) / moves)
        heat = rng.exponential(size=shape) * first * ladder[:, None]
        for step in range(len(one)):
            state.move(one[step], two[step], options[0, step], options[1, step], heat[step])
    return state.best


def _typical(form: Form, picks: Integers) -> float:
    """How much taking another option in one class matters, at the median."""
    alone = form.linear + 2 * form.pairs[:, picks].sum(axis=1)
    other = np.abs(alone - np.repeat(alone[picks], form.shape[1]))[form.allowed.ravel()]
    return float(np.median(other[other > 0])) if other.any() else 0.0


class _Chains:
    """Where each chain is: its answer, what every option would lose there, and what it uses."""

    def __init__(self, form: Form, start: Integers, chains: int) -> None:
        self.form, self.matrix = form, 2 * form.pairs
        self.usage, self.room = form.usage.T.copy(), form.room
        self.picks = np.tile(start, (chains, 1))
        self.alone = np.tile(form.linear + self.matrix[:, start].sum(axis=1), (chains, 1))
        self.used = np.tile(self.usage[start].sum(axis=0), (chains, 1))
        self.value = np.zeros(chains)  # above the start's
        self.least, self.best = self.value.copy(), self.picks.copy()
        self.rows = np.arange(chains)

    def move(
        self, one: Integers, two: Integers, first: Integers, second: Integers, heat: Floats
    ) -> None:
        """Every chain moves two classes to these options, where it may and it helps enough."""
        rows, matrix, k = self.rows, self.matrix, self.form.shape[1]
        a, b, c, d = self.picks[rows, one], self.picks[rows, two], one * k + first, two * k + second
        raised = self.alone[rows, c] - self.alone[rows, a]
        raised += self.alone[rows, d] - self.alone[rows, b]
        raised += matrix[c, d] - matrix[c, b] - matrix[a, d] + matrix[a, b]
        more = self.usage[c] - self.usage[a] + self.usage[d] - self.usage[b]
        taken = (raised < heat) & ((self.used + more) <= self.room).all(axis=1)
        taken &= self.form.allowed.flat[c] & self.form.allowed.flat[d]
        chosen = np.flatnonzero(taken)
        if not len(chosen):
            return
        a, b, c, d = a[chosen], b[chosen], c[chosen], d[chosen]
        self.picks[chosen, one[chosen]], self.picks[chosen, two[chosen]] = c, d
        self.alone[chosen] += matrix[c] - matrix[a] + matrix[d] - matrix[b]
        self.used[chosen] += more[chosen]
        self.value[chosen] += raised[chosen]
        better = chosen[self.value[chosen] < self.least[chosen]]
        self.least[better], self.best[better] = self.value[better], self.picks[better]


def descended(form: Form, picks: Integers) -> Integers:
    """The answer reached by the best change of one or two classes, again and again."""
    owner = np.repeat(np.arange(form.shape[0]), form.shape[1])
    allowed = form.allowed.ravel()
    closed: Mask = (owner[:, None] == owner) | ~(allowed[:, None] & allowed)
    for _ in range(10 * len(owner)):
        raised = _raised(form, picks, owner)
        raised[closed] = np.inf
        for usage, room in zip(form.usage, form.room.tolist(), strict=True):
            more = usage - usage[picks][owner]
            raised[more[:, None] + more > room - usage[picks].sum()] = np.inf
        best = int(raised.argmin())
        if not raised.flat[best] < -form.slip:
            return picks
        picks = picks.copy()
        for place in divmod(best, len(owner)):
            picks[owner[place]] = place
    return picks


def _raised(form: Form, picks: Integers, owner: Integers) -> Floats:
    """(n K, n K) what taking two options of two classes would add."""
    here = picks[owner]
    alone = form.linear + 2 * form.pairs[:, picks].sum(axis=1)
    alone = alone - alone[here]
    half = form.pairs - form.pairs[:, here]
    return np.asarray(alone[:, None] + alone + 2 * (half - half[here]))
