"""Questions beside the least loss: the least cost, a chain that nests, and the next best answers.

Each becomes one problem of the usual kind, or a few, so that any solver answers it, and what the
solver proves holds for the question.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from mpsearch import __version__
from mpsearch.allocation import Allocation, Infeasible
from mpsearch.choosing import chosen
from mpsearch.formats import Option
from mpsearch.nesting import chains_of, lifted, ranks, rounding
from mpsearch.pipeline import solve
from mpsearch.problem import OPTIMAL_GAP, Budget, Constraint, Problem, Solution, Status
from mpsearch.protocols import Solver
from mpsearch.tables import Cost, Table

MOST_CHAINS = 4_000  # that each layer chooses from
_SHARE = re.compile(r"(?P<of>reference\+)?(?P<share>\d+\.?\d*|\.\d+)%", re.ASCII)


def _asked(loss: Table | Problem, cost: Cost | str) -> tuple[Problem, Cost]:
    """The problem without budgets on a cost, and that cost."""
    if isinstance(loss, Table):
        if isinstance(cost, str):
            raise TypeError(f"a loss table has no costs; give the cost table, not {cost!r}")
        loss = Problem(loss, (), (cost,))
    name = cost if isinstance(cost, str) else cost.name
    known = {c.name: c for c in loss.costs}
    if name not in known:
        raise LookupError(f"no cost is named {name!r}; there are: {', '.join(known) or 'none'}")
    kept = tuple(b for b in loss.budgets if b.cost is not known[name])
    return replace(loss, budgets=kept), known[name]


def _alone(problem: Problem, what: str) -> None:
    """Refuse interactions: what one layer loses then depends on others."""
    if problem.interactions:
        raise ValueError(f"{what} takes no interactions; leave them out, or use solve")


def _picks(problem: Problem, answer: Allocation) -> list[int]:
    """The option index of every layer."""
    columns = {option: column for column, option in enumerate(problem.loss.options)}
    return [columns[option] for option in answer.values()]


def tolerance(
    loss: Table | Problem, cost: Cost | str, within: float | str, *, solver: str | Solver = "auto"
) -> Allocation:
    """The allocation of least cost whose loss stays within a limit; of equal costs, least loss.

    Other budgets, ties and side constraints hold as they are; a budget on this cost is left out.
    ``within`` is

    - a number, or its text: what the loss (``fixed`` included) may be at most;
    - ``"5%"``: that share above the loss of the best allocation, ``best + 5% of |best|``;
    - ``"reference+5%"``: that share above the unquantized network's loss, the table's reference.

    ``provenance`` holds the ``limit`` on the loss, the ``least`` cost and its ``bound``: a proven
    lower bound on the cost of every allocation within the limit, or ``None``. The allocation's own
    ``bound`` is on the loss of those that cost no more. Its status is ``OPTIMAL`` when the least
    cost is proven, and the least loss at that cost, and the loss that a share is of.

    Raises ``Infeasible`` where no loss is within the limit, ``ValueError`` for a cost that is no
    sum over layers and for interactions.
    """
    problem, table = _asked(loss, cost)
    if not isinstance(table, Table) or table.reduce != "sum":
        raise ValueError(
            f"{table.name!r} is a maximum, and the cost to make least is a sum over layers; give"
            " the maximum a budget, and use solve"
        )
    _alone(problem, "a limit on the loss")
    limit, proven = _limit(problem, within, solver)
    cheap = _cheapest(problem, table, limit, solver)
    held = replace(problem, budgets=(*problem.budgets, Budget(table, table.total(cheap.choice))))
    answer = solve(held, solver=solver)
    if answer.loss > problem.total(cheap.choice):  # by a solver that proves nothing
        first = Solution(cheap.choice, problem.total(cheap.choice), Status.FEASIBLE, answer.bound)
        answer = replace(Allocation.of(held, first), provenance=answer.provenance)
    figure = replace(answer.figures[table.name], limit=None)  # it came out, nobody set it
    told: dict[str, Any] = {"question": "tolerance", "within": within, "limit": limit}
    told |= {"cost": table.name, "least": figure.value, "bound": _cost_bound(table, cheap)}
    proven = proven and cheap.status is Status.OPTIMAL
    return replace(
        answer,
        status=answer.status if proven else Status.FEASIBLE,
        figures={**answer.figures, table.name: figure},
        provenance={**answer.provenance, **told},
    )


def _cost_bound(table: Table, cheap: Solution) -> float | None:
    """What a solver proved of the cost; a total of integers is at least the next whole number."""
    if not math.isfinite(cheap.bound):
        return None
    return math.ceil(cheap.bound) if table.exact else cheap.bound


def _limit(problem: Problem, within: float | str, solver: str | Solver) -> tuple[float, bool]:
    """What the loss may be at most, and whether that stands on a proven answer."""
    if not isinstance(within, str):
        return within, True
    match = _SHARE.fullmatch(within.strip())
    if match is None:
        try:
            return float(within), True
        except ValueError:
            raise ValueError(
                f"a loss within {within!r} is not understood; write a number, 5% (above the best"
                " allocation's loss) or reference+5% (above the unquantized network's)"
            ) from None
    if match["of"] and problem.loss.reference is None:
        raise ValueError(
            f"the loss has no unquantized reference, so {within!r} means nothing; write a number,"
            f" or {match['share']}% of the best allocation's loss"
        )
    best = None if match["of"] else solve(problem, solver=solver)
    base = Fraction(problem.loss.reference or 0) if best is None else Fraction(best.loss)
    limit = base + Fraction(match["share"]) / 100 * abs(base)
    return float(limit), best is None or best.status is Status.OPTIMAL


def _cheapest(problem: Problem, table: Table, limit: float, solver: str | Solver) -> Solution:
    """The least cost within a limit on the loss: the problem with loss and cost swapped."""
    loss = replace(problem.loss, name="loss within the limit")
    others = tuple(c for c in problem.costs if c is not table)
    turned = replace(
        problem, loss=table, budgets=(*problem.budgets, Budget(loss, limit)), costs=others
    )
    by, choice = chosen(solver, turned)
    found = by.solve(turned)
    if found.status is Status.INFEASIBLE:
        best = solve(problem, solver=solver)  # says so where the budgets leave nothing at all
        least = best.loss if best.status is Status.OPTIMAL else best.bound
        raise Infeasible(
            f"no allocation has a loss of at most {limit}: {least} is the least achievable"
            f" ({best.unit}); raise the limit, or add better options",
            {problem.loss.name: least} if math.isfinite(least) else {},
        )
    if found.status is Status.UNKNOWN:
        raise RuntimeError(f"solver {choice.name!r}: {found.status.value}")
    return found


@dataclass(frozen=True)
class Nested:
    """Allocations for growing budgets in which no layer ever loses bits.

    Attributes:
        allocations: One for each budget, smallest first. The ``bound`` of each is that of its
            budget alone; it carries no baselines, as none may take its place in the chain.
        independent: The best for each budget alone.
        price: What nesting costs at each budget: the loss above that of the independent one.
        loss: The weighted sum of the allocations' losses.
        bound: A proven lower bound on that sum for every chain.
        status: How good the chain is proven to be.
    """

    allocations: tuple[Allocation, ...]
    independent: tuple[Allocation, ...]
    price: tuple[float, ...]
    loss: float
    bound: float
    status: Status


def nested(
    loss: Table | Problem,
    cost: Cost | str,
    limits: Sequence[float | str],
    *,
    order: Sequence[Option | str] | None = None,
    weights: Sequence[float] | None = None,
    solver: str | Solver = "auto",
    most: int = MOST_CHAINS,
) -> Nested:
    """The chain of allocations of least total loss, for one artifact that is sliced to budgets.

    Where the best allocations of the single budgets nest, they are the chain, at no price.

    From each limit of ``cost`` to the next, no layer moves to an option that stands earlier in
    ``order``. By default options are ordered by stored weight bits, scales included, then by
    activation bits; options of equal bits may replace each other. Other budgets, ties and side
    constraints hold for every allocation; the problem's own budget on this cost is left out.

    Args:
        limits: Smallest first, each a number or a text that :meth:`Budget.of` reads.
        order: Every option, fewest bits first.
        weights: What each allocation's loss counts in the sum; 1 each.
        most: Most chains of options a layer may choose from: K options under T budgets make up
            to C(K + T - 1, T).

    Raises ``Infeasible`` where a limit leaves nothing, ``ValueError`` for limits that do not grow,
    more than ``most`` chains, options without bits and no ``order``, and interactions.
    """
    problem, along = _asked(loss, cost)
    _alone(problem, "nested")
    budgets = [Budget.of(along, limit) for limit in limits]
    held = [replace(problem, budgets=(*problem.budgets, budget)) for budget in budgets]
    shares = _shares([budget.limit for budget in budgets], weights)
    rank = ranks(problem.loss.options, order)
    independent = tuple(solve(each, solver=solver) for each in held)
    picks = np.array([_picks(problem, answer) for answer in independent])
    bound = math.fsum(w * a.bound for w, a in zip(shares, independent, strict=True))
    told = {"solver": independent[0].provenance["solver"], "why": "the best of each budget nest"}
    if (np.diff(rank[picks], axis=0) < 0).any():
        chains = chains_of(rank, len(held), most)
        whole = lifted(held, chains, shares)
        by, choice = chosen(solver, whole)
        found = by.solve(whole)
        if not found.choice:
            raise RuntimeError(f"solver {choice.name!r}: {Status.UNKNOWN.value}")
        picks, bound = chains[np.asarray(found.choice)].T, max(bound, found.bound)
        told = choice.provenance(found.solver)
    told = {"mpsearch": __version__, "question": "nested", **told}
    return _nested(held, picks.tolist(), shares, independent, bound - rounding(held, shares), told)


def _nested(
    held: Sequence[Problem],
    picks: Sequence[Sequence[int]],
    shares: Sequence[float],
    independent: tuple[Allocation, ...],
    bound: float,
    told: Mapping[str, Any],
) -> Nested:
    """The chain with names, and what it is worth."""
    allocations = []
    for problem, choice, alone in zip(held, picks, independent, strict=True):
        loss = problem.total(choice)
        least = min(alone.bound, loss)
        placed = Solution(tuple(choice), loss, problem.status(loss, least), least)
        allocations.append(replace(Allocation.of(problem, placed), provenance=told))
    total = math.fsum(w * a.loss for w, a in zip(shares, allocations, strict=True))
    bound = min(bound, total)
    closed = total - bound <= OPTIMAL_GAP * sum(shares) * held[0].span
    price = tuple(a.loss - i.loss for a, i in zip(allocations, independent, strict=True))
    status = Status.OPTIMAL if closed else Status.FEASIBLE
    return Nested(tuple(allocations), independent, price, total, bound, status)


def _shares(limits: Sequence[float], weights: Sequence[float] | None) -> tuple[float, ...]:
    if not limits or any(a >= b for a, b in pairwise(limits)):
        raise ValueError(
            f"limits grow from one to the next, got {limits}; write them smallest first"
        )
    shares = (1,) * len(limits) if weights is None else tuple(weights)
    if len(shares) != len(limits) or not all(0 < share < math.inf for share in shares):
        raise ValueError(
            f"weights are {len(limits)} numbers above zero, one a limit; got {list(shares)}"
        )
    return shares


def top_k(
    problem: Problem, k: int, apart: int = 1, *, solver: str | Solver = "auto"
) -> tuple[Allocation, ...]:
    """The k best allocations that differ pairwise in at least ``apart`` layers, best first.

    Each is the best given those before it, with its own bound and status; a real run may choose
    between them. There are fewer where no more are so far apart. Tied layers count one by one.
    Raises ``Infeasible`` where there is none at all.
    """
    rows = len(problem.loss.layers)
    if k < 1 or not 1 <= apart <= rows:
        raise ValueError(
            f"got the {k} best, apart in {apart} layers; ask for 1 or more, apart in 1 to {rows}"
        )
    found: list[Allocation] = []
    while len(found) < k:
        try:
            answer = solve(problem, solver=solver)
        except Infeasible:
            if not found:
                raise
            break
        told = {"question": "top_k", "rank": len(found) + 1, "apart": apart}
        found.append(replace(answer, provenance={**answer.provenance, **told}))
        taken = tuple((row, column, 1) for row, column in enumerate(_picks(problem, answer)))
        near = Constraint(f"apart from answer {len(found)}", taken, most=rows - apart)
        problem = replace(problem, constraints=(*problem.constraints, near))
    return tuple(sorted(found, key=lambda answer: answer.loss))
