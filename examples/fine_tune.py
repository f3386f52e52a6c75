"""A network of few bits fine-tuned for one epoch: gradients pass straight through rounding.

The bits of each layer are searched for. Then the float weights behind the codes are trained to give
what the float network gives, and packed again.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import mpsearch as mp
from mpsearch.demo import digits
from mpsearch.quant import packed
from mpsearch.verification import measure, outputs


def main(argv: list[str] | None = None) -> None:
    """Search, quantize, train, pack, and say what that was worth."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--size", default="2.7bit", help="budget, mean stored bits per weight")
    arguments.add_argument("--rate", type=float, default=1e-3, help="of Adam")
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args(argv)
    task = digits.task()
    options = mp.options("w2a4", "w3a4", "w4a4")
    best = mp.search(task, options, {"size": chosen.size}).allocation

    student = mp.quantize(task.model, best, task.batches, trainable=True)
    said("quantized", student, task)
    train(student, task.model, rate=chosen.rate, seed=chosen.seed)
    said("trained for an epoch", packed(student), task)


def train(student: nn.Module, teacher: nn.Module, *, rate: float, seed: int) -> None:
    """One epoch on what the float network gives; batch norms keep their statistics."""
    torch.manual_seed(seed)
    x, _ = digits.images("train")
    parts = x[torch.randperm(len(x))].split(32)
    moving = torch.optim.Adam(student.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.LinearLR(moving, 1.0, 0.0, len(parts))
    for part in parts:
        with torch.no_grad():
            wanted = teacher(part).log_softmax(-1)
        moving.zero_grad()
        found = student(part).log_softmax(-1)
        F.kl_div(found, wanted, reduction="batchmean", log_target=True).backward()
        moving.step()
        falling.step()


def said(name: str, model: nn.Module, task: mp.Task) -> None:
    """Print what a network loses on held-out images."""
    found = measure(model, task, outputs(task.model, task.heldout))
    print(f"{name}: KL {found.mean:.4f} +- {found.stderr:.4f}, top-1 {found.metrics['top1']:.4f}")


if __name__ == "__main__":
    main()
