"""The page as text: what it holds, and what it can reach."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from mpsearch.report.data import Report
from mpsearch.report.page import html_table, page

Build = Callable[..., Report]
VOID = {"meta"}


class Outline(HTMLParser):
    """Elements in order; fails where one is closed that was not opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_element_of_an_unusual_page_is_closed(unusual: Report) -> None:
    outline = Outline(page(unusual))
    assert outline.open == []
    assert len(outline.named("script")) == 1
    assert len(outline.named("h1")) == 1


def test_a_page_reaches_nothing_outside_itself(unusual: Report) -> None:
    text = page(unusual)
    text.encode()
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    outline = Outline(text)
    for name, attributes in outline.elements:
        assert name not in ("link", "img", "iframe", "object", "embed", "base", "form", "a")
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
    (policy,) = [m for m in outline.named("meta") if m.get("http-equiv")]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_a_page_is_told_to_those_who_cannot_see_it(new_report: Build) -> None:
    outline = Outline(page(new_report()))
    assert outline.named("html") == [{"lang": "en"}]
    assert all(svg.get("aria-label") and svg.get("role") == "img" for svg in outline.named("svg"))
    assert all(th.get("scope") in ("row", "col") for th in outline.named("th"))
    assert len(outline.named("table")) == len(outline.named("caption")) == 2
    assert len(outline.named("figure")) == len(outline.named("figcaption")) == 3
    levels = [int(name[1]) for name, _ in outline.elements if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    scrollers = [d for d in outline.named("div") if d.get("class") == "scroll"]
    assert all(d.get("tabindex") == "0" and d.get("aria-label") for d in scrollers)


def test_hostile_names_stay_text(new_report: Build) -> None:
    hostile = '"><script>alert(1)</script>'
    text = page(
        new_report(
            [hostile, "b"], [hostile, "w8a8"], title=hostile, facts={hostile: hostile}, unit=hostile
        )
    )
    assert len(Outline(text).named("script")) == 1
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_the_page_answers_in_its_first_lines(new_report: Build) -> None:
    text = page(new_report())
    head = text[text.index("<h1>") : text.index("<h2>")]
    assert "brings size to 2 kB of 2.01 kB allowed" in head
    assert "the best single option within that budget" in head
    assert "proven optimal" in head


def test_predicted_stands_beside_measured_and_the_float_network_below(new_report: Build) -> None:
    text = page(new_report())
    table = text[text.index("<table>") : text.index("</table>")]
    for name in ("this allocation", "type template", "uniform int2/int8", "point 0"):
        assert f'<th scope="row">{name}</th>' in table
    assert table.index("point 2") < table.index("unquantized") < table.index("0.9700")


def test_the_recipe_and_how_it_was_made_are_told(new_report: Build) -> None:
    text = page(new_report())
    assert "<dt>command</dt><dd>mpsearch demo</dd>" in text
    assert "<dt>corrections</dt><dd>moments</dd>" in text
    assert "<dt>seed</dt><dd>0</dd>" in text
    assert "<h3>This run</h3>" not in page(new_report(facts={}))


def test_numbers_stand_point_under_point() -> None:
    made = html_table(["a", "loss", "b"], [["x", "0.25", "8bit"], ["y", "12", ""]], "caption")
    assert "<td>8bit</td>" in made
    assert '<td class="number">0.25</td>' in made
    assert '<td class="number">12\u2008\u2007\u2007</td>' in made


def test_sections_without_content_are_left_out(new_report: Build) -> None:
    assert "<h2>Sensitivity</h2>" in page(new_report())
    assert "<h2>Sensitivity</h2>" not in page(new_report(loss=None))


def test_layers_that_are_not_drawn_are_told(new_report: Build) -> None:
    text = page(new_report([str(i) for i in range(1200)]))
    assert text.count("The first 1000 of 1200 layers are drawn.") == 2
    assert "All 1200 layers as a table" in text


@pytest.mark.parametrize("measured", [{"float": None}, {"float": {"metrics": 3}}, {}, None])
def test_what_else_a_verification_left_does_no_harm(measured: object, new_report: Build) -> None:
    report = new_report()
    odd = replace(report, allocation=replace(report.allocation, measured=measured))  # type: ignore[arg-type]
    assert "unquantized" not in page(odd)
