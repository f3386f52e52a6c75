"""The frontier as a picture: what was found, what is proven, and what was measured beside it.

Shapes say what a network is, filling says how it is known: hollow is predicted, solid is measured.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mpsearch.report.data import UNIFORM, Report, Run
from mpsearch.report.marks import SHAPES, kind, legend, shade
from mpsearch.report.markup import asset, hint, label, svg, tag, width_of
from mpsearch.report.placing import Box, Places
from mpsearch.report.scales import Axis, wide, written
from mpsearch.report.text import readable, scale

Corner = tuple[float, float]


@dataclass(frozen=True)
class Stairs:
    """The frontier's steps, cheapest first: costs, losses found, and losses proven unbeatable.

    Between two points a budget was not solved. The loss found for it is that of the cheaper point;
    the bound of the dearer one holds for it too, so the true frontier lies between.
    """

    costs: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def proven(self) -> bool:
        """Whether something between two points is ruled out by proof."""
        return any(math.isfinite(bound) for bound in self.bounds[1:])

    @classmethod
    def of(cls, report: Report) -> "Stairs":
        """The frontier along the report's cost."""
        points = [] if report.frontier is None else report.frontier.points
        known = [(p.cost[report.cost], p.loss, p.bound) for p in points if report.cost in p.cost]
        kept: list[tuple[float, float, float]] = []
        for one in sorted(known):
            if math.isfinite(one[0] + one[1]) and (not kept or one[1] < kept[-1][1]):
                kept.append(one)
        return cls(*zip(*kept, strict=True)) if kept else cls()


@dataclass(frozen=True)
class Plot:
    """Both axes of a picture."""

    x: Axis
    y: Axis

    def at(self, cost: float, loss: float) -> Corner:
        """The pixel of a cost and a loss."""
        return self.x(cost), self.y(loss)

    @property
    def box(self) -> Box:
        """The pixels of the plot."""
        return Box(self.x.start, self.y.end, self.x.end, self.y.start)


def frontier_svg(report: Report, width: float = 960, height: float = 520) -> str:
    """The picture as an SVG file of its own, with colours for light and for dark."""
    style = tag("style", asset("palette.css") + asset("figures.css"))
    return _drawn(report, width, height, style)


def frontier_figure(report: Report, width: float, height: float) -> str:
    """The picture for a page that has the style sheets already."""
    return _drawn(report, width, height, "")


def _drawn(report: Report, width: float, height: float, style: str) -> str:
    stairs = Stairs.of(report)
    runs = [run for run in report.runs if math.isfinite(run.cost) and _losses(run)]
    name = f"{report.allocation.unit} against {report.cost}, predicted and measured"
    ground = tag("rect", width=width, height=height, class_="ground")
    if not runs and not stairs.costs:
        empty = label(width / 2, height / 2, "nothing to draw", "muted", text_anchor="middle")
        return svg(width, height, name, style, ground, empty)
    key, top = legend(runs, width, line=bool(stairs.costs), gap=stairs.proven)
    plot = _plot(stairs, report, runs, (62, top + 40, width - 20, height - 52))
    places = Places(plot.box)
    parts = [
        style,
        ground,
        key,
        _axes(plot, report),
        _stairs(plot, stairs, places),
        _budget(plot, report, places),
        *(_mark(plot, run, report) for run in reversed(runs)),
        *_names(plot, runs, places),
    ]
    return svg(width, height, name, *parts)


def _losses(run: Run) -> list[float]:
    return [x for x in (run.predicted, run.measured) if x is not None and math.isfinite(x)]


def _plot(
    stairs: Stairs, report: Report, runs: Sequence[Run], frame: tuple[float, float, float, float]
) -> Plot:
    left, top, right, bottom = frame
    costs = [*stairs.costs, *(run.cost for run in runs)]
    costs += [] if report.limit is None else [report.limit]
    losses = [*stairs.losses, *(loss for run in runs for loss in _losses(run))]
    return Plot(Axis.over(costs, left, right), Axis.over(losses, bottom, top, log=wide(losses)))


def _axes(plot: Plot, report: Report) -> str:
    box = plot.box
    parts = []
    for loss in plot.y.ticks(6):
        y = plot.y(loss)
        parts.append(tag("line", x1=box.left, x2=box.right, y1=y, y2=y, class_="grid"))
        parts.append(label(box.left - 8, y + 4, written(loss), "tick", text_anchor="end"))
    largest = max(abs(plot.x.low), abs(plot.x.high))
    divisor, unit = scale(largest, report.unit)
    shown = Axis(plot.x.low / divisor, plot.x.high / divisor, plot.x.start, plot.x.end)
    for cost in shown.ticks(max(int((box.right - box.left) / 90), 4)):
        x = shown(cost)
        parts.append(tag("line", x1=x, x2=x, y1=box.bottom, y2=box.bottom + 5, class_="axis"))
        parts.append(label(x, box.bottom + 20, written(cost), "tick", text_anchor="middle"))
    across = f"{report.cost} ({unit})" if unit else report.cost
    up = report.allocation.unit + (", log scale" if plot.y.log else "")
    parts.append(
        tag("line", x1=box.left, x2=box.right, y1=box.bottom, y2=box.bottom, class_="axis")
    )
    parts.append(label(box.right, box.bottom + 40, f"{across} →", "title", text_anchor="end"))
    parts.append(label(8, box.top - 14, f"↑ {up}", "title"))
    return tag("g", *parts)


def _stairs(plot: Plot, stairs: Stairs, places: Places) -> str:
    if not stairs.costs:
        return ""
    corners = list(_steps([plot.at(*p) for p in zip(stairs.costs, stairs.losses, strict=True)]))
    places.line(corners)
    open_ = "".join(_gap(plot, stairs, i) for i in range(len(stairs.costs)))
    line = tag("path", d=_path([*corners, (plot.x.end, corners[-1][1])]), class_="frontier")
    dots = ""
    if len(stairs.costs) <= 150:
        made = zip(stairs.costs, stairs.losses, stairs.bounds, strict=True)
        dots = "".join(_dot(plot, *point) for point in made)
    return open_ + line + dots


def _steps(points: Sequence[Corner]) -> Iterator[Corner]:
    """Along a point's loss to the next cost, then down."""
    for i, (x, y) in enumerate(points):
        if i:
            yield x, points[i - 1][1]
        yield x, y


def _path(corners: Sequence[Corner]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def _gap(plot: Plot, stairs: Stairs, i: int) -> str:
    """Where the true frontier may lie for budgets up to point i: above what is proven."""
    bound = stairs.bounds[i]
    if math.isinf(bound):
        return ""
    here, floor = plot.x(stairs.costs[i]), plot.y(bound)
    parts = []
    if i:
        left, top = plot.at(stairs.costs[i - 1], stairs.losses[i - 1])
        parts.append(shade(left, top, here, floor))
    under = plot.y(stairs.losses[i])
    if floor - under > 0.5:  # not proven optimal: the bound shows as a line of its own
        left = plot.x(stairs.costs[i - 1]) if i else here - 6
        parts.append(tag("path", d=_path([(left, floor), (here + 6, floor)]), class_="bound"))
    return "".join(parts)


def _dot(plot: Plot, cost: float, loss: float, bound: float) -> str:
    x, y = plot.at(cost, loss)
    proven = f"proven bound {written(bound)}" if math.isfinite(bound) else "no bound"
    text = hint(f"frontier: predicted {written(loss)}, {proven}")
    return tag("g", text, tag("circle", cx=x, cy=y, r=3, class_="step"), class_="mark")


def _budget(plot: Plot, report: Report, places: Places) -> str:
    if report.limit is None:
        return ""
    x, box = plot.x(report.limit), plot.box
    text = f"budget {readable(report.limit, report.unit)}"
    wide_ = width_of(text)
    left = x + 6 if x + 6 + wide_ < box.right else x - 6 - wide_
    places.take([Box(x - 1, box.top, x + 1, box.bottom)])
    places.take([Box(left, box.top, left + wide_, box.top + 14)])
    line = tag("line", x1=x, x2=x, y1=box.top, y2=box.bottom, class_="budget")
    return line + label(left, box.top + 11, text, "budget-name")


def _mark(plot: Plot, run: Run, report: Report) -> str:
    """A hollow shape where the loss is predicted, a solid one where it is measured."""
    shape, x = SHAPES[kind(run)], plot.x(run.cost)
    predicted, measured = (
        None if loss is None or not math.isfinite(loss) else plot.y(loss)
        for loss in (run.predicted, run.measured)
    )
    parts = [hint(said(run, report))]
    if predicted is not None and measured is not None:
        parts.append(tag("line", x1=x, x2=x, y1=predicted, y2=measured, class_="link"))
    if predicted is not None:
        parts.append(shape(x, predicted, 1 if measured is None else 0.8, "hollow"))
    if run.measured is not None and measured is not None:
        parts.append(_bar(plot, x, run.measured, run.stderr or 0.0))
        parts.append(shape(x, measured, 1, "solid"))
    return tag("g", *parts, class_=f"mark {kind(run)}")


def said(run: Run, report: Report) -> str:
    """A run in one line."""
    words = [f"{run.name}: {report.cost} {readable(run.cost, report.unit)}"]
    if run.predicted is not None:
        words.append(f"predicted {written(run.predicted)}")
    if run.measured is not None:
        spread = "" if run.stderr is None else f" ± {written(run.stderr)}"
        words.append(f"measured {written(run.measured)}{spread}")
    return ", ".join(words)


def _bar(plot: Plot, x: float, mean: float, stderr: float) -> str:
    """Two standard errors up and down."""
    if not (math.isfinite(stderr) and stderr > 0):
        return ""
    low, high = (plot.y(mean - 2 * stderr), plot.y(mean + 2 * stderr))
    ends = f"M{x - 4:.1f} {high:.1f}h8M{x:.1f} {high:.1f}V{low:.1f}M{x - 4:.1f} {low:.1f}h8"
    return tag("path", d=ends, class_="error")


def _names(plot: Plot, runs: Sequence[Run], places: Places) -> Iterator[str]:
    """Names beside all but the frontier's points."""
    shown = [run for run in runs if kind(run) != "point"]
    for run in runs:
        places.take(Box.around(*plot.at(run.cost, loss), 7) for loss in _losses(run))
    for run in shown:
        x, y = plot.at(run.cost, _losses(run)[-1])
        text = run.name.removeprefix(UNIFORM)
        left, base = places.beside(x, y, text)
        yield label(left, base, text, f"name {kind(run)}")
