"""Architecture and bits together: Optuna chooses the network, an Allocator the bits in it."""

import argparse
from itertools import pairwise

import optuna
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.demo import digits

TASK = digits.task()
OPTIONS = mp.options("w2a8", "w4a8", "w8a8")
ALLOCATE = mp.Allocator(OPTIONS, TASK.batches, TASK.heldout, budgets={"size": 2500})


def network(width: int, depth: int) -> nn.Module:
    """A small CNN for 8x8 digits."""
    channels = [1, *(width for _ in range(depth))]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int) -> nn.Module:
    """A short training run."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = data
    for _ in range(steps):
        pick = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model.eval()


def main(argv: list[str] | None = None) -> optuna.Study:
    """Search; the best trial holds its architecture and its bits."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trials", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=150)
    chosen = arguments.parse_args(argv)

    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(0)
        model = network(trial.suggest_int("width", 8, 40, step=8), trial.suggest_int("depth", 1, 3))
        train(model, digits.images("train"), chosen.steps)
        try:
            bits = ALLOCATE(model)
        except mp.Infeasible as reason:
            raise optuna.TrialPruned(str(reason)) from reason
        trial.set_user_attr("bits", {name: str(option) for name, option in bits.items()})
        quantized = mp.quantize(model, bits, TASK.batches)
        x, y = TASK.batches[0]
        return float((quantized(x).argmax(1) != y).float().mean()) + bits.loss

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=chosen.trials)
    print(study.best_params, study.best_trial.user_attrs["bits"])
    return study


if __name__ == "__main__":
    main()
