"""Convex relaxations of a quadratic form over one option of every class, and the bounds they prove.

Products of two options of one class are zero and squares are the options themselves, so that a
block of a class may be added to the matrix where its diagonal is taken off the linear part
(Billionnet, Elloumi and Plateau, "Improving the performance of standard solvers for quadratic 0-1
programs by a tight convex reformulation", Discrete Applied Mathematics 2009). The blocks that make
the matrix convex and raise the bound most solve a semidefinite program: at given y in the simplices
with covariances V_i = diag(y_i) - y_i y_i', a barrier mu log det has its best blocks where those
of mu (inverse of the matrix) are V_i, and y is the relaxation's answer at those blocks; both are
gone towards in turn while mu falls.

Whatever y is, a convex function is nowhere below its tangent there, and the least of the tangent,
budgets priced by multipliers, is a minimum per class. So a bound holds however early y is stopped.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpsearch.solvers.form import Form
from mpsearch.solvers.program import ULP
from mpsearch.tables import Floats, Mask

FIRST, LAST, FALL = 1.0, 1e-6, 0.3  # barriers, of the shift that makes all convex, over classes
ROUNDS, STEPS = 200, 3  # most descents of y, and steps of the blocks before each
ROOT, CHILD = 60, 40  # descent steps
LITTLE = 1e-2  # of what a bound lacks: where a round gains less, the barrier falls
EVERY = 8  # descent steps between those of the multipliers
ROUGH = 1e-3  # added to covariances, so that an option given up may come back


@dataclass(frozen=True, eq=False)
class Points:
    """Where B relaxations are: shares of options, multipliers of rows.

    Attributes:
        y: (B, n K) in the simplices.
        price: (B, R) at least zero.
    """

    y: Floats
    price: Floats


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A convex function that is the form where every class takes one option: y'Hy + linear.y.

    Attributes:
        form: The form it is of.
        blocks: (n, K, K) what was added to the matrix.
        matrix: (n K, n K) with the blocks added, convex along the simplices.
    """

    form: Form
    blocks: Floats
    matrix: Floats

    @cached_property
    def linear(self) -> Floats:
        """(n K,) the linear part, with the diagonal of the blocks taken off."""
        return np.asarray(self.form.linear - np.einsum("nkk->nk", self.blocks).ravel())

    @cached_property
    def rounding(self) -> float:
        """How far a bound may be off for rounding, prices apart."""
        size = float(np.abs(self.matrix).sum() + np.abs(self.linear).sum())
        return ULP * 4 * (len(self.linear) + 16) * size

    @cached_property
    def _scale(self) -> tuple[Floats, Floats]:
        """(n K,) step sizes of options, and (R,) what a row's excess adds to its price."""
        n, k = self.form.shape
        curve = self.matrix.diagonal().reshape(n, k).max(axis=1)
        wide = np.where(self.form.allowed, self.linear.reshape(n, k), np.nan)
        curve = np.maximum(curve, (np.nanmax(wide, axis=1) - np.nanmin(wide, axis=1)) / 4)
        curve = np.maximum(curve, 1e-9 * (float(curve.max()) or 1.0))
        root = np.repeat(np.sqrt(curve), k)
        largest = _largest(self.matrix / root / root[:, None])
        usage = self.form.usage / root
        weight = 1.0 / np.maximum((usage**2).sum(axis=1), 1e-300)
        step = 1.0 / (2 * largest + len(weight)) / root**2
        return step, weight

    def descended(self, points: Points, allowed: Mask, steps: int) -> Points:
        """The points after so many steps of accelerated projected descent on the relaxations.

        Rows are kept by an augmented Lagrangian; (B, n, K) ``allowed`` says what each may share.
        """
        step, weight = self._scale
        usage, room = self.form.usage, self.form.room
        y = projected(points.y, allowed)
        price, ahead, pace = points.price, y, np.ones(len(y))
        for number in range(1, steps + 1):
            excess = ahead @ usage.T - room
            pull = np.maximum(price + weight * excess, 0.0)
            slope = 2 * (ahead @ self.matrix) + self.linear + pull @ usage
            after = projected(ahead - step * slope, allowed)
            back = ((ahead - after) * (after - y)).sum(axis=1) > 0
            pace = np.where(back, 1.0, pace)
            faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
            ahead = after + ((pace - 1) / faster)[:, None] * (after - y)
            y, pace = after, faster
            if number % EVERY == 0:
                price = np.maximum(price + weight * (y @ usage.T - room), 0.0)
        return Points(y, price)

    def bounds(self, points: Points, allowed: Mask) -> tuple[Floats, Floats]:
        """(B,) proven bounds on allowed answers' values; (B, n, K) what an option adds to them."""
        y, usage, room = points.y, self.form.usage, self.form.room
        field = y @ self.matrix
        price = points.price
        tangent = (2 * field + self.linear + price @ usage).reshape(allowed.shape)
        tangent = np.where(allowed, tangent, np.inf)
        least = tangent.min(axis=2)
        priced = price.sum(axis=1) * (1 + np.abs(room).sum() + np.abs(usage).sum())
        slack = self.rounding + ULP * 4 * (y.shape[1] + 16) * priced
        bound = least.sum(axis=1) - (price * room).sum(axis=1) - (field * y).sum(axis=1) - slack
        return bound, tangent - least[:, :, None]

    def lost(self, y: Floats) -> Floats:
        """(B, n) how much of the value each class's share of several options hides."""
        shares = y.reshape(len(y), *self.form.shape)
        spread = np.einsum("nkk,bnk->bn", self.blocks, shares)
        return np.asarray(spread - np.einsum("bnk,nkj,bnj->bn", shares, self.blocks, shares))


def _largest(matrix: Floats) -> float:
    """About the largest eigenvalue: steps are sized by it, no proof rests on it."""
    vector = np.ones(len(matrix)) + np.arange(len(matrix)) % 3
    size = 1.0
    for _ in range(30):
        vector = matrix @ vector
        size = float(np.linalg.norm(vector))
        if size == 0:
            return 1.0
        vector /= size
    return 1.1 * size


def projected(y: Floats, allowed: Mask) -> Floats:
    """(B, n K) the nearest points in the simplices of the (B, n, K) allowed options."""
    grid = np.where(allowed, y.reshape(allowed.shape), -np.inf)
    falling = -np.sort(-grid, axis=2)
    level = (np.cumsum(falling, axis=2) - 1.0) / np.arange(1, grid.shape[2] + 1)
    last = (falling > level).sum(axis=2, keepdims=True) - 1
    return np.maximum(grid - np.take_along_axis(level, last, axis=2), 0.0).reshape(y.shape)


def start(form: Form, count: int = 1) -> Points:
    """The middle of the simplices, nothing priced."""
    y = (form.allowed / form.allowed.sum(axis=1, keepdims=True)).ravel()
    return Points(np.tile(y, (count, 1)), np.zeros((count, len(form.usage))))


class _Tangent:
    """Directions along the simplices: K - 1 of each class, some of them of length zero."""

    def __init__(self, form: Form) -> None:
        n, k = form.shape
        self.basis = np.zeros((n, k, max(k - 1, 1)))
        for i, row in enumerate(form.allowed):
            here = np.flatnonzero(row)
            if len(here) > 1:
                flat = np.linalg.svd(np.ones((1, len(here))))[2][1:].T
                self.basis[i, here, : len(here) - 1] = flat
        self.real = np.abs(self.basis).max(axis=1) > 0
        self.places = np.arange(self.real.size).reshape(self.real.shape)

    def of(self, matrix: Floats) -> Floats:
        """The matrix in these directions."""
        n, k, m = self.basis.shape
        half = np.einsum("xnk,nka->xna", matrix.reshape(n * k, n, k), self.basis)
        full = np.einsum("nka,nkx->nax", self.basis, half.reshape(n, k, n * m))
        return np.asarray(full.reshape(n * m, n * m))

    def inside(self, blocks: Floats) -> Floats:
        """(n, m, m) blocks of classes in these directions."""
        return np.asarray(self.basis.transpose(0, 2, 1) @ blocks @ self.basis)

    def outside(self, blocks: Floats) -> Floats:
        """(n, K, K) blocks given in these directions."""
        return np.asarray(self.basis @ blocks @ self.basis.transpose(0, 2, 1))

    def added(self, matrix: Floats, blocks: Floats) -> Floats:
        """A matrix in these directions with blocks added."""
        both = matrix.copy()
        both[self.places[:, :, None], self.places[:, None, :]] += blocks
        return both


def relaxed(form: Form, enough: float) -> tuple[Relaxation, Points, float]:
    """The relaxation of most bound, its answer, and its proven bound.

    Ends early where the bound is ``enough``, or where a lower barrier hardly brings it nearer.
    """
    flat = _Tangent(form)
    n, m = flat.real.shape
    bare = flat.of(form.pairs)
    size = float(np.linalg.norm(bare, 2)) or 1.0
    shift = max(1.01 * -float(np.linalg.eigvalsh(bare)[0]), 1e-6 * size)
    blocks = shift * np.tile(np.eye(m), (n, 1, 1))
    points, allowed = start(form), form.allowed[None]
    best = (_relaxation(form, flat, bare, blocks), points, -np.inf)
    barrier = FIRST * shift / n
    lowest = LAST * shift / n
    for _ in range(ROUNDS):
        blocks = _stepped(flat, bare, blocks, _covariances(flat, form, points.y) / barrier)
        found = _relaxation(form, flat, bare, blocks)
        after = found.descended(points, allowed, ROOT)
        bound = float(found.bounds(after, allowed)[0][0])
        points = Points((points.y + after.y) / 2, after.price)
        if not bound - best[2] > LITTLE * (enough - best[2]):
            barrier *= FALL
        best = max(best, (found, after, bound), key=lambda one: one[2])
        if best[2] >= enough or barrier < lowest:
            break
    return best


def _relaxation(form: Form, flat: _Tangent, bare: Floats, blocks: Floats) -> Relaxation:
    """The relaxation with these blocks, raised a little where rounding may hide a concave turn."""
    made = flat.added(bare, blocks)
    low = float(np.linalg.eigvalsh(made)[0])
    margin = 32 * ULP * len(made) * (float(np.linalg.norm(made)) + 1e-300)
    if low < margin:
        blocks = blocks + (margin - low) * np.eye(blocks.shape[1])
    outer = flat.outside(blocks)
    n, k = form.shape
    matrix = form.pairs.copy()
    places = np.arange(n * k).reshape(n, k)
    matrix[places[:, :, None], places[:, None, :]] += outer
    return Relaxation(form, outer, matrix)


def _covariances(flat: _Tangent, form: Form, y: Floats) -> Floats:
    """(n, m, m) how the options of each class vary together where y are their chances."""
    shares = y.reshape(form.shape)
    spread = shares[:, :, None] * np.eye(form.shape[1]) - shares[:, :, None] * shares[:, None, :]
    return flat.inside(spread) + ROUGH * np.eye(flat.real.shape[1])


def _stepped(flat: _Tangent, bare: Floats, blocks: Floats, wanted: Floats) -> Floats:
    """Blocks moved towards those whose inverse matrix has the wanted blocks, kept convex.

    Those are where log det less <wanted, blocks> is largest; each step raises it.
    """
    aim = np.linalg.inv(wanted)
    real = flat.real[:, :, None] & flat.real[:, None, :]
    share, height = 1.0, _height(flat, bare, blocks, wanted)
    for _ in range(STEPS):
        inverse = np.linalg.inv(flat.added(bare, blocks))
        inner = inverse[flat.places[:, :, None], flat.places[:, None, :]]
        change = np.where(real, aim - np.linalg.inv(inner), 0.0)
        for _ in range(8):
            after = _height(flat, bare, blocks + share * change, wanted)
            if after > height:
                blocks, height, share = blocks + share * change, after, min(2 * share, 1.0)
                break
            share /= 2
    return blocks


def _height(flat: _Tangent, bare: Floats, blocks: Floats, wanted: Floats) -> float:
    """Log det of the matrix with the blocks less <wanted, blocks>; -inf where it is not convex."""
    try:
        root = np.linalg.cholesky(flat.added(bare, blocks))
    except np.linalg.LinAlgError:
        return -math.inf
    return float(2 * np.log(root.diagonal()).sum() - (wanted * blocks).sum())
