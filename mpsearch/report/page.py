"""A report as one HTML file: it opens without a network, and is complete without its script."""

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from mpsearch.allocation import Allocation
from mpsearch.report import prose
from mpsearch.report.bars import bars_figure, chosen_losses
from mpsearch.report.columns import LIMIT
from mpsearch.report.data import Report
from mpsearch.report.heatmap import heatmap_figure
from mpsearch.report.marks import kind
from mpsearch.report.markup import asset, escaped, tag
from mpsearch.report.picture import frontier_figure
from mpsearch.report.scales import written
from mpsearch.report.text import aligned, counted, layer_cells, number, numbers, readable, run_cells

FIGURE_SPACE, POINT_SPACE = "\u2007", "\u2008"  # as wide as a digit, as wide as a point


def page(report: Report) -> str:
    """The whole file."""
    sections = [
        _frontier(report),
        _runs(report),
        _bits(report),
        _heatmap(report),
        _layers(report),
        _provenance(report),
    ]
    main = tag("main", _head(report), *sections)
    body = tag("body", main, tag("script", asset("page.js")))
    return f"<!doctype html>\n{tag('html', _metadata(report), body, lang='en')}\n"


def _metadata(report: Report) -> str:
    """No address but the file's own can be reached from it, and no script but ours runs."""
    digest = b64encode(sha256(asset("page.js").encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
        f" script-src 'sha256-{digest}'"
    )
    return tag(
        "head",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        tag("title", escaped(f"{report.title}: bits per layer")),
        tag("style", *(asset(name) for name in ("palette.css", "figures.css", "page.css"))),
    )


def _head(report: Report) -> str:
    allocation = report.allocation
    state = prose.badge(allocation)
    colour = "good" if state == "proven optimal" else "warn"
    proof = tag("span", escaped(state), class_=f"badge {colour}")
    return tag(
        "header",
        tag("h1", escaped(report.title)),
        tag("p", escaped(prose.answer(report)), class_="answer"),
        tag("p", escaped(prose.comparison(report))) if prose.comparison(report) else "",
        tag("p", proof, " ", escaped(prose.proof(allocation)), class_="proof"),
        _tiles(report),
    )


def _tiles(report: Report) -> str:
    """The figures one looks for first, and every other cost."""
    mine, rival, unit = report.mine, report.rival, report.allocation.unit
    tiles = [(name, *_figure(report, name)) for name in report.allocation.figures]
    if mine.measured is not None:
        tiles.append(("measured loss", prose.loss_of(mine), unit))
    if mine.predicted is not None:
        tiles.append(("predicted loss", written(mine.predicted), unit))
    if rival is not None and rival.loss is not None:
        how = "predicted" if rival.measured is None else "measured"
        tiles.append((rival.name, prose.loss_of(rival), f"{how}, the best single option"))
    made = (
        tag("div", tag("dt", escaped(name)), tag("dd", escaped(value)), tag("dd", escaped(note)))
        for name, value, note in tiles
    )
    return tag("dl", *made, class_="tiles")


def _figure(report: Report, name: str) -> tuple[str, str]:
    figure = report.allocation.figures[name]
    limit = "" if figure.limit is None else f"of {readable(figure.limit, figure.unit)} allowed"
    return readable(figure.value, figure.unit), limit


def _section(title: str, *content: str) -> str:
    return tag("section", tag("h2", escaped(title)), *content)


def _scroll(name: str, content: str) -> str:
    """What is wide scrolls by itself, by keyboard too; the page never does sideways."""
    return tag("div", content, class_="scroll", role="region", aria_label=name, tabindex="0")


def _captioned(caption: str, *content: str) -> str:
    return tag("figure", *content, tag("figcaption", escaped(caption)))


def _frontier(report: Report) -> str:
    broad = tag("div", frontier_figure(report, 1040, 540), class_="broad")
    narrow = tag("div", frontier_figure(report, 343, 480), class_="narrow")
    caption = prose.frontier_caption(report)
    return _section("Loss against cost", _captioned(caption, broad, narrow))


def _runs(report: Report) -> str:
    headers, rows = run_cells(report)
    base = _float_metrics(report.allocation)
    if base:
        rows.append(["unquantized", *(_of_float(report, base, head) for head in headers[1:])])
    classes = [kind(run) for run in report.runs] + ["float"]
    named = {"+-": "±"}
    heads = [named.get(head, head) for head in headers]
    doubt = "; ± is one standard error over samples" if "+-" in headers else ""
    caption = f"Loss in {report.allocation.unit}{doubt}."
    made = html_table(heads, rows, caption, classes)
    return _section("Predicted and measured", _scroll("predicted and measured losses", made))


def _of_float(report: Report, base: Mapping[str, float], head: str) -> str:
    """What the unquantized network has under a header: measured costs, and metrics."""
    cost = head.removeprefix("measured ")
    if cost not in report.costs:
        return number(base.get(head))
    return readable(base[cost], report.unit_of(cost)) if cost != head and cost in base else ""


def _float_metrics(allocation: Allocation) -> Mapping[str, float]:
    """The unquantized network's own figures, where verification left them."""
    base = (allocation.measured or {}).get("float")
    metrics = base.get("metrics") if isinstance(base, Mapping) else None
    if not isinstance(metrics, Mapping):
        return {}
    return {str(k): v for k, v in metrics.items() if isinstance(v, int | float)}


def html_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    classes: Sequence[str] = (),
) -> str:
    """A table whose first column names the rows; numbers stand point under point."""
    columns = [[row[i] for row in rows] for i in range(len(headers))]
    numeric = [i > 0 and numbers(column) for i, column in enumerate(columns)]
    columns = [aligned(column, FIGURE_SPACE, POINT_SPACE) for column in columns]
    heads = (
        tag("th", escaped(head), scope="col", class_="number" if right else None)
        for head, right in zip(headers, numeric, strict=True)
    )
    body = []
    for r, cells in enumerate(zip(*columns, strict=True)):
        first = tag("th", escaped(cells[0]), scope="row")
        rest = (
            tag("td", escaped(cell), class_="number" if right else None)
            for cell, right in zip(cells[1:], numeric[1:], strict=True)
        )
        body.append(tag("tr", first, *rest, class_=classes[r] if r < len(classes) else None))
    return tag(
        "table",
        tag("caption", tag("span", escaped(caption))),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
    )


def _bits(report: Report) -> str:
    caption = f"{counted(report.allocation)}.{_cut(len(report.allocation))}"
    figure = _scroll("bits of every layer", bars_figure(report))
    return _section("Bits per layer", _captioned(caption, figure))


def _cut(layers: int) -> str:
    return f" The first {LIMIT} of {layers} layers are drawn." if layers > LIMIT else ""


def _heatmap(report: Report) -> str:
    table = report.loss
    if table is None:
        return ""
    caption = (
        "What each layer alone adds to the loss at each option; the outlined one was chosen."
        f"{_cut(len(table.layers))}"
    )
    figure = _scroll("sensitivity of every layer at every option", heatmap_figure(report))
    return _section("Sensitivity", _captioned(caption, figure))


def _layers(report: Report) -> str:
    """The allocation as a table: the figures once more, for reading and for copying."""
    allocation, losses = report.allocation, chosen_losses(report)
    table = report.loss
    params = {} if table is None else {n.name: n.params for n in table.layers}
    headers, rows = layer_cells(allocation)
    for row in rows:
        weights = params.get(row[0])
        row[2:2] = [str(weights) if weights else "", number(losses.get(row[0]), 3)]
    headers[2:2] = ["weights", "predicted loss"]
    made = html_table(headers, rows, "Every layer and its option.")
    inside = tag("summary", escaped(f"All {len(rows)} layers as a table"))
    return tag("details", inside, _scroll("every layer and its option", made))


def _provenance(report: Report) -> str:
    allocation = report.allocation
    groups = [
        ("This run", report.facts),
        ("Recipe", allocation.recipe or {}),
        ("Provenance", allocation.provenance),
    ]
    made = (
        tag("div", tag("h3", escaped(title)), tag("dl", *_facts(facts)))
        for title, facts in groups
        if facts
    )
    return _section("How it was made", tag("div", *made, class_="facts"))


def _facts(facts: Mapping[str, Any]) -> Iterable[str]:
    for name, value in facts.items():
        yield tag("dt", escaped(name.replace("_", " "))) + tag("dd", escaped(_plain(value)))


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or "none"
    return json.dumps(value, default=str)
