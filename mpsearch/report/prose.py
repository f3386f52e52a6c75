"""The answer in sentences: what it costs, what it loses, and how well that is proven."""

import math

from mpsearch.allocation import Allocation
from mpsearch.problem import Status
from mpsearch.report.data import Report, Run
from mpsearch.report.scales import doubted, written
from mpsearch.report.text import of_loss, readable

ROUNDING = 1e-12  # of the loss


def answer(report: Report) -> str:
    """What the allocation costs and what it loses."""
    mine, count = report.mine, len(report.allocation)
    name = f"This allocation of {count} layer{'' if count == 1 else 's'}"
    if math.isnan(mine.cost):
        costs = f"{name} has"
    else:
        within = f" of {readable(report.limit, report.unit)} allowed" if report.limit else ""
        costs = f"{name} brings {report.cost} to {readable(mine.cost, report.unit)}{within}, at"
    if mine.measured is None:
        return f"{costs} a predicted loss of {lost(mine, report.allocation.unit)}."
    also = "" if mine.predicted is None else f" ({written(mine.predicted)} was predicted)"
    return (
        f"{costs} a loss of {lost(mine, report.allocation.unit)},"
        f" measured on data the search did not see{also}."
    )


def lost(run: Run, unit: str) -> str:
    """A run's loss with its unit and name: ``0.0131 ± 0.0009 nats (KL)``."""
    name, counted = of_loss(unit)
    told = f"({name})" if name not in ("", "loss") else ""
    return " ".join(part for part in (loss_of(run), counted, told) if part)


def loss_of(run: Run) -> str:
    """The measured loss and its standard error, or the predicted loss."""
    if run.loss is None:
        return "unknown"
    return doubted(run.loss, None if run.measured is None else run.stderr)


def comparison(report: Report) -> str:
    """How the best single option within the same budget does."""
    rival, mine = report.rival, report.mine
    if rival is None:
        return "" if report.limit is None else "No single option everywhere is within the budget."
    if rival.name == f"uniform {_everywhere(report.allocation)}":
        return f"It is {rival.name} itself: no mix is known to be better within the budget."
    held = "within that budget" if report.limit is not None else "at no more cost"
    both = rival.measured is not None and mine.measured is not None
    theirs, ours = (rival.measured, mine.measured) if both else (rival.predicted, mine.predicted)
    if theirs is None or ours is None:
        return ""
    verb = "loses" if both else "is predicted to lose"
    loss = loss_of(rival) if both else written(theirs)
    name = rival.name[:1].upper() + rival.name[1:]
    return f"{name}, the best single option {held}, {verb} {loss}{_times(theirs, ours)}."


def _everywhere(allocation: Allocation) -> str:
    """The option of every layer, where all have the same."""
    found = {str(option) for option in allocation.values()}
    return found.pop() if len(found) == 1 else ""


def _times(theirs: float, ours: float) -> str:
    if not (theirs > 0 and ours > 0):
        return f": a difference of {written(theirs - ours)}"
    ratio = theirs / ours
    if round(ratio, 2) == 1:
        return ": the same"
    return f": {ratio:.2f} times as much" if ratio < 9.95 else f": {written(ratio)} times as much"


def badge(allocation: Allocation) -> str:
    """The proof in two words."""
    if "guard" in allocation.provenance:
        return "guarded"
    if allocation.status is Status.OPTIMAL:
        return "proven optimal"
    return "bounded" if math.isfinite(allocation.bound) else "not proven"


def proof(allocation: Allocation) -> str:
    """What is proven of the predicted loss."""
    loss, bound = written(allocation.loss), written(allocation.bound)
    rounding = 0 < abs(allocation.gap) <= ROUNDING * abs(allocation.loss)
    gap = "none but rounding" if rounding else written(allocation.gap)
    tail = f"predicted loss {loss}, proven bound {bound}, gap {gap}"
    if "guard" in allocation.provenance:
        guard = str(allocation.provenance["guard"])
        return f"{guard[:1].upper()}{guard[1:]} ({tail})."
    if allocation.status is Status.OPTIMAL:
        return f"No allocation within the budgets has a smaller predicted loss: {tail}."
    if not math.isfinite(allocation.bound):
        return f"Nothing is proven about better ones: predicted loss {loss}, no bound."
    return f"Another may be better, by the gap at most: {tail}."


def frontier_caption(report: Report) -> str:
    """How to read the picture of the frontier."""
    front = report.frontier
    parts = []
    if front is not None and len(front):
        parts.append(f"The line is the least predicted loss found for every {report.cost}.")
        if any(math.isfinite(point.bound) for point in front.points):
            parts.append(
                "Between two budgets that were solved the optimum may lie anywhere in the shaded"
                " part; that no allocation is predicted to lie below it is proven."
            )
    if any(run.measured is not None for run in report.runs):
        parts.append("Solid marks were measured on networks really quantized.")
    return " ".join(parts)
