"""A Llama of 260,000 weights that writes stories: searched, and every window judged by real runs.

Needs the trained weights and the tokens of ``../shared/models`` (or ``$MPSEARCH_SHARED/models``).
``mpsearch search examples/small_llama.py --options w2a16,w3a16,w4a16,w8a16 --budget
size=uniform:w3a16`` searches; run as a script it prints the perplexity of float and uniform bits.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import mpsearch as mp

MODELS = Path(os.environ.get("MPSEARCH_SHARED", Path(__file__).parents[2] / "shared")) / "models"


def network() -> nn.Module:
    """The trained network, as published: token ids in, logits out."""
    if not MODELS.is_dir():
        raise FileNotFoundError(
            f"{MODELS} is not there; set MPSEARCH_SHARED to the folder that holds models"
        )
    threads = torch.get_num_threads()  # the definitions set their own
    sys.path.insert(0, str(MODELS / "definitions"))
    try:
        import llama  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
        torch.set_num_threads(threads)
    model: nn.Module = llama.load_model("stories260K")[0]
    return model


def windows(split: str, count: int, length: int) -> tuple[Tensor, Tensor]:
    """(count, length) token ids, cut one after the other, and the tokens that follow each."""
    stream = np.load(MODELS / "lm/tinystories_ids.npz")[f"stories260K_{split}"]
    ids = torch.from_numpy(stream[: count * length + 1].astype(np.int64))
    return ids[:-1].view(count, length), ids[1:].view(count, length)


def task(calibrate: int = 64, judge: int = 128, length: int = 128) -> mp.Task:
    """The network, calibrated on one part of the stories and judged on another."""
    x, y = windows("test", judge, length)
    heldout = list(zip(x.split(16), y.split(16), strict=True))

    @torch.no_grad()
    def perplexity(model: nn.Module) -> Mapping[str, float]:
        losses = [cross_entropy(model(a).flatten(0, 1), b.flatten()) for a, b in heldout]
        return {"perplexity": float(torch.stack(losses).mean().exp())}

    return mp.Task(network(), [windows("calib", calibrate, length)], heldout, evaluate=perplexity)


def main() -> None:
    """Print what uniform bits cost."""
    judged = task()
    options = mp.options("w2a16", "w3a16", "w4a16", "w8a16")
    net = mp.trace(judged.model, judged.batches[0])
    size = mp.cost(net, options, model="size")
    loss = mp.estimate(judged, options, method="weight-error", network=net)
    for option in options:
        best = mp.solve(loss, {size: f"uniform:{option}"})
        measured = mp.verify(judged, best).measured or {}
        if option == options[0]:
            print(f"float    perplexity {measured['float']['metrics']['perplexity']:.3f}")
        uniform = measured["baselines"]["uniform"]
        print(
            f"uniform {option}  KL {uniform['kl']:.4f} +- {uniform['stderr']:.4f}"
            f"  perplexity {uniform['metrics']['perplexity']:.3f}"
        )


if __name__ == "__main__":
    main()
