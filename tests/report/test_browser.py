"""The page in a real browser, without a network."""

import subprocess
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path

import pytest

from mpsearch.report.data import Report
from mpsearch.report.page import page
from mpsearch.report.picture import frontier_svg

Build = Callable[..., Report]
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
FLAGS = [
    *"--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync".split(),
    *"--disable-background-networking --disable-component-update --hide-scrollbars".split(),
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
]

# Looks into the page in a frame of a given width, and writes what it finds.
PROBE = """
<iframe id=frame style="width:WIDTHpx;height:900px;border:0" srcdoc="PAGE"></iframe><p id=out></p>
<script>
  frame.onload = () => {
    const inner = frame.contentDocument, root = inner.documentElement;
    const found = [`overflow ${root.scrollWidth - root.clientWidth}`];
    const mark = inner.querySelector("svg [data-tip]");
    mark.dispatchEvent(new frame.contentWindow.PointerEvent("pointerover", { bubbles: true }));
    const tip = inner.querySelector(".tip");
    found.push(`hint ${!tip.hidden && tip.textContent === mark.dataset.tip}`);
    const parts = [...inner.querySelectorAll(".scroll")];
    found.push(`parts ${parts.every((p) => p.getBoundingClientRect().right <= root.clientWidth)}`);
    const shown = [...inner.querySelectorAll("figure svg")].filter((s) => s.clientWidth);
    found.push(`figures ${shown.length}`);
    out.textContent = found.join(", ");
  };
</script>
"""


def opened(
    chromium: str, folder: Path, file: Path, *flags: str
) -> subprocess.CompletedProcess[str]:
    """What the browser says of a file, with a profile of its own."""
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def complaints(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines of the browser's console."""
    return [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def framed(pages: Iterable[str]) -> str:
    """A page of pages, and how many of their scripts ran."""
    frames = "".join(f'<iframe srcdoc="{escape(text)}"></iframe>' for text in pages)
    count = "Array.from(frames).filter((f) => f.document.querySelector('.tip')).length"
    script = f"onload = () => (document.title = `${{{count}}} ran of ${{frames.length}}`)"
    return f"<!doctype html><title></title>{frames}<script>{script}</script>"


def test_unusual_pages_open_without_a_word_in_the_console(
    chromium: str, tmp_path: Path, every_unusual: Mapping[str, Report]
) -> None:
    file = tmp_path / "pages.html"
    file.write_bytes(framed(page(report) for report in every_unusual.values()).encode())
    run = opened(chromium, tmp_path, file, "--dump-dom")
    assert complaints(run) == []
    count = len(every_unusual)
    assert f"<title>{count} ran of {count}</title>" in run.stdout


def test_a_page_opens_by_itself_and_keeps_out_scripts_but_ours(
    chromium: str, tmp_path: Path, new_report: Build
) -> None:
    file = tmp_path / "report.html"
    text = page(new_report())
    file.write_bytes(text.encode())
    run = opened(chromium, tmp_path, file, "--dump-dom")
    assert complaints(run) == []
    assert 'class="tip"' in run.stdout
    file.write_bytes(framed([text + "<script>nothing()</script>"]).encode())
    (said,) = complaints(opened(chromium, tmp_path, file, "--dump-dom"))
    assert "Content Security Policy" in said


@pytest.mark.parametrize("width", [375, 1200])
def test_a_page_never_scrolls_sideways_and_shows_each_figure_once(
    chromium: str, tmp_path: Path, new_report: Build, width: int
) -> None:
    names = [f"a.{i // 5}.{HOSTILE}.{'long_' * 20}{i % 5}" for i in range(60)]
    report = new_report(names, title="endless" * 40, facts={"model": "0123456789" * 20})
    file = tmp_path / "probe.html"
    framed = PROBE.replace("WIDTH", str(width)).replace("PAGE", escape(page(report)))
    file.write_text(framed, "utf-8")
    run = opened(chromium, tmp_path, file, "--dump-dom")
    assert complaints(run) == []
    assert "overflow 0, hint true, parts true, figures 3" in run.stdout


def test_a_picture_draws_by_itself(chromium: str, tmp_path: Path, new_report: Build) -> None:
    file, shot = tmp_path / "frontier.svg", tmp_path / "frontier.png"
    file.write_text(frontier_svg(new_report(), 960, 520), "utf-8")
    run = opened(chromium, tmp_path, file, f"--screenshot={shot}", "--window-size=960,520")
    assert complaints(run) == []
    assert shot.stat().st_size > 5000
