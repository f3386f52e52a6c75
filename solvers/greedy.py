"""Greedy searches, each in the order of moves it is published with: baselines to be beaten.

``marginal-ratio``
    From the cheapest options up, always the move that saves most loss for what it uses. Along the
    convex hull this is the linear relaxation's own walk (Sinha and Zoltners, "The Multiple-Choice
    Knapsack Problem", Operations Research 1979), rounded down.
``mptq-vit``
    From the dearest options down, a layer and a step at a time, the step that loses least for what
    it frees (Tai and Wu, "MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision
    Transformer", 2024, "Greedy MP"). The paper's abstract says that its metric weighs performance
    against compression; the metric itself is not known to us, and this is the plainest such one.
``aimet``
    From the options of least loss down, through one list of all layers' options by what each alone
    does to the network, of equals more bits first (AIMET's automatic mixed precision, phase 2). It
    stops where an accuracy is lost; here where the budgets hold. Options that cost no less than
    what a layer has are passed over, where AIMET would take them.
``nncf``
    Layers by sensitivity, and the most sensitive get the most bits (NNCF's weight compression,
    which ranks layers and keeps the lowest for 4 bits).

Several of them stop half-way: NNCF's at the first layer that does not fit, descents at the first
total that does. Here each goes on, to the next move that fits, until none is left.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.hull import hull
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.solvers.moves import (
    Integers,
    answered,
    by_ratio,
    descended,
    filled,
    left,
    linear_bound,
    losses,
    over,
    prices,
    steps_down,
    taken,
    undominated,
)

Order = Literal["marginal-ratio", "mptq-vit", "aimet", "nncf"]


@dataclass(frozen=True)
class Greedy:
    """A greedy search, with the bound of the linear relaxation where there is one sum budget.

    Within one sum budget it finds an answer wherever there is one; within several it may say
    ``UNKNOWN``.

    Attributes:
        order: Which search.
    """

    order: Order = "marginal-ratio"

    def __post_init__(self) -> None:
        """Refuse an order that is none."""
        if self.order not in get_args(Order):
            known = ", ".join(get_args(Order))
            raise ValueError(f"no greedy order is named {self.order!r}; there are {known}")

    def solve(self, problem: Problem) -> Solution:
        """The greedy choice; ``ValueError`` for stages, side constraints and interactions."""
        name = f"greedy ({self.order})"
        asked = knapsack(problem, "greedy", rows=None)
        if asked is None:
            return infeasible(name)
        search = {
            "marginal-ratio": marginal_ratio,
            "mptq-vit": mptq_vit,
            "aimet": aimet,
            "nncf": nncf,
        }[self.order]
        return answered(asked, search, linear_bound(asked), name)


def marginal_ratio(asked: Knapsack) -> Integers | None:
    """(n,) up the hulls by slope, then whatever still fits; ``None`` where the start does not."""
    edges = hull(asked.gain, prices(asked))
    room = left(asked, edges.first)
    if (room < 0).any():
        return None
    begins = np.append(True, edges.owner[1:] != edges.owner[:-1])[: len(edges.owner)]
    before = np.where(begins, edges.first[edges.owner], np.roll(edges.entry, 1))
    used = asked.usage[:, edges.owner, edges.entry] - asked.usage[:, edges.owner, before]
    order = np.argsort(-edges.slope, kind="stable")
    late = over(np.cumsum(used[:, order], axis=1), room)
    fits = order[: int(late.argmax()) if late.any() else len(late)]
    picks = edges.first.copy()
    picks[edges.owner[fits]] = edges.entry[fits]
    return filled(asked, picks)


def mptq_vit(asked: Knapsack) -> Integers | None:
    """(n,) down by the loss of a step over what it frees."""
    steps = steps_down(asked)
    return descended(asked, steps, by_ratio(asked, steps))


def aimet(asked: Knapsack) -> Integers | None:
    """(n,) down the list of all layers' options by their loss."""
    steps = steps_down(asked)
    price = prices(asked)
    to = price[steps.owner, steps.entry]
    freed = price[steps.owner, steps.start[steps.owner]] - to
    alone = losses(asked)[steps.owner, steps.entry]
    return descended(asked, steps, np.lexsort((steps.number, steps.owner, -freed, -to, alone)))


def nncf(asked: Knapsack) -> Integers | None:
    """(n,) layer by layer, the most sensitive first, the least loss that still fits."""
    order, keep = undominated(asked.gain, prices(asked))
    picks = order[:, 0].copy()
    room = left(asked, picks)
    if (room < 0).any():
        return None
    gain = np.full(keep.shape, np.iinfo(np.int64).max)
    np.put_along_axis(gain, order, np.where(keep, 0, gain), axis=1)
    gain = np.maximum(gain, asked.gain)
    rows = np.argsort(-taken(asked.gain, picks), kind="stable")
    while len(rows):
        used = asked.usage[:, rows] - asked.usage[:, rows, picks[rows]][:, :, None]
        fits = (used <= room[:, None, None]).all(axis=0)
        wanted = np.where(fits, gain[rows], np.iinfo(np.int64).max).argmin(axis=1)
        each = np.take_along_axis(used, wanted[None, :, None], axis=2)[:, :, 0]
        late = over(np.cumsum(each, axis=1), room)
        stop = int(late.argmax()) if late.any() else len(late)
        picks[rows[:stop]] = wanted[:stop]
        room = room - each[:, :stop].sum(axis=1)
        rows = rows[stop:]
    return filled(asked, picks)
