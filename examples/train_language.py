"""Train the demo's language model: a byte-level transformer on Python's standard library.

    OMP_NUM_THREADS=1 python examples/train_language.py -o language.safetensors

retrains the shipped file in about twenty minutes (to the bit only on the same machine and Python).
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import trange

from mpsearch.demo import language, weights

WINDOWS = 16  # windows of text in a step
WARMUP = 100  # steps


def main(argv: list[str] | None = None) -> None:
    """Train, keep the best on the validation files, save, and measure what was saved."""
    args = parsed(argv)
    torch.manual_seed(args.seed)
    model = prepared(language.ByteLanguageModel())
    validation = language.batches(language.text("validation"), args.validation)
    best = train(model, language.text("train"), validation, steps=args.steps, peak=args.peak)
    weights.save(best, args.output)
    heldout = language.batches(language.text("heldout"), 64)
    measured = language.perplexity(language.load(args.output), heldout)
    print(f"{args.output}: held-out perplexity {measured['perplexity']:.3f} a byte")


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line; its defaults trained what is shipped."""
    parser = argparse.ArgumentParser(description="Train the demo's byte-level language model.")
    parser.add_argument("-o", "--output", type=Path, default=Path("language.safetensors"))
    parser.add_argument("--steps", type=int, default=6000, help="2 for a quick look")
    parser.add_argument("--peak", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--validation", type=int, default=128, help="windows to validate on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; wanted at least 1")
    if not args.output.parent.is_dir():
        parser.error(f"--output is {str(args.output)!r}, in a folder that does not exist; make it")
    return args


def prepared(model: language.ByteLanguageModel) -> language.ByteLanguageModel:
    """The model with what each block adds to the stream at zero: training starts gently."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
    return model


def train(
    model: nn.Module, text: Tensor, validation: list[Tensor], *, steps: int, peak: float
) -> nn.Module:
    """The model as it was when it did best on the validation windows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = LambdaLR(optimizer, lambda step: rate(step, steps))
    best, lowest = model, math.inf
    for step in (bar := trange(1, steps + 1, desc="training", mininterval=1)):
        starts = torch.randint(len(text) - language.CONTEXT, (WINDOWS, 1))
        x = text[starts + torch.arange(language.CONTEXT)].long()
        optimizer.zero_grad()
        language.loss(model(x), x).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps:
            reached = language.perplexity(model, validation)["perplexity"]
            bar.write(f"step {step}: validation perplexity {reached:.3f}")
            if reached < lowest:
                best, lowest = copy.deepcopy(model), reached
    return best


def rate(step: int, steps: int) -> float:
    """The share of the peak learning rate: a warm-up, then half a cosine."""
    return min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2


if __name__ == "__main__":
    main()
