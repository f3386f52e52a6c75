"""Published tables and allocations of language models as problems.

Each function reads a folder of the oracles, whose README says where the numbers come from. The
GGUF data are of Thireus, the GGUF Tool Suite and its contributors.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mpsearch as mp
from mpsearch.formats import Option
from mpsearch.problem import Budget, Constraint, Problem
from mpsearch.tables import Floats, Table
from tests.solvers.published import read

GGUF_MODELS = ("Qwen3-4B-Instruct-2507", "Qwen3.5-4B", "Qwen3.5-0.8B")
_LLAMA_7B = {"self_attn": 4096 * 4096, "mlp": 4096 * 11008}
_GROUPED = {"self_attn": 4096 * 4096, "mlp": 4096 * 14336, "k_proj": 2**22, "v_proj": 2**22}
_PHI = {"qkv_proj": 39321600, "o_proj": 26214400, "gate_up": 183500800, "down": 91750400}
_WEIGHTS = {"Llama-2": _LLAMA_7B, "Llama-3": _GROUPED, "Meta": _GROUPED, "Mist": _GROUPED}


def mcmoe(shared: Path, block: int, total: int) -> tuple[Problem, list[int]]:
    """PMQ's program for the experts of a block of Mixtral-8x7B, and what was published for it.

    1 to 3 bits an expert, ``total`` at most in all, at least one expert at 2 and one at 3; an
    expert's loss is its error times its share of tokens and its share of routing weight to 1.5.
    """
    folder = shared / "oracles/mcmoe"
    count, weight, error = (
        read(folder / f"mixtral8x7b_expert_{what}.json")[str(block)]
        for what in ("act_frequency", "act_weight", "quant_loss")
    )
    errors = np.array([[error[str(expert)][str(b)] for b in (1, 2, 3)] for expert in range(8)])
    shares = [np.array(of) / sum(of) for of in (count, weight)]
    loss = 1000 * (shares[0] * shares[1] ** 1.5)[:, None] * errors
    layers = tuple(mp.Layer(f"expert{i}") for i in range(8))
    options = mp.options("w1a16", "w2a16", "w3a16")
    size = Table(layers, options, np.tile([1, 2, 3], (8, 1)), "bit", "size")
    some = [
        Constraint(f"one at {column + 1} bits", tuple((e, column, 1) for e in range(8)), least=1)
        for column in (1, 2)
    ]
    problem = Problem(
        Table(layers, options, loss, "loss"), (Budget(size, total),), constraints=tuple(some)
    )
    return problem, read(folder / "mixtral8x7b_expert_bits.json")[str(total)][str(block)]


def evopress(shared: Path) -> Iterator[tuple[str, Table, list[int], float]]:
    """Each published search: its name, the bits of the weights, the choice and the mean asked."""
    for model, found in read(shared / "oracles/evopress/quant_configs.json").items():
        weights = next((w for key, w in _WEIGHTS.items() if model.startswith(key)), _PHI)
        for mean, given in found.items():
            numel = [_longest(weights, name) for name in given]
            layers = tuple(mp.Layer(name, size) for name, size in zip(given, numel, strict=True))
            options = mp.options(*(f"w{b}a16" for b in range(2, 7)))
            size = Table(layers, options, np.outer(numel, range(2, 7)), "bit", "size")
            yield f"{model} at {mean}", size, [b - 2 for b in given.values()], float(mean)


def _longest(weights: dict[str, int], name: str) -> int:
    return weights[max((key for key in weights if key in name), key=name.find)]


def ompq(shared: Path) -> Iterator[tuple[str, Table, list[int], dict[str, Any]]]:
    """Each published allocation: its name, the bits of the weights, the choice, what else is said.

    First and last layer stay at 8 bits where the network is trained.
    """
    given = read(shared / "oracles/ompq/published_configs.json")
    for kind in ("PTQ", "QAT"):
        for name, said in given[kind].items():
            network = re.findall("resnet18|resnet50|mobilenetv2", name)[0]
            params = given["layer_params"][f"{network}_{kind.lower()}"]
            ends = 9536 + (513000 if network == "resnet18" else 2049000)
            layers = tuple(mp.Layer(f"l{i}") for i in range(len(params)))
            options = mp.options(*(f"w{b}a16" for b in range(2, 9)))
            size = Table(
                layers,
                options,
                np.outer(params, range(2, 9)),
                "bit",
                "size",
                fixed=8 * ends if kind == "QAT" else 0,
            )
            yield name, size, [b - 2 for b in said["bits"]], said


def _rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


class Gguf:
    """A model's tensors: bytes of each at each type, damage where it was measured."""

    def __init__(self, shared: Path, model: str) -> None:
        folder = shared / "oracles/gguf_tool_suite"
        given = read(folder / f"tensors/{model}.json")
        self.elements = sum(tensor["elements"] for tensor in given["tensors"])
        self.names = [tensor["name"] for tensor in given["tensors"]]
        rows = _rows(folder / f"sens/{model}.kld.csv")
        scored = dict(next(zip(rows[0], row, strict=True) for row in rows if row[0] == "iq1_kt"))
        curve = _rows(folder / f"group0/{model}.kld_results.csv")[1:]
        whole = {name: float(damage) for name, damage in curve}
        self.types = sorted(name for name in given["bytes_by_qtype"] if name in whole)
        self.bytes = np.array([given["bytes_by_qtype"][name] for name in self.types]).T
        self.plain = np.array([4 * tensor["elements"] for tensor in given["tensors"]])
        self.scored = [place for place, name in enumerate(self.names) if name in scored]
        sensitivity = np.array([float(scored[self.names[place]]) for place in self.scored])
        relative = np.array([whole[name] for name in self.types]) / whole["iq1_kt"]
        layers = tuple(mp.Layer(self.names[place]) for place in self.scored)
        options = tuple(Option(label=name) for name in self.types)
        self.damage = Table(layers, options, np.outer(sensitivity, relative), "KL (nats)")
        self.size = Table(layers, options, self.bytes[self.scored], "byte", "size")

    def priced(self, rules: Sequence[Sequence[str]]) -> tuple[int, list[int]] | None:
        """Bytes of the whole model by a recipe, and the type of each scored tensor."""
        read_rules = [(re.compile(pattern), kind) for pattern, kind in rules]
        kinds = [next((k for p, k in read_rules if p.search(name)), None) for name in self.names]
        if None in kinds:
            return None
        total = sum(
            int(self.plain[place] if kind == "f32" else self.bytes[place, self.types.index(kind)])
            for place, kind in enumerate(kinds)
            if kind is not None
        )
        return total, [self.types.index(str(kinds[place])) for place in self.scored]

    def within(self, limit: float) -> Problem:
        """Least damage of the scored tensors within so many bytes."""
        return Problem(self.damage, (Budget(self.size, limit),))


def dual(loss: Floats, cost: Floats, limit: float) -> float:
    """The Lagrangian bound of one budget, by halving the range of the multiplier."""

    def value(multiplier: float) -> tuple[float, float]:
        picked = (loss + multiplier * cost).argmin(axis=1)
        rows = np.arange(len(loss))
        used = float(cost[rows, picked].sum())
        return float(loss[rows, picked].sum()) + multiplier * (used - limit), used - limit

    low, high = 0.0, 1.0
    while value(high)[1] > 0:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle)[1] > 0 else (low, middle)
    return max(value(low)[0], value(high)[0])
