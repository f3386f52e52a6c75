"""A depthwise-separable network that reads the handwritten digits that come with scikit-learn.

The blocks are MobileNet's (Howard et al. 2017): a convolution a channel, then one across channels.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mpsearch.demo import weights
from mpsearch.task import Task

WEIGHTS = Path(__file__).with_name("digits.safetensors")
BATCH = 128  # images in a batch

Side = Literal["train", "validation", "heldout"]
Batch = tuple[Tensor, Tensor]

SIDES: Mapping[Side, slice] = {  # of the 1,797 images, shuffled
    "heldout": slice(512),
    "validation": slice(512, 640),
    "train": slice(640, None),
}


class Separable(nn.Module):
    """A depthwise and a pointwise convolution, each normalized and rectified."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(inputs)
        self.depthwise_relu = nn.ReLU()
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(outputs)
        self.pointwise_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        x = self.depthwise_relu(self.depthwise_norm(self.depthwise(x)))
        out: Tensor = self.pointwise_relu(self.pointwise_norm(self.pointwise(x)))
        return out


class DigitsNet(nn.Module):
    """(N, 1, 8, 8) images between 0 and 1 to (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.stem_relu = nn.ReLU()
        self.blocks = nn.Sequential(
            Separable(16, 32),
            Separable(32, 32),
            Separable(32, 64, stride=2),
            Separable(64, 64),
            Separable(64, 64),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) images to (N, 10) logits."""
        x = self.blocks(self.stem_relu(self.stem_norm(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def load(path: Path = WEIGHTS) -> DigitsNet:
    """The trained network, in eval mode."""
    return weights.load(DigitsNet(), path)


def task(samples: int = 256, heldout: int = 512) -> Task:
    """The trained network with batches of images and labels.

    Args:
        samples: Images to calibrate on, among those it was trained on.
        heldout: Images to judge by, among those it was not.
    """
    judged = batches("heldout", heldout)
    evaluate = partial(accuracy, batches=judged)
    return Task(load(), batches("train", samples), judged, evaluate=evaluate)


def accuracy(model: nn.Module, batches: Sequence[Batch]) -> Mapping[str, float]:
    """The share of images whose digit the model ranks first."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return {"top1": right / sum(len(x) for x, _ in batches)}


def batches(side: Side, samples: int | None = None) -> list[Batch]:
    """The first images of a side in batches: (128, 1, 8, 8) of float32 and (128,) labels each."""
    x, y = images(side)
    return list(zip(x[:samples].split(BATCH), y[:samples].split(BATCH), strict=True))


def images(side: Side) -> Batch:
    """(N, 1, 8, 8) of float32 between 0 and 1 and (N,) labels: one side of a fixed split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed;"
            ' pip install "mpsearch[demo]"'
        ) from error
    x, y = load_digits(return_X_y=True)
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[SIDES[side]]
    pixels = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return pixels[chosen], torch.as_tensor(y, dtype=torch.int64)[chosen]
