"""From a choice that breaks budgets to one that keeps them, and to one that no small move betters.

The greedy repair takes the entry that raises the Lagrangian bound least for what it takes off the
excess (Toyoda 1975 weighs rows so); then the best single move or pair of moves within what room is
left, again and again. A pair can only gain where its entries raise the bound by less than
``y.slack``, so few need be looked at.
"""

import numpy as np
from numpy.typing import NDArray

from mpsearch.solvers.dual import Classes
from mpsearch.tables import Floats, Numbers

Integers = NDArray[np.int64]
PAIRED = 320  # entries of which pairs are tried
STEPS = 200  # moves at most


def repaired(classes: Classes, picks: Integers, raised: Floats) -> Integers | None:
    """A choice within every room from one near it; ``None`` where no single entry helps."""
    picks, rows = picks.copy(), np.arange(len(picks))
    width = classes.width
    for _ in range(len(picks) + STEPS):
        over = (classes.used(picks) - classes.room) / width
        excess = float(np.maximum(over, 0.0).sum())
        if excess == 0.0 or classes.fits(picks):
            return picks if classes.fits(picks) else None
        left = np.zeros(classes.gain.shape)
        for usage, wide, much in zip(classes.usage, width, over, strict=True):
            left += np.maximum((usage - usage[rows, picks][:, None]) / wide + much, 0.0)
        taken = excess - left
        helps = taken > 1e-15
        price = raised - raised[rows, picks][:, None]
        # Of entries that come free the one that takes most off.
        ratio = np.where(price > 0, price / np.where(helps, taken, 1.0), -taken)
        best = int(np.where(helps, ratio, np.inf).argmin())
        row, entry = divmod(best, classes.gain.shape[1])
        if not helps[row, entry]:
            return None
        picks[row] = entry
    return None


def improved(classes: Classes, picks: Integers, y: Floats, raised: Floats) -> Integers:
    """A choice within every room that no move of one or two classes betters, or nearly so."""
    picks, rows = picks.copy(), np.arange(len(picks))
    for _ in range(STEPS):
        slack = classes.room - classes.used(picks)
        price = raised - raised[rows, picks][:, None]
        price[rows, picks] = np.inf
        least = min(float(price.min(initial=np.inf)), 0.0)
        near = np.flatnonzero(price < float(y @ slack) - least)
        if len(near) > PAIRED:
            near = near[np.argpartition(price.ravel()[near], PAIRED)[:PAIRED]]
        owner, entry = np.divmod(near, classes.gain.shape[1])
        gain = classes.gain[owner, entry] - classes.gain[owner, picks[owner]]
        usage = classes.usage[:, owner, entry] - classes.usage[:, owner, picks[owner]]
        moves = _best_moves(owner, gain, usage, slack)
        if not moves:
            return picks
        for move in moves:
            picks[owner[move]] = entry[move]
    return picks


def _best_moves(owner: Integers, gain: Numbers, usage: Numbers, slack: Numbers) -> tuple[int, ...]:
    """The one or two moves that together gain most within the slack; none if none gains."""
    if not len(owner):
        return ()
    alone = np.where((usage <= slack[:, None]).all(axis=0), gain, 0)
    both = gain[:, None] + gain
    fits = owner[:, None] != owner
    for row, left in zip(usage, slack, strict=True):
        fits &= row[:, None] + row <= left
    both = np.where(fits, both, 0)
    one, two = int(alone.argmin()), divmod(int(both.argmin()), len(owner))
    if min(alone[one], both[two]) >= 0:
        return ()
    return two if both[two] < alone[one] else (one,)
