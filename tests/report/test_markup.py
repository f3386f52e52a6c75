"""Well-formed by construction."""

import html
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.report.markup import asset, escaped, svg, tag


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_any_text_makes_well_formed_markup(text: str) -> None:
    made = ET.fromstring(tag("text", escaped(text), class_=text).encode())
    assert made.text in (escaped_back(text), None)
    assert made.get("class") == escaped_back(text)


def escaped_back(text: str) -> str:
    return html.unescape(escaped(text))


def test_what_cannot_be_printed_or_turns_text_around_is_replaced() -> None:
    assert escaped("a\x00b\x1b\ud800\u202e\u2066c\n") == "a\ufffdb\ufffd\ufffd\ufffd\ufffdc\ufffd"
    assert escaped("a\u00a0±\u2007é漢") == "a\u00a0±\u2007é漢"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_drawing_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match=r"finite numbers, got (nan|inf)"):
        tag("rect", x=value)


def test_numbers_are_short_and_missing_attributes_left_out() -> None:
    assert tag("line", x1=1 / 3, y1=-0.0, x2=None, y2=123456.7) == (
        '<line x1="0.33" y1="0" y2="123457"></line>'
    )


def test_a_picture_has_a_name_for_those_who_cannot_see_it() -> None:
    made = ET.fromstring(svg(10, 20, 'loss "against" size'))
    assert made.get("role") == "img"
    assert made.get("aria-label") == 'loss "against" size'


@pytest.mark.parametrize("name", ["palette.css", "figures.css", "page.css", "page.js"])
def test_style_sheets_and_the_script_come_with_the_package(name: str) -> None:
    text = asset(name)
    assert "</" not in text
    assert "//" not in text.replace("// What hovering", "")
    if name.endswith(".css"):
        assert "<" not in text
        assert "&" not in text
        assert "url(" not in text
