"""The sensitivity table as colours."""

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.formats import options
from mpsearch.network import numbered
from mpsearch.report.data import Report
from mpsearch.report.heatmap import COLOURS, Heat, heatmap_figure, said
from mpsearch.tables import Table

Build = Callable[..., Report]
SVG = "{http://www.w3.org/2000/svg}"


def table_of(report: Report) -> Table:
    assert report.loss is not None
    return report.loss


def masked(report: Report) -> Report:
    allowed = np.ones((4, 3), bool)
    allowed[0, 0] = allowed[1, :2] = False
    return replace(report, loss=replace(table_of(report), allowed=allowed))


def cells(root: Element) -> list[Element]:
    return [e for e in root.iter() if (e.get("class") or "").startswith("cell")]


def pictured(report: Report) -> Element:
    return ET.fromstring(heatmap_figure(report))


def test_there_is_a_cell_for_every_layer_and_option_and_an_outline_for_every_choice(
    new_report: Build,
) -> None:
    root = pictured(new_report())
    assert len(cells(root)) == 12
    outlines = [e for e in root.iter() if e.get("class") == "chosen"]
    assert len(outlines) == 4 + 1  # and the one of the key
    hints = [e.findtext(SVG + "title") or "" for e in cells(root)]
    assert sum(text.endswith(", chosen") for text in hints) == 4


def test_masked_cells_are_hatched(new_report: Build) -> None:
    root = pictured(masked(new_report()))
    hatched = [e for e in cells(root) if e.get("fill") == "url(#masked)"]
    assert len(hatched) == 3
    assert "not allowed" in [e.text for e in root.iter(SVG + "text")]
    assert "not allowed" not in [e.text for e in pictured(new_report()).iter(SVG + "text")]


def test_a_cell_says_its_value_and_its_doubt(new_report: Build) -> None:
    report = masked(new_report(values=[[0.5, 0.25, 1e-6]]))
    table = table_of(report)
    assert said(table, 2, 1, chosen=True) == (
        "blocks.0.fc2 at int4/int8: 0.25 ± 0.001 (KL nats), chosen"
    )
    assert said(table, 1, 0, chosen=False) == "blocks.0.fc1 at int2/int8: not allowed"
    bare = replace(table, stderr=None, unit="relative MSE")
    assert said(bare, 3, 2, chosen=False) == "head at int8/int8: 10⁻⁶ (relative MSE)"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_more_loss_never_has_a_paler_colour(values: list[float]) -> None:
    table = Table(numbered(len(values)), options("w4a8"), np.array(values)[:, None], "loss")
    heat = Heat.of(table)
    colours = [heat.colour(value) for value in sorted(values)]
    assert colours == sorted(colours)
    assert all(0 <= colour < COLOURS for colour in colours)


def test_the_worst_and_the_least_have_the_ends_of_the_scale(new_report: Build) -> None:
    heat = Heat.of(table_of(new_report(values=[[1.0, 1e-2, 1e-4]])))
    assert heat.log
    assert [heat.colour(v) for v in (1.0, 1e-2, 1e-4)] == [11, 6, 0]
    assert heat.colour(0.0) == heat.colour(-5.0) == 0


def test_one_tiny_number_does_not_flatten_the_rest(new_report: Build) -> None:
    heat = Heat.of(table_of(new_report(values=[[1.0, 0.1, 1e-300]])))
    assert heat.low == pytest.approx(1e-8)


def test_masked_numbers_do_not_stretch_the_scale(new_report: Build) -> None:
    table = table_of(masked(new_report(values=[[1.0, 0.5, 0.25]])))
    assert Heat.of(table).low == 0.25
    negative = table_of(masked(new_report(values=[[-3.0, -2.0, -1.0]])))
    assert Heat.of(negative) == Heat(-3.0, -1.0, log=False)


def test_thin_columns_are_marked_within(new_report: Build) -> None:
    root = pictured(new_report([f"l{i}" for i in range(200)]))
    dashes = [e for e in root.iter() if e.get("class") == "dash"]
    assert len(dashes) == 200 + 1  # and the one of the key


def test_layers_the_allocation_does_not_know_have_no_choice(new_report: Build) -> None:
    report = new_report()
    fewer = {n: o for n, o in report.allocation.items() if n != "head"}
    root = pictured(replace(report, allocation=replace(report.allocation, layers=fewer)))
    assert len([e for e in root.iter() if e.get("class") == "chosen"]) == 3 + 1


def test_there_is_no_heat_map_without_a_table(new_report: Build) -> None:
    assert heatmap_figure(new_report(loss=None)) == ""
