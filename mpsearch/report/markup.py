"""XML that is well-formed by construction: text is escaped, numbers are finite."""

import math
from html import escape
from importlib.resources import files
from unicodedata import category


def escaped(text: str) -> str:
    """Text for XML or HTML; what cannot be printed, or would turn text around, is replaced."""
    return escape("".join(c if c.isprintable() or category(c) == "Zs" else "\ufffd" for c in text))


def tag(name: str, *children: str, **attributes: str | float | None) -> str:
    """An element around children that are markup already; ``class_`` is written ``class``.

    An attribute that is ``None`` is left out. Raises ``ValueError`` for a number that is not
    finite.

    >>> tag("text", escaped("a<b"), x=1.5, text_anchor="end", class_="name")
    '<text x="1.5" text-anchor="end" class="name">a&lt;b</text>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escaped(value)
    if not math.isfinite(value):
        raise ValueError(f"a drawing needs finite numbers, got {value}")
    return f"{round(value, 2) + 0:g}" if abs(value) < 1e5 else f"{value:.0f}"


def svg(width: float, height: float, label: str, *children: str, class_: str = "") -> str:
    """An SVG picture of that size with a name for those who cannot see it."""
    return tag(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        class_=f"figure {class_}".strip(),
    )


def hint(text: str) -> str:
    """What hovering over an element says."""
    return tag("title", escaped(text))


def label(x: float, y: float, text: str, class_: str = "", **more: str | float | None) -> str:
    """A line of text in a picture."""
    return tag("text", escaped(text), x=x, y=y, class_=class_ or None, **more)


def width_of(text: str, size: float = 12) -> float:
    """About how wide a text is, in pixels, in a sans-serif font of that size."""
    return 0.58 * size * len(text)


def asset(name: str) -> str:
    """The text of a style sheet or script that lies beside this module."""
    return files("mpsearch.report").joinpath(name).read_text("utf-8")
