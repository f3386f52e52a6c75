"""What holds for every picture, however unusual the report."""

import re
from collections.abc import Callable
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import pytest

from mpsearch.report.bars import bars_figure
from mpsearch.report.data import Report
from mpsearch.report.heatmap import heatmap_figure
from mpsearch.report.picture import frontier_figure, frontier_svg

SVG = "{http://www.w3.org/2000/svg}"
Figure = Callable[[Report], str]


def narrow(report: Report) -> str:
    return frontier_figure(report, 343, 480)


FIGURES = [frontier_svg, narrow, bars_figure, heatmap_figure]


def drawn(figure: Figure, report: Report) -> Element:
    text = figure(report)
    text.encode()
    return ET.fromstring(text)


@pytest.mark.parametrize("figure", FIGURES)
def test_every_picture_is_well_formed_and_names_no_address(figure: Figure, unusual: Report) -> None:
    if unusual.loss is None and figure is heatmap_figure:
        assert figure(unusual) == ""
        return
    root = drawn(figure, unusual)
    assert root.tag == SVG + "svg"
    assert root.get("aria-label")
    text = figure(unusual).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "://" not in text
    assert not [e for e in root.iter() if e.tag == SVG + "script"]


@pytest.mark.parametrize("figure", FIGURES)
def test_every_number_of_a_picture_is_finite_and_within_it(figure: Figure, unusual: Report) -> None:
    if unusual.loss is None and figure is heatmap_figure:
        return
    root = drawn(figure, unusual)
    wide, high = float(root.get("width", "")), float(root.get("height", ""))
    for element in root.iter():
        for key, value in element.attrib.items():
            if key in ("aria-label", "class"):
                continue
            assert not re.search(r"nan|inf", value, re.IGNORECASE), (element.tag, key, value)
        if element.tag in (SVG + "rect", SVG + "circle", SVG + "text"):
            x = float(element.get("x") or element.get("cx") or 0)
            y = float(element.get("y") or element.get("cy") or 0)
            assert -1 <= x <= wide + 1, ET.tostring(element)
            assert -1 <= y <= high + 1, ET.tostring(element)
        if element.tag == SVG + "rect":
            assert float(element.get("width", "0")) >= 0
            assert float(element.get("height", "0")) >= 0


@pytest.mark.parametrize("figure", FIGURES)
def test_the_same_report_gives_the_same_picture(
    figure: Figure, new_report: Callable[[], Report]
) -> None:
    assert figure(new_report()) == figure(new_report())
