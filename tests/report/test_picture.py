"""The picture of the frontier."""

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from mpsearch.report.data import Report, Run
from mpsearch.report.picture import Stairs, frontier_figure, frontier_svg
from mpsearch.report.placing import Box, Places

Build = Callable[..., Report]
SVG = "{http://www.w3.org/2000/svg}"


def of_class(root: Element, name: str) -> list[Element]:
    return [e for e in root.iter() if name in (e.get("class") or "").split()]


def texts(root: Element) -> list[str]:
    return [e.text or "" for e in root.iter(SVG + "text")]


def pictured(report: Report, width: float = 960) -> Element:
    return ET.fromstring(frontier_figure(report, width, 500))


def test_hollow_is_predicted_and_solid_measured(new_report: Build) -> None:
    report = new_report()
    root = pictured(report)
    marks = [e for e in of_class(root, "mark") if e.find(SVG + "title") is not None]
    runs = {(e.findtext(SVG + "title") or "").partition(":")[0]: e for e in marks}
    assert {run.name for run in report.runs} <= set(runs)
    for run in report.runs:
        assert len(of_class(runs[run.name], "hollow")) == 1
        assert len(of_class(runs[run.name], "solid")) == 1
        assert len(of_class(runs[run.name], "error")) == 1
    unmeasured = pictured(new_report(measured=False))
    assert not of_class(unmeasured, "solid")[4:]  # but for the legend's samples


def test_a_hint_says_all_of_a_run(new_report: Build) -> None:
    one = Run("uniform w4", 2000.0, 0.25, 0.5, 0.01)
    root = pictured(new_report(uniform=(one,)))
    hints = [e.text for e in root.iter(SVG + "title")]
    assert "uniform w4: size 2 kB, predicted 0.25, measured 0.5 ± 0.01" in hints


def test_losses_that_span_much_stand_on_a_logarithm_others_do_not(new_report: Build) -> None:
    assert "↑ KL (nats), log scale" in texts(pictured(new_report()))
    assert "↑ KL (nats)" in texts(pictured(new_report(values=[[1.2, 1.1, 1.0]])))
    assert "↑ KL (nats)" in texts(pictured(new_report(values=[[9.0, 1.0, 0.0]])))
    assert "↑ KL (nats)" in texts(pictured(new_report(values=[[-1.0, -2.0, -90.0]])))


def test_costs_stand_in_readable_units(new_report: Build) -> None:
    root = pictured(new_report())
    assert "size (kB) →" in texts(root)
    assert "budget 2.01 kB" in texts(root)


def test_what_is_between_two_solved_budgets_is_shaded_down_to_the_bound(new_report: Build) -> None:
    report = new_report()
    root = pictured(report)
    assert len(of_class(root, "gap")) == 1 + 2  # the legend's, and one between each two points
    front = report.frontier
    assert front is not None
    unproven = replace(front, points=tuple(replace(p, bound=-np.inf) for p in front.points))
    root = pictured(replace(report, frontier=unproven))
    assert not of_class(root, "gap")
    assert "not ruled out by proof" not in texts(root)


def test_a_bound_below_the_loss_is_drawn_as_a_line(new_report: Build) -> None:
    report = new_report()
    front = report.frontier
    assert front is not None

    def bounded(share: float) -> Report:
        points = tuple(replace(p, bound=share * p.loss) for p in front.points)
        return replace(report, frontier=replace(front, points=points))

    assert len(of_class(pictured(bounded(0.5)), "bound")) == 3
    assert not of_class(pictured(bounded(1.0)), "bound")


def test_stairs_go_down_and_leave_out_what_is_beaten(new_report: Build) -> None:
    report = new_report()
    front = report.frontier
    assert front is not None
    worse = replace(front.points[0], cost={"size": 2500.0})
    stairs = Stairs.of(replace(report, frontier=replace(front, points=(*front.points, worse))))
    assert stairs.costs == (1000.0, 2000.0, 3000.0)
    assert list(stairs.losses) == sorted(stairs.losses, reverse=True)
    assert Stairs.of(replace(report, cost="latency")) == Stairs()


def test_a_file_of_its_own_has_colours_for_light_and_dark(new_report: Build) -> None:
    made = frontier_svg(new_report())
    assert "prefers-color-scheme: dark" in made
    assert 'class="ground"' in made
    assert "<style>" not in frontier_figure(new_report(), 343, 480)


def test_nothing_to_draw_is_said(new_report: Build) -> None:
    bare = new_report(frontier=None, loss=None, points=(), uniform=(), others=(), cost="latency")
    assert texts(pictured(bare)) == ["nothing to draw"]


@pytest.mark.parametrize("width", [343, 960])
def test_names_lie_within_the_picture_and_apart(width: float, new_report: Build) -> None:
    runs = tuple(Run(f"uniform w{b}a8", 2000.0 + b, 0.3 + b / 50) for b in range(2, 9))
    root = pictured(new_report(uniform=runs), width)
    left = [float(e.get("x", "")) for e in of_class(root, "name")]
    assert len(left) == len(runs) + 2
    assert all(0 <= x <= width for x in left)


def test_a_label_goes_where_it_covers_least() -> None:
    places = Places(Box(0, 0, 200, 200))
    assert places.beside(100, 100, "ab") == (111, 104.5)  # to the right, where nothing is
    x, _ = places.beside(100, 100, "ab")  # which is taken now
    assert x < 100
    x, _ = Places(Box(0, 0, 200, 200)).beside(195, 100, "abcdef")  # no room on the right
    assert x < 150
