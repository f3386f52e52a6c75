"""Bits by layer."""

from collections.abc import Callable
from itertools import pairwise
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

import pytest

import mpsearch as mp
from mpsearch.report.bars import bars_figure, bit_panels, chosen_losses
from mpsearch.report.columns import Columns, block, grouped, shortened
from mpsearch.report.data import Report

Build = Callable[..., Report]
SVG = "{http://www.w3.org/2000/svg}"


def pictured(report: Report) -> Element:
    return ET.fromstring(bars_figure(report))


def of_class(root: Element, name: str) -> list[Element]:
    return [e for e in root.iter() if e.get("class") == name]


def texts(root: Element) -> list[str]:
    return [e.text or "" for e in root.iter(SVG + "text")]


def test_bars_are_as_high_as_their_bits(new_report: Build) -> None:
    report = new_report()
    root = pictured(report)
    heights = [float(e.get("height", "")) for e in of_class(root, "weight")]
    bits = [option.weight.bits for option in report.allocation.values()]
    assert heights == pytest.approx([height_of * heights[0] / bits[0] for height_of in bits])
    assert [e.text for e in of_class(root, "bits")] == [str(b) for b in bits]


def test_what_is_the_same_everywhere_is_said_not_drawn(new_report: Build) -> None:
    root = pictured(new_report())
    assert "activation: int8 in every layer" in texts(root)
    assert not of_class(root, "activation")
    mixed = pictured(new_report(options=["w2a4", "w4a8", "w8a16"]))
    assert len(of_class(mixed, "activation")) == 4
    assert "activation bits" in texts(mixed)


def test_every_role_that_options_name_has_its_bars() -> None:
    chosen = mp.options("k:int2/v:int4", "k:int8/v:int8")
    panels, same = bit_panels(["k", "v"], chosen)
    assert [(p.title, p.values) for p in panels] == [("k bits", (2, 8)), ("v bits", (4, 8))]
    assert same == []


def test_labels_without_formats_have_a_row_each(new_report: Build) -> None:
    root = pictured(new_report(options=["Q3_K", "Q4_K", "Q6_K"]))
    assert {"Q4_K", "Q6_K"} <= set(texts(root))
    rows = [float(e.get("y", "")) for e in of_class(root, "weight")]
    assert rows[0] == rows[2] != rows[1] == rows[3]


def test_shares_of_weights_and_of_loss_are_drawn_where_they_are_known(new_report: Build) -> None:
    both = ["share of the weights, %", "share of the predicted loss, %"]
    assert set(both) <= set(texts(pictured(new_report())))
    assert both[1] not in texts(pictured(new_report(loss=None)))
    assert both[1] not in texts(pictured(new_report(values=[[-1.0, -2.0, -3.0]])))
    nothing = new_report(loss=None, frontier=None)
    assert not set(both) & set(texts(pictured(nothing)))


def test_the_predicted_loss_of_each_layer_is_that_of_its_option(new_report: Build) -> None:
    report = new_report(values=[[3.0, 2.0, 1.0]])
    assert list(chosen_losses(report).values()) == [2.0, 1.0, 2.0, 1.0]
    assert chosen_losses(new_report(loss=None)) == {}


def test_hundreds_of_layers_stay_in_one_picture_with_their_blocks_named(
    new_report: Build,
) -> None:
    names = [f"layers.{i // 7}.part{i % 7}" for i in range(300)]
    root = pictured(new_report(names))
    assert len(of_class(root, "weight")) == 300
    assert float(root.get("width", "")) < 1800
    assert [e.text for e in of_class(root, "group")] == [str(i) for i in range(43)]
    assert not of_class(root, "leaf")


def test_layers_without_blocks_are_named_where_there_is_room(new_report: Build) -> None:
    root = pictured(new_report([f"layer{i}" for i in range(300)]))
    xs = [float(e.get("x", "")) for e in of_class(root, "leaf")]
    assert 80 < len(xs) < 300
    assert min(b - a for a, b in pairwise(xs)) >= 12


def test_few_layers_are_all_named_without_their_block(new_report: Build) -> None:
    root = pictured(new_report())
    assert [e.text for e in of_class(root, "leaf")] == ["stem", "fc1", "fc2", "head"]
    assert [e.text for e in of_class(root, "group")] == ["blocks.0"]


def test_blocks_end_at_the_first_number_that_something_follows() -> None:
    assert block("layer1.0.conv1") == "layer1.0"
    assert block("model.layers.11.self_attn.q_proj") == "model.layers.11"
    assert block("features.18") == "features.18"
    assert block("lm_head") == "lm_head"
    assert [g[1:] for g in grouped(["a.0.x", "a.0.y", "a.1.x"])] == [(0, 1), (2, 2)]


def test_columns_are_neither_too_thin_to_see_nor_too_wide_to_compare() -> None:
    assert Columns.fitting(["a"], 64).pitch == 48
    assert Columns.fitting([str(i) for i in range(1000)], 64).pitch == 5
    assert len(Columns.fitting([str(i) for i in range(2000)], 64).names) == 1000


def test_a_long_name_loses_its_middle() -> None:
    assert shortened("a" * 20) == "a" * 20
    assert shortened("a" * 50 + "end", 20) == "a" * 9 + "…" + "a" * 7 + "end"
