"""Reports to draw: a plain one, and one for each way a report can be unusual."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.allocation import Allocation, Baseline, Figure
from mpsearch.pareto import Frontier, Point
from mpsearch.report.data import Report, Run

Build = Callable[..., Report]
HOSTILE = '<script>alert("1")</script>&\x00\x1b[2J\ud800\u202e'


def build(
    names: Sequence[str] = ("stem", "blocks.0.fc1", "blocks.0.fc2", "head"),
    options: Sequence[str] = ("w2a8", "w4a8", "w8a8"),
    *,
    values: Any = None,
    measured: bool = True,
    unit: str = "KL (nats)",
    **changes: Any,
) -> Report:
    """A report on a made-up network."""
    choices = tuple(mp.Option.read(name) for name in options)
    rng = np.random.default_rng(0)
    layers = tuple(mp.Layer(n, params=10 * (i + 1)) for i, n in enumerate(names))
    shape = (len(layers), len(choices))
    losses = np.sort(rng.exponential(size=shape), axis=1)[:, ::-1] * [
        10.0**-k for k in range(shape[1])
    ]
    table = mp.Table(
        layers,
        choices,
        losses if values is None else np.broadcast_to(values, shape),
        unit,
        stderr=np.full(shape, 0.001),
    )
    points = []
    for k in range(len(choices)):
        picked = (k,) * len(layers)
        cost = {"size": 1000.0 * (k + 1)}
        points.append(Point(picked, table.total(picked), table.total(picked) - 1e-3, cost))
    front = Frontier(layers, choices, unit, tuple(points), {"size": "byte"})
    middle = len(choices) // 2
    chosen = {
        layer.name: choices[min(middle + (i % 2), len(choices) - 1)]
        for i, layer in enumerate(layers)
    }
    mine = points[middle].loss * 0.9
    best = Baseline(
        dict.fromkeys(chosen, choices[middle]),
        points[middle].loss,
        points[middle].cost,
        choices[middle],
    )
    allocation = Allocation(
        chosen,
        {name: (name,) for name in chosen},
        mine,
        unit,
        mine,
        mp.Status.OPTIMAL,
        {"size": Figure(1000.0 * (middle + 1), "byte", 1000.0 * (middle + 1) + 10)},
        {"ranges": "mse", "corrections": ["moments"]},
        best,
        measured={"kl": mine, "float": {"metrics": {"top1": 0.97}}} if measured else None,
        provenance={"seed": 0},
    )

    def run(name: str, cost: float, loss: float) -> Run:
        if not measured:
            return Run(name, cost, loss)
        return Run(name, cost, loss, loss * 1.1, abs(loss) * 0.05, {"top1": 0.9})

    uniform = [
        run(f"uniform {o}", p.cost["size"], p.loss) for o, p in zip(choices, points, strict=True)
    ]
    report = Report(
        "a network",
        allocation,
        front,
        "size",
        table,
        tuple(run(f"point {i}", p.cost["size"], p.loss) for i, p in enumerate(points)),
        tuple(uniform),
        (
            run("this allocation", 1000.0 * (middle + 1), mine),
            run("type template", 2500.0, mine * 1.2),
        ),
        {"command": "mpsearch demo"},
    )
    return replace(report, **changes)


def masked(report: Report) -> Report:
    """The report with options that some layers may not take."""
    assert report.loss is not None
    allowed = np.ones(report.loss.values.shape, bool)
    allowed[0, 0] = allowed[1, :2] = False
    return replace(report, loss=replace(report.loss, allowed=allowed))


UNUSUAL: dict[str, Callable[[], Report]] = {
    "plain": build,
    "only predicted": lambda: build(measured=False),
    "one layer, one option": lambda: build(["only"], ["w4a8"]),
    "no frontier": lambda: build(frontier=None, points=()),
    "no table": lambda: build(loss=None),
    "no runs": lambda: build(points=(), uniform=(), others=()),
    "nothing but the allocation": lambda: build(
        frontier=None, loss=None, points=(), uniform=(), others=(), facts={}, cost="latency"
    ),
    "all losses zero": lambda: build(values=0.0),
    "negative losses": lambda: build(values=[[-1.0, -2.0, -3.0]]),
    "losses of both signs": lambda: build(values=[[3.0, 0.0, -1e-6]]),
    "tiny and huge losses": lambda: build(values=[[1e30, 1.0, 1e-30]]),
    "masked options": lambda: masked(build()),
    "labels without formats": lambda: build(options=["Q3_K", "Q4_K", "Q6_K"]),
    "other roles": lambda: build(options=["k:int2/v:int2", "k:int4/v:int2", "k:int8/v:int4"]),
    "unquantized options": lambda: build(options=["w4a16", "w8a16", "w16a16"]),
    "300 layers": lambda: build([f"blocks.{i // 7}.part{i % 7}" for i in range(300)]),
    "300 layers without blocks": lambda: build([f"layer{i}" for i in range(300)]),
    "more layers than are drawn": lambda: build([str(i) for i in range(1200)]),
    "hostile names": lambda: build(
        [HOSTILE + str(i) for i in range(4)],
        [HOSTILE, "Q4_K", "Q8_0"],
        unit=HOSTILE,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE},
    ),
    "long names": lambda: build([f"{'a_very_long_module.' * 9}{i}.weight" for i in range(4)]),
    "no bound": lambda: without_bound(build()),
    "not finite": lambda: build(
        points=(
            Run(
                "point 0", 1000.0, float("nan"), float("inf"), float("nan"), {"top1": float("nan")}
            ),
        )
    ),
}


def without_bound(report: Report) -> Report:
    """The report of a solver that proves nothing."""
    front = report.frontier
    assert front is not None
    points = tuple(replace(point, bound=-np.inf) for point in front.points)
    allocation = replace(report.allocation, bound=-np.inf, status=mp.Status.FEASIBLE)
    return replace(report, frontier=replace(front, points=points), allocation=allocation)


@pytest.fixture(params=UNUSUAL)
def unusual(request: pytest.FixtureRequest) -> Report:
    """Each unusual report in turn."""
    return UNUSUAL[request.param]()


@pytest.fixture(scope="session")
def new_report() -> Build:
    """What builds a report, with changes where they are given."""
    return build


@pytest.fixture(scope="session")
def every_unusual() -> dict[str, Report]:
    """All unusual reports by name."""
    return {name: made() for name, made in UNUSUAL.items()}
