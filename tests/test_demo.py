"""The demo, as a newcomer runs it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mpsearch as mp


@pytest.mark.parametrize(("network", "hurt"), [("language", 0.01), ("digits", 0.001)])
def test_the_demo_finds_proves_and_verifies(network: str, hurt: float, tmp_path: Path) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mpsearch.cli",
            "demo",
            "--network",
            network,
            "--folder",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"{network}: {time.perf_counter() - started:.1f} s")
    assert done.returncode == 0, done.stderr
    best = mp.Allocation.load(tmp_path / "bits.json")
    assert best.status is mp.Status.OPTIMAL
    assert best.figures["size"].limit is not None
    assert best.cost["size"] <= best.figures["size"].limit
    assert best.measured is not None
    assert best.measured["kl"] <= best.measured["baselines"]["uniform int4/int8"]["kl"]
    assert best.measured["baselines"]["uniform int4/int8"]["kl"] > hurt
    assert "uniform int4/int8" in done.stdout
    assert "point" in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "uniform int4/int8" in page


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    line = ["search", "demo:digits", "--options", "w2a8,w4a8,w8a8", "--budget", "size=uniform:w4a8"]
    made = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.json"
        subprocess.run(
            [sys.executable, "-m", "mpsearch.cli", *line, "-o", str(out)],
            check=True,
            capture_output=True,
        )
        made.append(out.read_bytes())
    assert made[0] == made[1]
    assert json.loads(made[0])["provenance"]["seed"] == 0
