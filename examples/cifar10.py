"""ResNet-20 and ResNet-56 on CIFAR-10: float, uniform and each estimator's allocation, measured.

Needs the trained weights and the data of ``../shared/models`` (or ``$MPSEARCH_SHARED/models``).
``mpsearch search examples/cifar10.py --options w2a8,w3a8,w4a8,w8a8 --budget size=uniform:w3a8``
searches on ResNet-20; run as a script it prints the comparison for both sizes.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mpsearch as mp

MODELS = Path(os.environ.get("MPSEARCH_SHARED", Path(__file__).parents[2] / "shared")) / "models"
MEAN, STD = (
    torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)


def network(depth: int) -> nn.Module:
    """The trained network, as published."""
    if not MODELS.is_dir():
        raise FileNotFoundError(
            f"{MODELS} is not there; set MPSEARCH_SHARED to the folder that holds models"
        )
    threads = torch.get_num_threads()  # the definitions set their own
    sys.path.insert(0, str(MODELS / "definitions"))
    try:
        import resnet_cifar  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
        torch.set_num_threads(threads)
    model: nn.Module = resnet_cifar.ResNetCifar(depth)
    model.load_state_dict(load_file(MODELS / f"cifar10/weights/resnet{depth}.safetensors"))
    return model.eval()


def images(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Normalised images and labels; any prefix is class-balanced."""
    data = np.load(MODELS / f"cifar10/{split}.npz")
    x = torch.from_numpy(data["x"][:count]).permute(0, 3, 1, 2).float() / 255
    return (x - MEAN) / STD, torch.from_numpy(data["y"][:count]).long()


def task(depth: int = 20, calibrate: int = 256, judge: int = 2000) -> mp.Task:
    """A network, calibrated on training images and judged on test images."""
    x, y = images("calib", calibrate)
    test_x, test_y = images("test", judge)
    heldout = list(zip(test_x.split(250), test_y.split(250), strict=True))

    @torch.no_grad()
    def top1(model: nn.Module) -> Mapping[str, float]:
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in heldout)
        return {"top1": right / len(test_y)}

    return mp.Task(network(depth), [(x, y)], heldout, evaluate=top1)


def compare(task: mp.Task, sizes: list[str], methods: list[str]) -> None:
    """Print measured KL and top-1 of float, uniform and each estimator's mix at each size."""
    options = mp.options("w2a8", "w3a8", "w4a8", "w8a8")
    net = mp.trace(task.model, task.batches[0])
    size = mp.cost(net, options, model="size")
    tables = {m: mp.estimate(task, options, method=m, network=net) for m in methods}
    for budget in sizes:
        for method, loss in tables.items():
            best = mp.verify(task, mp.solve(loss, {size: f"uniform:{budget}"}))
            measured = best.measured or {}
            if method == methods[0]:
                uniform = measured["baselines"]["uniform"]
                float_top1 = measured["float"]["metrics"]["top1"]
                print(f"{'float':20} top-1 {float_top1:.4f}")
                print(
                    f"{'uniform':14} {budget} KL {uniform['kl']:.4f} +- {uniform['stderr']:.4f}"
                    f"  top-1 {uniform['metrics']['top1']:.4f}"
                )
            mix = measured.get("mix", measured)
            print(
                f"{method:14} {budget} KL {mix['kl']:.4f} +- {mix['stderr']:.4f}"
                f"  top-1 {mix['metrics']['top1']:.4f}  {best.cost['size']} byte"
                + ("  (guard: uniform returned)" if "mix" in measured else "")
            )


def main(argv: list[str] | None = None) -> None:
    """Compare on one network."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--depth", type=int, choices=[20, 56], default=20)
    arguments.add_argument("--judge", type=int, default=2000, help="test images")
    arguments.add_argument("--sizes", default="w3a8,w4a8")
    arguments.add_argument("--methods", default="kl,hessian-trace,weight-error")
    chosen = arguments.parse_args(argv)
    compare(
        task(chosen.depth, judge=chosen.judge), chosen.sizes.split(","), chosen.methods.split(",")
    )


if __name__ == "__main__":
    main()
