"""Published tables of vision networks as problems, and the allocations published for them.

Each function reads a folder of the oracles, whose README says where the numbers come from.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mpsearch as mp
from mpsearch.problem import Budget, Problem
from mpsearch.tables import Table

HAWQ_KINDS, HAWQ_SHARES = ("modelsize", "bops", "latency"), (0.25, 0.5, 0.75)
MIXDQ_GROUPS = {"content": (2, 4, 8), "quality": (4, 8)}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def bits(problem: Problem, choice: Sequence[int]) -> list[int]:
    """The bits of the weights of each layer."""
    return [problem.loss.options[column].weight.bits for column in choice]


def hawq(shared: Path, network: str, kind: str, share: float) -> Problem:
    """HAWQ-V3's program: 4 or 8 bits, first and last layer left out.

    A layer's loss is trace times squared weight error; the budget lies ``share`` of the way from
    all at 4 bits to all at 8. Bit operations are MACs / (32 / bits)^2, a latency is measured.
    """
    tables = read(shared / "oracles/hawq/ilp_tables.json")[network]
    layers = tuple(mp.Layer(name) for name in tables["layer_names"])
    options = mp.options("w4a4", "w8a8")
    trace = np.array(tables["Hutchinson_trace"])
    errors = [tables[f"delta_weights_{bits}bit_square"] for bits in (4, 8)]
    cost = {
        "modelsize": np.outer(tables["parameters"], [4, 8]),
        "bops": np.outer(tables["macs"], [4 * 4, 8 * 8]),
        "latency": np.transpose([tables["latency_int4"], tables["latency_int8"]]),
    }[kind]
    priced = Table(layers, options, cost, "unit", kind)
    low, high = (priced.total([column] * len(layers)) for column in (0, 1))
    return Problem(
        Table(layers, options, (trace * errors).T, "loss"),
        (Budget(priced, low + share * (high - low)),),
        ties=tuple(map(tuple, tables["tied_pairs"])),
    )


def mixdq(shared: Path, mean: str, group: str) -> tuple[Problem, list[int]]:
    """MixDQ's program for a group of SDXL-Turbo's layers at the size of what it published.

    The content group (names with ff or attn2) is scored by SSIM at 2, 4 or 8 bits, the quality
    group by SQNR at 4 or 8: both the higher the better, so their negative is the loss.
    """
    tables = read(shared / "oracles/mixdq/sdxl_turbo_sensitivity.json")
    published = read(shared / "oracles/mixdq/sdxl_turbo_final_configs.json")[f"weight_{mean}"]
    metric = {"content": "weight_ssim", "quality": "weight_sqnr"}[group]
    names = [
        name
        for name in tables["sensitivity"]["weight_sqnr"]
        if ("ff" in name or "attn2" in name) is (group == "content")
    ]
    widths = MIXDQ_GROUPS[group]
    columns = [tables["bits"].index(width) for width in widths]
    score = np.array([tables["sensitivity"][metric][name] for name in names])[:, columns]
    weights = [round(tables["ratio"]["weight"][name] * 11520) for name in names]
    layers = tuple(mp.Layer(name) for name in names)
    options = mp.options(*(f"w{width}a16" for width in widths))
    size = Table(layers, options, np.outer(weights, widths), "bit", "size")
    answer = [published[name] for name in names]
    limit = sum(n * width for n, width in zip(weights, answer, strict=True))
    return Problem(Table(layers, options, -score, "score"), (Budget(size, limit),)), answer


def limpq(shared: Path) -> Problem:
    """LIMPQ's program for ResNet-50: weights and activations at 2 to 6 bits, jointly.

    Bit operations at most those of 3 by 4 bits, weights at most 1 / 12.2 of 32 bits with the first
    and the last layer at 8. What is worse at more bits than at one less may not be taken.
    """
    given = read(shared / "oracles/limpq/resnet50_indicators.json")
    names, widths = given["layer_name"], sorted(given["bits"])
    scores = [
        np.array([[given[role][name][str(width)] for width in widths] for name in names])
        for role in ("weight", "act")
    ]
    rises = [np.pad(np.diff(score, axis=1) > 0, ((0, 0), (1, 0))) for score in scores]
    weight, act = ([*np.indices((len(widths),) * 2).reshape(2, -1)][role] for role in (0, 1))
    w, a = np.array(widths)[weight], np.array(widths)[act]
    layers = tuple(mp.Layer(name) for name in names)
    options = mp.options(*(f"w{one}a{two}" for one, two in zip(w, a, strict=True)))
    macs = np.array([given["macs_as_in_repo"][name] for name in names])
    params = np.array([given["params"][name] for name in names])
    ends = given["first_layer"]["params"] + given["fc"]["params"]
    loss = Table(
        layers,
        options,
        scores[1][:, act] + 2 * scores[0][:, weight],
        "indicator",
        allowed=~(rises[0][:, weight] | rises[1][:, act]),
    )
    work = Table(layers, options, macs[:, None] * (w * a), "bit operation", "bitops")
    size = Table(layers, options, params[:, None] * w, "bit", "size", fixed=8 * ends)
    total = int(params.sum()) + ends
    budgets = (
        Budget(work, 12 * work.values[:, 0].sum().item() / 4),
        Budget(size, 32 * total / 12.2),
    )
    return Problem(loss, budgets)


def calibtip(shared: Path, network: str, share: str) -> tuple[Problem, list[int]]:
    """A problem that CalibTIP's layers at 4 bits solve, whatever their losses were.

    Its own losses are not public; here those it took to 4 bits lose a little and all others more
    than those together, so that they are the answer if no fewer of them are enough.
    """
    given = read(shared / "oracles/calibtip/published_int4_layers.json")
    taken = set(given["int4_layers_by_compression"][network][share])
    outside = {"features.0.0", "features.18.0", "classifier.1"}
    numel = {n: size for n, size in given["weight_numel"][network].items() if n not in outside}
    layers, options = tuple(mp.Layer(name) for name in numel), mp.options("w4a4", "w8a8")
    size = Table(layers, options, np.outer(list(numel.values()), [4, 8]), "bit", "size")
    loss = [[1 if name in taken else 1000, 0] for name in numel]
    limit = 32 * float(share) * sum(numel.values())
    problem = Problem(Table(layers, options, np.array(loss), "loss"), (Budget(size, limit),))
    return problem, [4 if name in taken else 8 for name in numel]
