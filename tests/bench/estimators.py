"""CPU seconds of our scores beside those of peers: ``python -m tests.bench.estimators``.

ResNet-56, the same calibration images, every convolution and linear layer at 8 and at 4 bits,
weights and activations. Each score runs in a process of its own, one thread, all of them in turn,
several rounds; medians are shown. Each peer is installed once in an environment of its own, which
wants an index; torch is the one of constraints.txt. What differs between two sides that are
compared is printed with them. It exits with 1 where a peer could not be run, or was faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tests.conftest import ROOT, SHARED

SCRIPTS = Path(__file__).parent / "peers"
CACHE = Path.home() / ".cache/mpsearch-bench"
LIMIT = 3600  # seconds that one score may take

# What ModelOpt imports and does not ask for is asked for here, and what the scripts need.
PEERS = {
    "modelopt": ("nvidia-modelopt==0.47.0", "requests", "huggingface_hub", "safetensors"),
    "mct": ("model-compression-toolkit==2.6.1", "safetensors"),
}
Score = tuple[str, str]
"""A side, ``ours`` or a peer, and the name of a score there."""


@dataclass(frozen=True)
class Pair:
    """Two scores that are compared, and what they do differently."""

    ours: str
    peer: Score
    differs: str


LOGITS = "each layer alone, the others in float, KL of the logits"
PAIRS = (
    Pair(
        "kl",
        ("modelopt", "kl_div"),
        f"both: {LOGITS}; ranges by least and greatest value. ModelOpt runs the whole network for"
        " each layer, option and batch, and rounds the weight again each time; ours runs what comes"
        " after the layer",
    ),
    Pair(
        "kl-clipped",
        ("mct", "kl"),
        f"both: {LOGITS} (MCT: as its custom metric); ranges of least squared error. MCT folds"
        " batch norms, rounds what the layer writes, not what it reads, and runs all for each;"
        " torchvision, which it imports and has no CPU build here, is a stub",
    ),
    Pair(
        "kl-clipped",
        ("mct", "distance"),
        "the same, but MCT as it comes: it compares every layer's output, not the logits alone",
    ),
    Pair(
        "kl-corrected",
        ("modelopt", "kl_div"),
        "ours as it comes: least squared ranges, and moments corrected after each layer, which no"
        " peer does",
    ),
    *(
        Pair(name, ("modelopt", "gradient"), differs)
        for name, differs in {
            "fisher-outputs": "both: squared gradient times squared error of what the layer"
            " writes; ours sample by sample, with a standard error",
            "taylor": "ours: |g·dW| + |g·dx| in the float network; no layer runs again",
            "autoround": "ours: sum |g·dW| + sum |g·dx|, a forward and a backward pass for each"
            " option",
            "fisher": "ours: squared gradient of each weight and input of each sample, times"
            " squared rounding error",
        }.items()
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="images a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where peers are installed")
    parser.add_argument("--only", default="", help="pairs of which this is a part of a name")
    asked = parser.parse_args()
    pairs = [one for one in PAIRS if asked.only in f"ours:{one.ours} {':'.join(one.peer)}"]
    told: dict[Score, list[dict[str, Any]]] = {}
    failed: dict[Score, str] = {}
    for _ in range(asked.rounds):
        for score in dict.fromkeys(score for one in pairs for score in sides(one)):
            if score in failed:
                continue
            try:
                python = installed(score[0], asked.cache)
                found = run(python, score, asked.images, asked.batch)
            except (RuntimeError, subprocess.SubprocessError) as reason:
                failed[score] = str(reason)
                continue
            told.setdefault(score, []).append(found)
            said = f"{':'.join(score)} {found['total']:.1f} s"
            print(said, file=sys.stderr, flush=True)
    medians = {score: middle(rounds) for score, rounds in told.items()}
    print(f"ResNet-56, {asked.images} images in batches of {asked.batch}; 1 thread, {asked.rounds}")
    print("rounds in turn, medians of CPU seconds, neither imports nor loading")
    slower = [one for one in pairs if not compared(one, medians, failed)]
    raise SystemExit(1 if failed or slower else 0)


def sides(pair: Pair) -> tuple[Score, Score]:
    return ("ours", pair.ours), pair.peer


def installed(peer: str, cache: Path) -> Path:
    """The Python of a side's environment; a peer's is made where it is not there."""
    if peer == "ours":
        return Path(sys.executable)
    python, ready = cache / peer / "bin/python", cache / peer / ".ready"
    wanted = " ".join(PEERS[peer])
    if ready.is_file() and ready.read_text() == wanted:
        return python
    print(f"installing {wanted} in {cache / peer}", file=sys.stderr, flush=True)
    venv.create(cache / peer, with_pip=True)
    pins = (ROOT / "constraints.txt").read_text().split()
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    command = [str(python), "-m", "pip", "install", "-qq", torch, *PEERS[peer]]
    subprocess.run(command, check=True)
    ready.write_text(wanted)
    return python


def run(python: Path, score: Score, images: int, batch: int) -> dict[str, Any]:
    """What one score took; ``RuntimeError`` with the last it said where it fails."""
    side, name = score
    script = SCRIPTS / f"{'our' if side == 'ours' else side}_scores.py"
    done = subprocess.run(
        [str(python), "-W", "ignore", str(script), name, str(SHARED), str(images), str(batch)],
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        timeout=LIMIT,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(lines[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def middle(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the seconds; the rest is the same in all."""
    medians = {
        name: statistics.median(one[name] for one in rounds) for name in ("total", "scoring")
    }
    return rounds[0] | medians


def compared(
    pair: Pair, medians: Mapping[Score, dict[str, Any]], failed: Mapping[Score, str]
) -> bool:
    """Print two sides and their ratios; whether all of ours took less than their scoring alone."""
    print(f"\n{pair.differs}")
    for score in sides(pair):
        if score in failed:
            print(f"  {':'.join(score):22} DID NOT RUN: {failed[score]}")
            continue
        one = medians[score]
        print(
            f"  {':'.join(score):22} {one['total']:8.2f} s, scoring {one['scoring']:8.2f} s;"
            f" {one['layers']} layers, {one['options']} options;"
            f" {one['forward']} convolutions, {one['backward']} backward; {one['version']}"
        )
    if any(score in failed for score in sides(pair)):
        return False
    ours, peer = (medians[score] for score in sides(pair))
    alone: float = ours["total"] / peer["scoring"]
    whole = ours["total"] / peer["total"]
    print(
        f"  ratio {whole:.2f}; all of ours to the peer's scoring without calibration {alone:.2f};"
    )
    print(f"  rank correlation of the scores {agreement(ours['scores'], peer['scores']):.2f}")
    return alone < 1


def agreement(ours: Mapping[str, list[float]], peer: Mapping[str, list[float]]) -> float:
    """Spearman's correlation over layers and options; MCT renames what it folds."""
    theirs = {name.replace(".", "_").removesuffix("_bn"): row for name, row in peer.items()}
    pairs = [(row, theirs[name.replace(".", "_")]) for name, row in ours.items()]
    one, other = (np.ravel(rows) for rows in zip(*pairs, strict=True))
    found: Any = spearmanr(one, other)
    return float(found.statistic)


if __name__ == "__main__":
    main()
