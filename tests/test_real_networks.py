"""The whole line on trained networks: the mix beats uniform in measured KL, as recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mpsearch as mp

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.shared, pytest.mark.slow]


def search(task: str, options: str, budget: str, folder: Path, *more: str) -> mp.Allocation:
    """The command a user would type."""
    command = ["search", str(ROOT / "examples" / task), "--options", options, "--budget", budget]
    out = folder / "bits.json"
    done = subprocess.run(
        [sys.executable, "-m", "mpsearch.cli", *command, "-o", str(out), *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return mp.Allocation.load(out)


@pytest.mark.parametrize("size", ["w3a8", "w4a8"])
def test_resnet20_beats_uniform(size: str, tmp_path: Path, shared: Path) -> None:
    best = search(
        "cifar10.py",
        "w2a8,w3a8,w4a8,w8a8",
        f"size=uniform:{size}",
        tmp_path,
        "--points",
        "2",
        "--measure",
        "0",
    )
    assert best.status is mp.Status.OPTIMAL
    assert best.measured is not None
    assert best.measured["kl"] < best.measured["baselines"][f"uniform {_long(size)}"]["kl"]
    assert "guard" not in best.provenance


def test_mobilenet_v2_keeps_what_uniform_4_bits_lose(tmp_path: Path, shared: Path) -> None:
    options = "w3a16,w4a16,w6a16,w8a16"
    fast = ("--points", "2", "--measure", "0", "--cache", str(tmp_path / "cache"))
    more = ("--corrections", "none", *fast)
    best = search("mobilenet_v2.py", options, "size=uniform:w4a16", tmp_path, *more)
    measured = best.measured
    assert measured is not None
    assert measured["float"]["metrics"]["top1"] == pytest.approx(0.77, abs=0.005)
    uniform = measured["baselines"]["uniform int4/fp16"]
    assert uniform["kl"] > 5
    assert uniform["metrics"]["top1"] < 0.02
    assert measured["kl"] < 0.35
    assert measured["metrics"]["top1"] > 0.74
    wider = search("mobilenet_v2.py", options, "size=uniform:w6a16", tmp_path, *more)
    assert wider.measured is not None
    assert wider.measured["kl"] < 0.01 < wider.measured["baselines"]["uniform int6/fp16"]["kl"]


def test_resnet56_runs_the_same_line(tmp_path: Path, shared: Path) -> None:
    code = "import sys, cifar10; cifar10.main(sys.argv[1:])"
    words = ["--depth", "56", "--judge", "500", "--sizes", "w4a8", "--methods", "hessian-trace"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "examples",
    )
    assert done.returncode == 0, done.stderr
    assert "hessian-trace" in done.stdout


def test_the_small_llama_loses_less_with_every_bit(shared: Path) -> None:
    done = subprocess.run(
        [sys.executable, "small_llama.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "examples",
    )
    assert done.returncode == 0, done.stderr
    first, *uniform = done.stdout.splitlines()
    assert float(first.split()[-1]) == pytest.approx(5.27, abs=0.01)
    losses = [float(line.split("KL ")[1].split()[0]) for line in uniform]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1
    assert losses[-1] < 0.001


def _long(short: str) -> str:
    return str(mp.options(short)[0])


def test_the_saved_answer_is_the_contract(tmp_path: Path, shared: Path) -> None:
    best = search(
        "cifar10.py", "w4a8,w8a8", "size=5bit", tmp_path, "--method", "weight-error", "--no-verify"
    )
    document = json.loads((tmp_path / "bits.json").read_text())
    assert document["schema"] == "mpsearch/allocation/1"
    assert document["measured"] is None
    assert best.cost["size"] <= document["cost"]["size"]["limit"]
