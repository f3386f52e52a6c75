"""What every test shares: where the shared data lies, and what happens where something is missing.

A test that needs something this machine may lack says so by `require`, and is skipped by name or,
where ``MPSEARCH_REQUIRE=cuda,shared,...`` lists it, fails. The end of the run counts what was
skipped.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded: figures then repeat

import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("MPSEARCH_SHARED", ROOT.parent / "shared"))
REQUIRED = {name for name in os.environ.get("MPSEARCH_REQUIRE", "").split(",") if name}

settings.register_profile(
    "mpsearch",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # machines are shared
)
settings.load_profile("mpsearch")


def require(capability: str, present: object, reason: str) -> None:
    """Skip a test that needs what is not there, or fail it where MPSEARCH_REQUIRE lists it."""
    if present:
        return
    if capability in REQUIRED:
        pytest.fail(f"MPSEARCH_REQUIRE wants {capability}: {reason}", pytrace=False)
    pytest.skip(f"needs {capability}: {reason}", allow_module_level=True)


def has_cuda() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda"):
        require("cuda", has_cuda(), "torch finds no NVIDIA GPU")
    if item.get_closest_marker("shared"):
        require("shared", SHARED.is_dir(), f"no folder {str(SHARED)!r}; set MPSEARCH_SHARED")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of oracles and models."""
    require("shared", SHARED.is_dir(), f"no folder {str(SHARED)!r}; set MPSEARCH_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def chromium() -> str:
    """The command of a Chromium that can run without a display."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [command for command in map(shutil.which, names) if command]
    require("chromium", found, "no chromium on the path")
    return found[0]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what this machine could not show, before the closing line."""
    skipped: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: ")] += 1
    if skipped:
        terminalreporter.section("NOT TESTED HERE", sep="!", yellow=True, bold=True)
    for reason, count in sorted(skipped.items()):
        terminalreporter.line(f"{count} skipped: {reason}", yellow=True)
