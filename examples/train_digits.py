"""Train the demo's digits network: depthwise-separable, on scikit-learn's 8x8 images.

    OMP_NUM_THREADS=1 python examples/train_digits.py -o digits.safetensors

retrains the shipped file in about a minute (to the bit only on the same machine).
"""

import argparse
import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from tqdm import trange

from mpsearch.demo import digits, weights

IMAGES = 64  # in a step
WARMUP = 100  # steps
SMOOTHING = 0.1  # of labels (Szegedy et al. 2016): logits stay moderate, so every image can tell


def main(argv: list[str] | None = None) -> None:
    """Train, keep the best on the validation images, save, and measure what was saved."""
    args = parsed(argv)
    torch.manual_seed(args.seed)
    best = train(digits.DigitsNet(), steps=args.steps, peak=args.peak)
    weights.save(best, args.output)
    measured = digits.accuracy(digits.load(args.output), digits.batches("heldout"))
    print(f"{args.output}: held-out top-1 {measured['top1']:.4f}")


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line; its defaults trained what is shipped."""
    parser = argparse.ArgumentParser(description="Train the demo's digits network.")
    parser.add_argument("-o", "--output", type=Path, default=Path("digits.safetensors"))
    parser.add_argument("--steps", type=int, default=4000, help="2 for a quick look")
    parser.add_argument("--peak", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; wanted at least 1")
    if not args.output.parent.is_dir():
        parser.error(f"--output is {str(args.output)!r}, in a folder that does not exist; make it")
    return args


def train(model: nn.Module, *, steps: int, peak: float) -> nn.Module:
    """The model as it was when it did best on the validation images."""
    x, y = digits.images("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    schedule = LambdaLR(optimizer, lambda step: rate(step, steps))
    best, lowest = model.eval(), math.inf
    for step in (bar := trange(1, steps + 1, desc="training", mininterval=1)):
        chosen = torch.randint(len(x), (IMAGES,))
        optimizer.zero_grad()
        loss(model.train()(moved(x[chosen])), y[chosen]).backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps:
            reached, top1 = validated(model.eval())
            bar.write(f"step {step}: validation loss {reached:.4f}, top-1 {top1:.4f}")
            if reached < lowest:
                best, lowest = copy.deepcopy(model), reached
    return best


def moved(x: Tensor) -> Tensor:
    """The images, each shifted by up to a pixel each way and with a little noise on it."""
    across, down = torch.randint(3, (2, len(x), 1))
    padded, eight = F.pad(x[:, 0], (1, 1, 1, 1)), torch.arange(8)
    rows, columns = (down + eight)[:, :, None], (across + eight)[:, None, :]
    shifted = padded[torch.arange(len(x))[:, None, None], rows, columns]
    return shifted[:, None] + 0.1 * torch.randn_like(x)


def loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in nats with smoothed labels."""
    return F.cross_entropy(logits, y, label_smoothing=SMOOTHING)


def validated(model: nn.Module) -> tuple[float, float]:
    """The loss on the validation images, and the share that is right."""
    x, y = digits.images("validation")
    with torch.no_grad():
        reached = loss(model(x), y).item()
    return reached, digits.accuracy(model, [(x, y)])["top1"]


def rate(step: int, steps: int) -> float:
    """The share of the peak learning rate: a warm-up, then half a cosine."""
    return min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2


if __name__ == "__main__":
    main()
