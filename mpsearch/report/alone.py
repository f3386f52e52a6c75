"""The picture of a frontier that no report stands around."""

from math import nan

from mpsearch.pareto import Frontier
from mpsearch.report.data import THIS, Report, Run
from mpsearch.report.picture import frontier_svg


def frontier_alone(front: Frontier, cost: str, width: float, height: float) -> str:
    """Its stairs along a cost, as an SVG file of its own."""
    unseen = Run(THIS, nan, None)
    report = Report("frontier", front[0], front, cost, None, others=(unseen,))
    return frontier_svg(report, width, height)
