"""Measured latency against measured KL on this CPU: do mixed allocations beat uniform ones?

A small CNN is trained on 8x8 digits, its layers are timed on real kernels, and the frontier runs on
them. Codes of 2 to 8 bits take one time here (no CPU library has kernels below 8), so that what
there is to choose from is 32-bit floats, bfloat16 and 8-bit integers.
"""

import argparse
import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

import mpsearch as mp
from mpsearch.batches import joined
from mpsearch.demo import digits
from mpsearch.hwmodels.measured import Measured as Latency
from mpsearch.kernels.placing import beside
from mpsearch.kernels.running import in_turns
from mpsearch.kernels.timing import Taken
from mpsearch.verification import Measured, measure, outputs

Run = tuple[Taken, Measured]

BACKEND, OPTIONS = "torch-cpu", mp.options("fp32/fp32", "bf16/bf16", "int8/int8")


def network(width: int, depth: int, steps: int) -> nn.Module:
    """A CNN for 8x8 digits, trained for a moment."""
    torch.manual_seed(0)
    channels = [1, *(width for _ in range(depth))]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(channels)
    ]
    head = nn.Linear(4 * width, 10)
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = digits.images("train")
    for _ in range(steps):
        pick = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    """Search, run every point, and say what it shows."""
    arguments = argparse.ArgumentParser(description=__doc__)
    for name, default in {"width": 64, "depth": 5, "steps": 150, "batch": 32, "rounds": 40}.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    chosen = arguments.parse_args(argv)
    model = network(chosen.width, chosen.depth, chosen.steps)
    task = mp.Task(model, digits.batches("train", 128), digits.batches("heldout"))
    x = joined(task.batches, chosen.batch)
    net = mp.trace(model, x)
    rest = beside(model, net, x, chosen.rounds).seconds
    latency = mp.cost(net, OPTIONS, model=Latency(BACKEND, chosen.batch, chosen.rounds, rest))
    loss = mp.estimate(task, OPTIONS, method="kl", network=net)

    mixed = {
        " ".join(f"{option.weight}" for option in point.values()): point
        for point in mp.frontier(loss, latency, points=8)
        if len(set(point.values())) > 1
    }
    uniform = {f"uniform {o}": dict.fromkeys(net_modules(net), o) for o in OPTIONS}
    named = uniform | mixed
    models = [mp.quantize(model, each, task.batches, backend=BACKEND) for each in named.values()]
    taken = in_turns(models, x, chosen.rounds)
    floats = outputs(model, task.heldout)
    found = {
        name: (time, measure(real, task, floats))
        for name, time, real in zip(named, taken, models, strict=True)
    }
    for name, (time, lost) in found.items():
        print(
            f"{1e3 * time.seconds:7.3f} ms +- {1e3 * time.stderr:.3f}"
            f"  KL {lost.mean:.2e} +- {lost.stderr:.0e}  {name}"
        )
    for rival in uniform:
        print(verdict(rival, found[rival], {name: found[name] for name in mixed}))


def verdict(rival: str, against: Run, mixed: Mapping[str, Run]) -> str:
    """Whether a mix is better in one figure, beyond doubt, and no worse in the other."""
    time, lost = against
    for name, (other, its) in mixed.items():
        slower = time.seconds - other.seconds
        if sure(slower, time, other) and its.mean <= lost.mean:
            gain = time.seconds / other.seconds
            return f"mixed beats {rival}: {gain:.2f} times as fast at no more KL: {name}"
        if sure(lost.mean - its.mean, lost, its) and not sure(-slower, time, other):
            gain = lost.mean / its.mean
            return f"mixed beats {rival}: {gain:.1f} times less KL, as fast within noise: {name}"
    return f"no mixed allocation beats {rival}: none is faster at no more KL, or closer as fast"


def sure(difference: float, one: Taken | Measured, other: Taken | Measured) -> bool:
    """Whether it is more than two standard errors."""
    return difference > 2 * math.hypot(one.stderr, other.stderr)


def net_modules(net: mp.Network) -> list[str]:
    """Every module that gets an option."""
    return [module for layer in net.layers for module in layer.modules]


if __name__ == "__main__":
    main()
