"""Water-filling: every layer's rate where one more bit saves the same everywhere.

A layer of ``w`` weights loses ``w a f^-b`` at ``b`` bits a weight, where ``f`` is how much a bit
takes off. For a mean of R bits the best real-valued rates have one level::

    b_i = clip(log_f(a_i ln f_i / level), low_i, high_i)        sum w_i b_i = R sum w_i

This is reverse water-filling (Cover and Thomas, "Elements of Information Theory", 2nd edition,
section 10.3.3) with clipped rates. With one ``f`` and no rate clipped it is BAQ's closed form,
``b_i = R + log_f(a_i / GM(a))`` (Zhang and others, "BAQ: Efficient Bit Allocation Quantization for
Large Language Models", 2025). ``f`` is measured, not the 4 of theory: real curves fall by 2 to 5.

The least loss of fitted curves bounds nothing in the table they were fitted to; the bound of a
:class:`Waterfill` solution is that of the table's linear relaxation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.knapsack import Knapsack, knapsack
from mpsearch.solvers.moves import (
    Integers,
    answered,
    by_ratio,
    descended,
    linear_bound,
    losses,
    steps_down,
    undominated,
)
from mpsearch.tables import Floats, Mask


@dataclass(frozen=True, eq=False)
class Filling:
    """The best real-valued rates.

    Attributes:
        rate: (n,) bits a weight.
        level: What a little more rate saves for each weight, the same wherever no rate is clipped;
            0 where every rate is as high as it may be, or nothing is lost.
        loss: The total ``sum w a f^-b``.
    """

    rate: Floats
    level: float
    loss: float


def waterfill(
    amplitude: ArrayLike,
    weight: ArrayLike,
    rate: float,
    *,
    decay: ArrayLike,
    low: ArrayLike = 0.0,
    high: ArrayLike = np.inf,
) -> Filling:
    """The rates of least total loss whose weighted mean is ``rate``.

    A component that loses nothing keeps its least rate, also where that leaves the mean below.

    Args:
        amplitude: (n,) what each weight loses at rate 0; at least 0.
        weight: (n,) how many weights each has; above 0.
        rate: Mean bits a weight, between the means of ``low`` and ``high``.
        decay: (n,) or one for all: how much one bit takes off; above 1.
        low: (n,) or one for all: the least rate.
        high: (n,) or one for all: the greatest rate.

    Raises:
        ValueError: The numbers are none of these, or no rates have that mean.
    """
    a, w, f, least, most = (
        np.array(x, np.float64) for x in np.broadcast_arrays(amplitude, weight, decay, low, high)
    )
    for what, bad in (
        ("amplitudes are finite and at least 0", ~(np.isfinite(a) & (a >= 0))),
        ("weights are finite and above 0", ~(np.isfinite(w) & (w > 0))),
        ("a decay is finite and above 1", ~(np.isfinite(f) & (f > 1))),
        ("low is finite and at most high", ~(np.isfinite(least) & (least <= most))),
    ):
        if bad.any():
            raise ValueError(f"{what}; component {int(bad.argmax())} is not")
    total = rate * w.sum()
    if not (w * least).sum() * (1 - 1e-12) <= total <= (w * most).sum() * (1 + 1e-12):
        raise ValueError(f"a mean rate of {rate} lies outside low and high; give one between them")
    with np.errstate(divide="ignore"):
        rates, log_level = filling(np.log(a), np.log(f), w, total, least, most)
    lost = w * a * np.exp(-np.log(f) * rates)
    return Filling(rates, float(np.exp(log_level)), float(lost.sum()))


def filling(
    log_amplitude: Floats, steep: Floats, weight: Floats, total: float, low: Floats, high: Floats
) -> tuple[Floats, float]:
    """(n,) rates that use ``total``, and the level, from logarithms of amplitude and decay.

    What is used falls as the logarithm of the level rises, in straight pieces between the levels
    where a rate meets a limit; on the right piece the level has a closed form.
    """
    with np.errstate(divide="ignore"):
        peak = log_amplitude + np.log(steep)
    live = np.isfinite(peak) & (low < high)
    rates = low.copy()
    total -= float((weight * low)[~live].sum())
    p, s, w, least, most = (x[live] for x in (peak, steep, weight, low, high))
    if not live.any() or total >= float((w * most).sum()):
        rates[live] = most
        return rates, -np.inf
    ends = np.isfinite(most)
    turns = np.concatenate([p - s * least, (p - s * most)[ends]])
    order = np.argsort(-turns, kind="stable")
    turns = turns[order]
    slope = np.cumsum(np.concatenate([w / s, -(w / s)[ends]])[order])
    used = float((w * least).sum()) + np.append(0.0, np.cumsum(-slope[:-1] * np.diff(turns)))
    piece = max(int(np.searchsorted(used, total)) - 1, 0)
    at = turns[piece] - max(total - used[piece], 0.0) / slope[piece]
    wanted = (p - at) / s
    inside = (wanted > least) & (wanted < most)
    if inside.any():  # exactly, not by what was added up along the way
        rest = total - float((w * np.clip(wanted, least, most))[~inside].sum())
        at = ((w * p / s)[inside].sum() - rest) / (w / s)[inside].sum()
    rates[live] = np.clip((p - at) / s, least, most)
    return rates, float(at)


def baq(loss: ArrayLike, rate: float, *, decay: float) -> tuple[Floats, Integers]:
    """BAQ's closed form: (n,) rates, and (n,) whole numbers of levels, at least 1.

    ``loss`` is what each column loses at ``rate`` bits. The mean of ``log2(levels)`` is only near
    the rate. The published code has a decay of ``2^1.95`` where the paper has 4; here it is asked
    for.

    Raises:
        ValueError: A loss is not above 0, or the decay not above 1.
    """
    lost = np.asarray(loss, np.float64)
    if not (np.isfinite(lost) & (lost > 0)).all() or not 1 < decay < np.inf:
        raise ValueError("losses are finite and above 0, and a decay is above 1")
    logs = np.log(lost)
    rates = rate + (logs - logs.mean()) / np.log(decay)
    return rates, np.rint(np.maximum(2.0**rates, 1.0)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Curves:
    """Fitted curves: a layer loses ``exp(log_amplitude - steep b)`` at ``b`` bits a weight.

    Attributes:
        log_amplitude: (n,) minus infinity where a layer loses nothing.
        steep: (n,) the natural logarithm of the decay; above 0.
        own: (n,) where it is the layer's own, not the shared one.
    """

    log_amplitude: Floats
    steep: Floats
    own: Mask


def fitted(loss: Floats, rate: Floats, weight: Floats, counts: Mask | None = None) -> Curves | None:
    """Least squares of log loss against rate, layer by layer.

    A layer whose losses do not fall, or that has a single rate, gets the decay shared by all,
    fitted with each layer's weight and own height. ``None`` where that one does not fall either.

    Args:
        loss: (n, K); only those above 0 count.
        rate: (n, K) bits a weight.
        weight: (n,) how many weights each layer has.
        counts: (n, K) which losses count; by default all.
    """
    valid = (loss > 0) if counts is None else (loss > 0) & counts
    number = np.maximum(valid.sum(axis=1), 1)
    logs = np.where(valid, np.log(np.where(valid, loss, 1.0)), 0.0)
    rates = np.where(valid, rate, 0.0)
    mean_log, mean_rate = logs.sum(axis=1) / number, rates.sum(axis=1) / number
    off = np.where(valid, rates - mean_rate[:, None], 0.0)
    joint = (off * (logs - mean_log[:, None])).sum(axis=1)
    spread = (off * off).sum(axis=1)
    shared = -float((weight * joint).sum()) / max(float((weight * spread).sum()), 1e-300)
    own = (spread > 0) & (joint < 0)
    if not (own.any() or shared > 0):
        return None
    steep = np.where(own, -joint / np.where(own, spread, 1.0), max(shared, 0.0))
    if shared <= 0:  # those that fall are all there is to go by
        steep = np.where(own, steep, float((weight * steep)[own].sum() / weight[own].sum()))
    some = valid.any(axis=1)
    return Curves(np.where(some, mean_log + steep * mean_rate, -np.inf), steep, own)


@dataclass(frozen=True)
class Waterfill:
    """Water-filling of curves fitted to the table, rounded to options and mended by moves.

    Each layer's rate is its cost above its cheapest option, as a share of what its options span.
    The nearest options are taken; where they break the budget, steps go down by what they lose for
    what they free, and room that is left is used by the moves that save most.
    """

    def solve(self, problem: Problem) -> Solution:
        """A choice within one sum budget, with the bound of the table's linear relaxation."""
        asked = knapsack(problem, "waterfill")
        if asked is None:
            return infeasible("waterfill")
        return answered(asked, rounded, linear_bound(asked), "waterfill")


def rounded(asked: Knapsack) -> Integers | None:
    """(n,) the entries nearest to the filling, mended."""
    usage = asked.usage[0] if len(asked.usage) else np.zeros_like(asked.gain)
    order, sorted_keep = undominated(asked.gain, usage)
    keep = np.zeros_like(sorted_keep)
    np.put_along_axis(keep, order, sorted_keep, axis=1)
    wanted = real_valued(asked, usage, keep)
    far = np.where(keep, np.abs(usage - wanted[:, None]), np.inf)
    steps = steps_down(asked, far.argmin(axis=1))
    return descended(asked, steps, by_ratio(asked, steps))


def real_valued(asked: Knapsack, usage: Integers, keep: Mask) -> Floats:
    """(n,) what each class would use if its options were a curve; nothing where none falls."""
    span = np.where(keep, usage, 0).max(axis=1).astype(np.float64)
    wide = span > 0
    wanted = np.zeros(len(span))
    if not wide.any():
        return wanted
    weight = span[wide]
    curves = fitted(losses(asked)[wide], usage[wide] / weight[:, None], weight, keep[wide])
    if curves is not None:
        ends = np.zeros_like(weight), np.ones_like(weight)
        room = float(min(asked.room[0], int(span.sum())))
        # A curve is of a layer's loss; an amplitude is of one weight's.
        height = curves.log_amplitude - np.log(weight)
        wanted[wide] = weight * filling(height, curves.steep, weight, room, *ends)[0]
    return wanted
