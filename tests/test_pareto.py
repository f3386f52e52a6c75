import importlib
import itertools
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import mpsearch as mp
from mpsearch.pareto import Frontier, Point, read_frontier
from mpsearch.reading import BadDocument, parse

LAYERS = (mp.Layer("a", 10), mp.Layer("b", 4))
OPTIONS = mp.options("w4a8", "w8a8")


def front(*points: Point, along: tuple[str, ...] = (), span: float = 1.0) -> Frontier:
    return Frontier(LAYERS, OPTIONS, "nats", points, {"size": "byte"}, span, along=along)


def point(
    loss: float, bound: float | None = None, between: float | None = None, **cost: Any
) -> Point:
    return Point((0, 1), loss, loss if bound is None else bound, cost, between)


def stairs() -> Frontier:
    return front(
        point(1.0, size=10),
        point(0.5, size=12),
        point(0.45, size=20),
        point(0.1, size=24, bound=0.05),
        point(0.0, size=30),
    )


def test_the_module_does_not_hide_the_function_of_the_same_purpose() -> None:
    importlib.import_module("mpsearch.pareto")
    assert callable(mp.frontier)
    assert mp.Frontier is Frontier


def test_at_gives_the_least_loss_within_what_is_given() -> None:
    found = stairs().at(size=23)
    assert (found.loss, found.cost) == (0.45, {"size": 20})
    assert found.figures["size"].limit == 23
    assert stairs().at(size=24).loss == 0.1
    assert stairs().at(size=1e9).loss == 0.0
    assert stairs().at().loss == 0.0


def test_at_keeps_integers_exactly_and_reals_to_the_tolerance_of_budgets() -> None:
    real = front(point(1.0, ms=0.1), point(0.5, ms=0.3))
    assert real.at(ms=0.3 * (1 - 1e-14)).loss == 0.5
    assert real.at(ms=0.3 * (1 - 1e-10)).loss == 1.0
    whole = front(point(1.0, size=1), point(0.5, size=10**16))
    assert whole.at(size=10**16 - 1).loss == 1.0


def test_at_holds_several_costs_together() -> None:
    both = front(point(1.0, size=1, ms=1.0), point(0.2, size=1, ms=9.0), point(0.5, size=5, ms=2.0))
    assert both.at(size=5, ms=2.0).loss == 0.5
    assert both.at(size=4, ms=2.0).loss == 1.0
    assert both.at(ms=10.0).loss == 0.2


def test_at_says_the_least_there_is() -> None:
    with pytest.raises(mp.Infeasible, match=r"size=9 \(the least is 10\); give larger") as caught:
        stairs().at(size=9)
    assert caught.value.least == {"size": 10}
    with pytest.raises(LookupError, match="no cost is named 'ms'; there are 'size'"):
        stairs().at(ms=9)
    with pytest.raises(mp.Infeasible, match="it has no points; give larger"):
        front().at()


def test_the_knee_lies_farthest_below_the_chord() -> None:
    assert stairs().knee().cost == {"size": 12}
    points = stairs().points
    ends = np.array([[10, 1.0], [30, 0.0]])
    across = (ends[1] - ends[0]) / [20, 1]
    away = [across[0] * (p.loss - 1.0) - across[1] * (p.cost["size"] - 10) / 20 for p in points]
    assert int(np.argmin(away)) == 1
    assert front(point(3.0, size=1)).knee().loss == 3.0
    with pytest.raises(ValueError, match="the frontier has no points; give looser budgets"):
        front().knee()


def test_the_knee_of_three_objectives_has_the_least_sum_of_shares() -> None:
    three = front(
        point(1.0, size=1, ms=5),
        point(0.0, size=3, ms=9),
        point(0.2, size=1.2, ms=6),
        along=("size", "ms"),
    )
    assert three.knee().loss == 0.2


def covered(values: Any, worst: Any) -> float:
    """The volume by counting cells of whole numbers."""
    cells = itertools.product(*(range(w) for w in worst))
    return sum(
        any(all(v <= c for v, c in zip(row, cell, strict=True)) for row in values) for cell in cells
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("costs", [("size",), ("size", "ms"), ("size", "ms", "mJ")])
def test_the_hypervolume_is_that_of_counted_cells(seed: int, costs: tuple[str, ...]) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, (8, 1 + len(costs)))
    made = front(
        *(point(float(r[0]), **dict(zip(costs, r[1:].tolist(), strict=True))) for r in values)
    )
    reference = dict.fromkeys(("loss", *costs), 5)
    assert made.hypervolume(reference) == covered(values, [5] * (1 + len(costs)))


def test_the_default_reference_is_the_worst_of_every_objective() -> None:
    assert stairs().hypervolume() == pytest.approx(8 * 0.5 + 4 * 0.55 + 6 * 0.9)
    assert front(point(1.0, size=1)).hypervolume() == 0.0
    with pytest.raises(ValueError, match="a reference names loss, size; got loss"):
        stairs().hypervolume({"loss": 1.0})


def test_costs_that_are_only_told_are_no_objectives() -> None:
    told = front(
        point(1.0, size=10, ms=3),
        point(0.5, size=12, ms=9),
        point(0.0, size=20, ms=1),
        along=("size",),
    )
    assert told.costs == ("size",)
    assert told.hypervolume({"loss": 1.0, "size": 20}) == 4.0
    assert told.between(0) == 0.5
    assert told.at(ms=2).loss == 0.0


def test_between_two_points_the_bound_of_the_dearer_holds_unless_more_is_proven() -> None:
    assert [stairs().between(i) for i in range(5)] == [0.5, 0.45, 0.05, 0.0, 0.0]
    assert stairs().between(-1) == 0.0
    more = front(point(1.0, size=10, between=0.9), point(0.5, size=12))
    assert more.between(0) == 0.9
    with pytest.raises(ValueError, match="along one cost; this frontier lies along size, ms"):
        front(point(1.0, size=1, ms=1)).between(0)
    with pytest.raises(IndexError):
        stairs().between(5)


def test_every_second_point_bounds_what_was_left_out_anew() -> None:
    some = stairs()[::2]
    assert [p.cost["size"] for p in some.points] == [10, 20, 30]
    assert [some.between(i) for i in range(3)] == [0.45, 0.0, 0.0]
    assert stairs()[1:3].points == stairs().points[1:3]


def test_a_picture_shows_the_stairs_and_no_other_network() -> None:
    picture = stairs().plot()
    ET.fromstring(picture)
    assert "0.45" in picture
    assert "this allocation" not in picture
    assert "size (B)" in picture
    assert 'width="300"' in stairs().plot("size", width=300, height=200)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    made = front(
        point(1.0, size=10, ms=3, between=0.6),
        point(0.5, size=12, ms=9, between=-math.inf),
        along=("size",),
    )
    made.save(tmp_path / "front.json")
    again = Frontier.load(tmp_path / "front.json")
    assert again.document() == made.document()
    assert again.along == ("size",)
    assert again.points == made.points
    schema = json.loads((Path(mp.__file__).parent / "schemas" / "frontier-1.json").read_text())
    jsonschema.validate(made.document(), schema)
    jsonschema.validate(stairs().document(), schema)
    assert "along" not in stairs().document()
    assert "between" not in stairs().document()["points"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"along": ["ms"]}, r"points\[0\].*a cost 'ms', which the frontier lies along"),
        ({"along": "size"}, "along"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    document = stairs().document() | change
    with pytest.raises(BadDocument, match=message):
        read_frontier(parse(json.dumps(document), "front.json"))


def test_points_out_of_order_are_refused_along_the_cost_they_lie_along() -> None:
    document = front(
        point(1.0, size=10, ms=3), point(0.5, size=9, ms=9), along=("size",)
    ).document()
    with pytest.raises(BadDocument, match="is beaten by the point before it"):
        read_frontier(parse(json.dumps(document), "front.json"))
    document["along"] = ["ms"]
    assert len(read_frontier(parse(json.dumps(document), "front.json"))) == 2
