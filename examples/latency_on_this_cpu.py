"""Measured latency against measured KL on this CPU: do mixed allocations beat uniform ones?

Two networks are trained on 8x8 digits for a moment, their layers are timed on real kernels, and the
frontier runs on them. The CNN runs on torch's operators, a batch at a time: codes of 2 to 8 bits
take one time there, so that what there is to choose from is 32-bit floats, bfloat16 and 8-bit
integers. The MLP answers one image at a time, which takes the time of reading its weights: on
packed weights fewer bits are faster, and 2, 3, 4 and 8 bits are four real choices.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

import mpsearch as mp
from mpsearch.batches import joined
from mpsearch.demo import digits
from mpsearch.hwmodels.measured import Measured as Latency
from mpsearch.kernels.native import library
from mpsearch.kernels.placing import beside
from mpsearch.kernels.running import in_turns
from mpsearch.kernels.timing import Taken
from mpsearch.verification import Measured, measure, outputs

Run = tuple[Taken, Measured]


@dataclass(frozen=True)
class Case:
    """A network, and what runs it.

    Attributes:
        backend: Whose kernels.
        options: To choose from.
        batch: Images run together.
    """

    model: nn.Module
    backend: str
    options: tuple[mp.Option, ...]
    batch: int


def cnn(width: int, depth: int) -> nn.Module:
    """Convolutions, each normalized and rectified."""
    channels = [1, *(width for _ in range(depth))]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def mlp(width: int, depth: int) -> nn.Module:
    """Linear layers, rectified."""
    sizes = [64, *(width for _ in range(depth))]
    blocks = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(width, 10))


def trained(model: nn.Module, steps: int, rate: float) -> nn.Module:
    """The model after so many steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    x, y = digits.images("train")
    for _ in range(steps):
        pick = torch.randint(len(x), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    """Search, run every point, and say what it shows, for both networks."""
    arguments = argparse.ArgumentParser(description=__doc__)
    sizes = {"width": 64, "depth": 5, "steps": 150, "batch": 32, "rounds": 40, "mlp-width": 2048}
    for name, default in sizes.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    chosen = arguments.parse_args(argv)
    torch.manual_seed(0)
    images = trained(cnn(chosen.width, chosen.depth), chosen.steps, 3e-3)
    floats = mp.options("fp32/fp32", "bf16/bf16", "int8/int8")
    compare("a CNN", Case(images, "torch-cpu", floats, chosen.batch), chosen.rounds)
    try:
        library()
    except RuntimeError as error:
        print(f"no MLP on packed weights: {error}")
        return
    vectors = trained(mlp(chosen.mlp_width, 4), chosen.steps, 3e-4)
    bits = mp.options("w2a8", "w3a8", "w4a8", "w8a8")
    compare("an MLP", Case(vectors, "cpu-packed", bits, 1), chosen.rounds)


def compare(title: str, case: Case, rounds: int) -> None:
    """A frontier of predicted latency and loss, every point run beside the uniform ones."""
    task = mp.Task(case.model, digits.batches("train", 128), digits.batches("heldout"))
    x = joined(task.batches, case.batch)
    net = mp.trace(case.model, x)
    rest = beside(case.model, net, x, rounds).seconds
    latency = mp.cost(net, case.options, model=Latency(case.backend, case.batch, rounds, rest))
    loss = mp.estimate(task, case.options, method="kl", network=net)

    mixed = {
        " ".join(f"{option.weight}" for option in point.values()): point
        for point in mp.frontier(loss, latency, points=8)
        if len(set(point.values())) > 1
    }
    uniform = {f"uniform {o}": dict.fromkeys(net_modules(net), o) for o in case.options}
    named = uniform | mixed
    models = [
        mp.quantize(case.model, each, task.batches, backend=case.backend) for each in named.values()
    ]
    taken = in_turns(models, x, rounds)
    reference = outputs(case.model, task.heldout)
    found = {
        name: (time, measure(real, task, reference))
        for name, time, real in zip(named, taken, models, strict=True)
    }
    print(f"{title} on {case.backend}, batch {case.batch}")
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
    faster, closer = {}, {}
    for name, (other, its) in mixed.items():
        slower = time.seconds - other.seconds
        if sure(slower, time, other) and its.mean <= lost.mean:
            faster[name] = time.seconds / other.seconds
        if sure(lost.mean - its.mean, lost, its) and not sure(-slower, time, other):
            closer[name] = lost.mean / its.mean
    if not (faster or closer):
        return f"no mixed allocation beats {rival}: none is faster at no more KL, or closer as fast"
    said = [f"mixed beats {rival}:"]
    if faster:
        name = max(faster, key=faster.__getitem__)
        said.append(f"{faster[name]:.2f} times as fast at no more KL ({name})")
    if closer:
        name = max(closer, key=closer.__getitem__)
        said.append(f"{closer[name]:.1f} times less KL, as fast within noise ({name})")
    return " ".join(said[:2]) + "".join(f", {more}" for more in said[2:])


def sure(difference: float, one: Taken | Measured, other: Taken | Measured) -> bool:
    """Whether it is more than two standard errors."""
    return difference > 2 * math.hypot(one.stderr, other.stderr)


def net_modules(net: mp.Network) -> list[str]:
    """Every module that gets an option."""
    return [module for layer in net.layers for module in layer.modules]


if __name__ == "__main__":
    main()
