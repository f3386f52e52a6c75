"""Splits of a budget beside every choice tried, MixDQ's published bits, and what is refused."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

import mpsearch as mp
from mpsearch.problem import Budget, Constraint, Interaction, Problem
from mpsearch.solvers import Exhaustive
from mpsearch.split_budget import ACTIVATIONS, WEIGHTS, Grid, Split, split
from mpsearch.sweep import Sweep
from mpsearch.tables import Mask, Stages, Table

OPTIONS = mp.options("w2a16", "w4a16", "w8a16")
GROUPS = {"content": ["l0", "l1"], "quality": ["l2", "l3", "l4"]}


def _problem(seed: int = 0, limit: float = 0.5, **changes: Any) -> Problem:
    """Five layers; the limit is a share of the way from the cheapest to the dearest."""
    rng = np.random.default_rng(seed)
    layers = tuple(mp.Layer(f"l{i}", int(n)) for i, n in enumerate(rng.integers(1, 9, 5)))
    loss = np.sort(rng.exponential(size=(5, 3)))[:, ::-1] * 3.0 ** rng.integers(3, size=(5, 1))
    size = np.outer([layer.params for layer in layers], [2, 4, 8]) + rng.integers(3, size=(5, 3))
    table = Table(layers, OPTIONS, size, "bit", "size", fixed=7)
    most = 7 + math.floor(size[:, 0].sum() + limit * (size[:, 2] - size[:, 0]).sum())
    return replace(Problem(Table(layers, OPTIONS, loss, "KL"), (Budget(table, most),)), **changes)


def _every(problem: Problem) -> Iterator[tuple[int, ...]]:
    rows, columns = problem.loss.values.shape
    return filter(problem.feasible, itertools.product(range(columns), repeat=rows))


def _picks(problem: Problem, allocation: mp.Allocation) -> tuple[int, ...]:
    return tuple(problem.loss.options.index(option) for option in allocation.values())


def _spent(problem: Problem, choice: Sequence[int], rows: Sequence[int]) -> int:
    (cost, *_) = problem.costs
    assert isinstance(cost, Table)
    return int(sum(cost.values[row, choice[row]] for row in rows))


def _rows(problem: Problem, group: str) -> list[int]:
    return [row for row, layer in enumerate(problem.loss.layers) if layer.name in GROUPS[group]]


def _elements(problem: Problem, group: str) -> int:
    return sum(problem.loss.layers[row].params for row in _rows(problem, group))


@st.composite
def problems(draw: DrawFn) -> Problem:
    problem = _problem(draw(st.integers(0, 1 << 16)), draw(st.sampled_from([0.3, 0.5, 0.9])))
    if draw(st.booleans()):
        mask = np.ones((5, 3), bool)
        mask[draw(st.integers(0, 4)), draw(st.integers(0, 2))] = False
        problem = replace(problem, loss=replace(problem.loss, allowed=mask))
    return replace(problem, ties=((2, 4),)) if draw(st.booleans()) else problem


grids = st.builds(
    Grid,
    below=st.sampled_from([0.0, 0.5, 2.0]),
    averages=st.integers(1, 3),
    ratios=st.lists(st.floats(0.4, 2.0), min_size=1, max_size=3).map(tuple),
    band=st.sampled_from([None, 0.3, 1.0]),
)


@settings(max_examples=40)
@given(problems(), grids, st.sampled_from(["auto", Exhaustive()]))
def test_each_candidate_is_the_best_of_each_group_at_its_average(
    problem: Problem, grid: Grid, solver: Any
) -> None:
    try:
        found = split(problem, groups=GROUPS, grid=grid, solver=solver)
    except ValueError as reason:
        assert "none of the grid's" in str(reason)  # noqa: PT017
        return
    limit = problem.budgets[0].limit
    for candidate in found.candidates:
        choice = _picks(problem, candidate.allocation)
        assert problem.feasible(choice)
        assert candidate.allocation.cost["size"] <= limit
        for group, average in candidate.averages.items():
            rows, count = _rows(problem, group), _elements(problem, group)
            loss = sum(problem.loss.values[row, choice[row]] for row in rows)
            off = grid.band or 0
            low = -math.inf if grid.band is None else (average - off) * count - 1e-9
            free = replace(problem, budgets=(Budget(problem.budgets[0].cost, 10**6),))
            losses = [
                sum(problem.loss.values[row, other[row]] for row in rows)
                for other in _every(free)
                if low <= _spent(problem, other, rows) <= (average + off) * count + 1e-9
            ]
            assert loss == pytest.approx(min(losses), rel=1e-12)
    assert found.allocation.cost["size"] <= limit
    scores = [candidate.objective for candidate in found.candidates]
    assert found.allocation.provenance["objective"] <= min(scores)
    best = min(problem.total(choice) for choice in _every(problem))
    assert found.allocation.bound <= best * (1 + 1e-12) <= found.allocation.loss * (1 + 1e-9)


@settings(max_examples=30)
@given(problems())
def test_is_the_joint_optimum_where_the_grid_has_its_split(problem: Problem) -> None:
    best = min(_every(problem), key=problem.total)
    spent = {g: _spent(problem, best, _rows(problem, g)) / _elements(problem, g) for g in GROUPS}
    total = sum(layer.params for layer in problem.loss.layers)
    target = (problem.budgets[0].limit - 7) / total
    used = sum(_spent(problem, best, _rows(problem, g)) for g in GROUPS) / total
    ratio = spent["content"] / spent["quality"]
    for solver in ("auto", Exhaustive()):
        grid = Grid(below=target - used, averages=2, ratios=(0.7, ratio, 1.3))
        found = split(problem, groups=GROUPS, grid=grid, solver=solver)
        assert found.allocation.loss == pytest.approx(problem.total(best), rel=1e-12)
        assert found.allocation.status is mp.Status.OPTIMAL
        assert problem.feasible(_picks(problem, found.allocation))


def test_mixdq_s_grid_is_ten_averages_by_ten_ratios_for_weights_and_twenty_for_inputs() -> None:
    for grid, low, high, count in ((WEIGHTS, 0.46, 1.36, 10), (ACTIVATIONS, 0.94, 1.09, 20)):
        points = list(grid.points(4.0, [300.0, 100.0]))
        r = 3.0
        wanted = [
            (k * b * (1 + r) / (k * r + 1), b * (1 + r) / (k * r + 1))
            for b in np.linspace(3.7, 4.0, 10)
            for k in np.linspace(low, high, count)
        ]
        assert len(points) == 10 * count
        np.testing.assert_allclose(points, wanted, rtol=1e-14)
        assert grid.band == 0.02


def test_averages_of_more_groups_take_every_ratio_and_add_up() -> None:
    grid = Grid(below=1.0, averages=3, ratios=(0.5, 1.0, 2.0))
    elements = [10.0, 20.0, 30.0]
    points = list(grid.points(5.0, elements))
    assert len(points) == 3 * 3 * 3
    means = sorted({round(float(np.dot(point, elements)) / 60, 9) for point in points})
    assert means == [4.0, 4.5, 5.0]
    assert {round(point[0] / point[2], 9) for point in points} == {0.5, 1.0, 2.0}
    assert list(grid.points(5.0, [7.0])) == [(4.0,), (4.5,), (5.0,)]
    assert list(Grid(averages=1, ratios=(2.0,)).points(6.0, [1.0, 1.0])) == [(8.0, 4.0)]


def test_points_outside_what_a_group_s_options_can_cost_are_left_out() -> None:
    layers = (mp.Layer("a", 100), mp.Layer("b", 100))
    size = Table(layers, OPTIONS, np.outer([100, 100], [2, 4, 8]), "bit", "size")
    mask = np.array([[True, True, True], [False, True, True]])
    loss = Table(layers, OPTIONS, np.array([[3.0, 2, 0], [0, 2, 0]]), "KL", allowed=mask)
    problem = Problem(loss, (Budget(size, 1200),))
    grid = Grid(averages=1, ratios=(0.4, 0.5, 1.0, 2.0, 2.2))
    found = split(problem, groups={"content": ["a"], "quality": ["b"]}, grid=grid)
    assert found.points == 5
    kept = [tuple(each.averages.values()) for each in found.candidates]
    assert kept == [(4.0, 8.0), (6.0, 6.0), (8.0, 4.0)]


def test_a_band_is_kept_on_both_sides_and_never_leads_above_the_budget() -> None:
    layers = tuple(mp.Layer(f"l{i}", 10) for i in range(5))
    size = Table(layers, OPTIONS, np.outer([10] * 5, [2, 4, 8]), "bit", "size")
    loss = Table(layers, OPTIONS, np.tile([0.0, 1.0, 2.0], (5, 1)), "KL")  # more bits lose more
    problem = Problem(loss, (Budget(size, 200),))
    (one,) = split(problem, groups=GROUPS, grid=Grid(averages=1, ratios=(1.0,))).candidates
    assert one.allocation.cost["size"] == 100
    banded = split(problem, groups=GROUPS, grid=Grid(averages=1, ratios=(1.0,), band=0.2))
    (one,) = banded.candidates
    assert one.allocation.cost["size"] == 200
    falling = replace(problem, loss=replace(loss, values=-loss.values))
    wide = Grid(averages=1, ratios=(1.0,), band=1.4)
    with pytest.raises(ValueError, match="none of the grid's 1 points has an answer within budget"):
        split(falling, groups=GROUPS, grid=wide)  # each group may, both together may not


def _noted(problem: Problem, units: Sequence[str]) -> Problem:
    inside = [
        np.isin([layer.name for layer in problem.loss.layers], names) for names in GROUPS.values()
    ]
    notes: dict[str, Mask] = {
        f"group {group!r}: {unit}": where[:, None] & problem.loss.allowed
        for group, unit, where in zip(GROUPS, units, inside, strict=True)
    }
    return replace(problem, loss=replace(problem.loss, notes=notes))


WIDE = Grid(below=1.0, averages=3, ratios=(0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0))


def test_groups_of_different_units_are_compared_by_their_shares_of_uniform_s_loss() -> None:
    problem = _noted(_problem(3, 0.45), ["SSIM", "dB"])
    found = split(problem, grid=WIDE)
    uniform = found.allocation.uniform
    assert uniform is not None
    assert len(found.candidates) > 2
    base = [problem.loss.options.index(o) for o in uniform.layers.values()]
    for candidate in found.candidates:
        choice = _picks(problem, candidate.allocation)
        score = 0.0
        for group in GROUPS:
            rows = _rows(problem, group)
            values = problem.loss.values[rows]
            least = values.min(axis=1).sum()
            own, at = (sum(problem.loss.values[r, c[r]] for r in rows) for c in (choice, base))
            score += (own - least) / (at - least)
        assert candidate.objective == pytest.approx(score, rel=1e-12)
    scores = [candidate.objective for candidate in found.candidates]
    assert found.allocation.provenance["objective"] == min([*scores, 2.0])


def test_rescaling_or_shifting_a_group_s_metric_changes_no_answer() -> None:
    problem = _noted(_problem(3, 0.45), ["SSIM", "dB"])
    values = problem.loss.values.copy()
    rows = _rows(problem, "quality")
    values[rows] = 1000 * values[rows] - 50
    scaled = replace(problem, loss=replace(problem.loss, values=values))
    one, other = split(problem, grid=WIDE), split(scaled, grid=WIDE)
    assert one.allocation.layers == other.allocation.layers
    np.testing.assert_allclose(
        [c.objective for c in one.candidates], [c.objective for c in other.candidates]
    )
    same = split(_noted(_problem(3, 0.45), ["KL", "KL"]), grid=WIDE)
    assert all(c.objective == c.allocation.loss for c in same.candidates)


def test_a_group_that_is_at_its_least_is_measured_by_its_largest_loss() -> None:
    layers = tuple(mp.Layer(name, 10) for name in "abc")
    size = Table(layers, OPTIONS, np.outer([10] * 3, [2, 4, 8]), "bit", "size")
    values = np.array([[0.0, 2, 2], [3, 2.5, 0], [0, 0, 0]])
    where = np.eye(3, dtype=bool)[:, :, None] & np.ones(3, bool)
    notes = {f"group '{n}': in {n}": where[i] for i, n in enumerate("abc")}
    loss = Table(layers, OPTIONS, values, "mixed", notes=notes)
    problem = Problem(loss, (Budget(size, 120),))  # uniform w2a16 loses least
    (only,) = split(problem, grid=Grid(averages=1, ratios=(1.0,), band=0.0)).candidates
    assert only.objective == pytest.approx(2 / 2 + 2.5 / 3 + 0, rel=1e-12)


def test_a_judge_decides_and_is_asked_once_of_each_allocation() -> None:
    problem = _problem(5)
    asked: list[tuple[int, ...]] = []

    def judge(allocation: mp.Allocation) -> float:
        asked.append(_picks(problem, allocation))
        return -allocation.cost["size"]

    found = split(problem, groups=GROUPS, grid=WIDE, judge=judge)
    assert len(set(asked)) == len(asked) >= len(found.candidates)
    most = max(_spent(problem, choice, range(5)) + 7 for choice in asked)
    assert found.allocation.cost["size"] == most
    assert found.allocation.provenance["judged"] == "measured"
    assert split(problem, groups=GROUPS, grid=WIDE).allocation.provenance["judged"] == "predicted"


def test_what_was_judged_is_kept_when_it_is_stopped() -> None:
    problem, sweep = _problem(5), Sweep(study="stopped")
    asked: list[str] = []

    def judge(allocation: mp.Allocation) -> float:
        asked.append(repr(allocation.layers))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return allocation.loss**2

    with pytest.raises(KeyboardInterrupt):
        split(problem, groups=GROUPS, grid=WIDE, judge=judge, sweep=sweep)
    found = split(problem, groups=GROUPS, grid=WIDE, judge=judge, sweep=sweep)
    assert len(asked) == len(set(asked)) + 1  # only the one that was stopped
    whole = split(problem, groups=GROUPS, grid=WIDE, judge=lambda a: a.loss**2)
    assert found.allocation == whole.allocation


def test_is_never_worse_than_one_option_everywhere() -> None:
    problem = _problem(5)
    poor = Grid(averages=1, ratios=(2.5,))
    found = split(problem, groups=GROUPS, grid=poor)
    uniform = found.allocation.uniform
    assert uniform is not None
    assert found.allocation.loss <= uniform.loss
    only = split(
        problem,
        groups=GROUPS,
        grid=poor,
        judge=lambda a: float(len(set(a.layers.values()))),  # likes one option
    )
    assert len(set(only.allocation.layers.values())) == 1
    told = only.allocation.provenance["guard"]
    assert told == "uniform int4/fp16 is judged better than every split; it is returned"


def test_a_budget_on_a_maximum_holds_in_every_group() -> None:
    problem = _problem(5, 1.0)
    slow = Table(
        problem.loss.layers,
        OPTIONS,
        np.array([[1, 2, 3 + i % 2] for i in range(5)]),
        "ms",
        "time",
        reduce="max",
    )
    held = replace(problem, budgets=(*problem.budgets, Budget(slow, 3)))
    found = split(held, groups=GROUPS, grid=WIDE)
    for candidate in found.candidates:
        assert candidate.allocation.cost["time"] <= 3
    assert found.allocation.cost["time"] <= 3


def test_ties_within_a_group_hold() -> None:
    layers = tuple(mp.Layer(name, 10) for name in "abc")
    size = Table(layers, OPTIONS, np.outer([10] * 3, [2, 4, 8]), "bit", "size")
    loss = Table(layers, OPTIONS, np.array([[3.0, 0, 0], [0, 1, 1], [1, 0, 0]]), "KL")
    problem = Problem(loss, (Budget(size, 120),), ties=((0, 1),))
    groups = {"x": ["a", "b"], "y": ["c"]}
    (only,) = split(problem, groups=groups, grid=Grid(averages=1, ratios=(1.0,))).candidates
    assert _picks(problem, only.allocation) == (1, 1, 1)


def test_groups_come_from_the_notes_of_a_table_that_was_saved(tmp_path: Path) -> None:
    problem = _noted(_problem(3), ["SSIM (1 - x)", "dB 'short': of 120"])
    other = {"some entries are slow": problem.loss.allowed}
    problem = replace(problem, loss=replace(problem.loss, notes={**problem.loss.notes, **other}))
    mp.save_table(problem.loss, tmp_path / "t.json")
    read = mp.load_table(tmp_path / "t.json")
    assert isinstance(read, Table)
    again = split(read, {problem.budgets[0].cost: problem.budgets[0].limit}, grid=WIDE)
    assert again.allocation.layers == split(problem, grid=WIDE).allocation.layers
    assert list(again.candidates[0].averages) == ["content", "quality"]


def test_elements_and_units_say_what_averages_are_of() -> None:
    problem = _problem(5)
    grid = Grid(averages=1, ratios=(0.8, 1.0))
    bits = split(problem, groups=GROUPS, grid=grid)
    cost = problem.budgets[0].cost
    assert isinstance(cost, Table)
    eighth = replace(cost, values=cost.values / 8, fixed=cost.fixed / 8, unit="byte")
    in_bytes = Problem(problem.loss, (Budget(eighth, problem.budgets[0].limit / 8),))
    assert _averages(split(in_bytes, groups=GROUPS, grid=grid)) == _averages(bits)
    counts = [layer.params for layer in problem.loss.layers]
    named = Problem(problem.loss, (Budget(replace(cost, unit="us"), problem.budgets[0].limit),))
    found = split(named, groups=GROUPS, grid=grid, elements=counts)
    assert _averages(found) == _averages(bits)
    half = split(problem, groups=GROUPS, grid=grid, elements=[2 * n for n in counts])
    np.testing.assert_allclose(2 * np.array(_averages(half)), _averages(bits))


def _averages(found: Split) -> list[list[float]]:
    return [list(candidate.averages.values()) for candidate in found.candidates]


def test_needs_no_torch() -> None:
    code = """
import sys, numpy as np, mpsearch as mp
from mpsearch.split_budget import Grid, split
layers, options = (mp.Layer("a", 4), mp.Layer("b", 4)), mp.options("w2a16", "w4a16")
loss = mp.Table(layers, options, [[2.0, 1.0], [4.0, 0.0]], "KL")
size = mp.Table(layers, options, np.array([[8, 16], [8, 16]]), "bit", "size")
found = split(loss, {size: 24}, {"x": ["a"], "y": ["b"]}, grid=Grid(0, 1, (0.5,)), judge=lambda a: a.loss)
print(found.allocation.loss, "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["2.0", "False"]


def _mixdq(shared: Path, mean: str) -> tuple[Problem, list[int]]:
    """All 794 layers, content judged by SSIM and quality by SQNR, at what MixDQ published."""
    folder = shared / "oracles/mixdq"
    tables = json.loads((folder / "sdxl_turbo_sensitivity.json").read_text())
    published = json.loads((folder / "sdxl_turbo_final_configs.json").read_text())
    scores, ratio = tables["sensitivity"], tables["ratio"]["weight"]
    names = list(scores["weight_sqnr"])
    content = np.array([name in scores["weight_ssim"] for name in names])
    score = np.array(
        [
            scores["weight_ssim" if c else "weight_sqnr"][n]
            for n, c in zip(names, content, strict=True)
        ]
    )
    layers = tuple(mp.Layer(name, round(ratio[name] * 11520)) for name in names)
    mask = np.ones((len(names), 3), bool)
    mask[~content, 0] = False  # of the bits 2, 4 and 8
    notes = {
        "group 'content': SSIM": mask & content[:, None],
        "group 'quality': SQNR": mask & ~content[:, None],
    }
    loss = Table(layers, OPTIONS, -score, "rank score", allowed=mask, notes=notes)
    size = Table(
        layers, OPTIONS, np.outer([layer.params for layer in layers], [2, 4, 8]), "bit", "size"
    )
    answer = [published[f"weight_{mean}"][name] for name in names]
    limit = sum(layer.params * width for layer, width in zip(layers, answer, strict=True))
    return Problem(loss, (Budget(size, limit),)), answer


@pytest.mark.shared
@pytest.mark.parametrize("mean", ["3.66", "4.00"])
def test_mixdq_s_published_bits_come_out_at_the_ratio_they_have(mean: str, shared: Path) -> None:
    problem, published = _mixdq(shared, mean)
    params = np.array([layer.params for layer in problem.loss.layers])
    content, quality = (where.any(axis=1) for where in problem.loss.notes.values())
    first, last = (
        np.average(np.array(published)[g], weights=params[g]) for g in (content, quality)
    )
    grid = Grid(below=0.0, averages=1, ratios=(float(first / last),))
    (only,) = split(problem, grid=grid).candidates
    assert [option.weight.bits for option in only.allocation.values()] == published


@pytest.mark.shared
def test_mixdq_s_grid_keeps_its_band_on_its_network(shared: Path) -> None:
    problem, _ = _mixdq(shared, "4.00")
    found = split(problem, grid=replace(WEIGHTS, averages=2))
    params = np.array([layer.params for layer in problem.loss.layers])
    assert found.points == 20
    assert len(found.candidates) > 2
    for candidate in found.candidates:
        assert candidate.allocation.cost["size"] <= problem.budgets[0].limit
        bits = np.array([option.weight.bits for option in candidate.allocation.values()])
        places = zip(problem.loss.notes.values(), candidate.averages.values(), strict=True)
        for where, wanted in places:
            inside = where.any(axis=1)
            spent = np.average(bits[inside], weights=params[inside])
            assert spent == pytest.approx(wanted, abs=0.02)
        assert 4 <= candidate.averages["quality"] <= 8
        assert 2 <= candidate.averages["content"] <= 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": None}, "the loss notes no groups; give groups, such as"),
        ({"groups": {"a": ["l0", "x"]}}, "the groups name layer 'x', which the loss does not have"),
        ({"groups": {"a": ["l0", "l1", "l2", "l4"]}}, "layer 'l3' is in 0 groups; put each layer"),
        ({"groups": GROUPS | {"c": ["l4"]}}, "layer 'l4' is in 2 groups; put each layer of"),
        (
            {"elements": [1, 2, 3]},
            r"over \[1.0, 2.0, 3.0\] elements mean nothing; give elements, 5",
        ),
        ({"elements": [1, 2, 3, 4, 0]}, "elements mean nothing; give elements, 5 positive"),
        ({"grid": Grid(0, 1, (9.0,))}, r"none of the grid's 1 points .* 'size', an average of 5"),
        ({"judge": lambda _: math.nan}, "the judge said nan; wanted a finite number, lower is"),
    ],
)
def test_what_cannot_be_split_is_an_error(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"groups": GROUPS, "grid": WIDE, **changes}
    with pytest.raises(ValueError, match=message):
        split(_problem(5), **given)


def _second(problem: Problem) -> tuple[Budget, ...]:
    cost = problem.budgets[0].cost
    assert isinstance(cost, Table)
    return (*problem.budgets, Budget(replace(cost, name="other"), 10**6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"budgets": ()}, "the budgets to split are none; wanted one, on a cost that"),
        (lambda p: {"budgets": _second(p)}, "the budgets to split are 'size', 'other'; wanted one"),
        (
            lambda p: {
                "budgets": (
                    Budget(Stages(p.loss.layers, OPTIONS, (((0, 0, 1),),), "byte", "sram"), 9),
                )
            },
            "the budgets to split are 'sram'; wanted one",
        ),
        (
            lambda _: {"constraints": (Constraint("c", ((0, 0, 1),), most=1),)},
            "takes no interactions and no side constraints; leave them out, or use solve",
        ),
        (lambda _: {"interactions": (Interaction(0, 0, 1, 0, 1.0),)}, "takes no interactions"),
        (lambda _: {"ties": ((1, 2),)}, "layers 'l1', 'l2' are tied, but not in one group; put"),
        (
            lambda p: {
                "budgets": (Budget(replace(p.budgets[0].cost, unit="ms"), p.budgets[0].limit),),
                "costs": (),
            },
            "averages of 'size' in ms over .* mean nothing; give elements",
        ),
    ],
)
def test_problems_that_cannot_be_split_are_errors(change: Any, message: str) -> None:
    problem = _problem(5)
    with pytest.raises(ValueError, match=message):
        split(replace(problem, **({"costs": ()} | change(problem))), groups=GROUPS, grid=WIDE)


def test_a_budget_nothing_keeps_is_infeasible() -> None:
    with pytest.raises(mp.Infeasible, match="size"):
        split(_problem(5, -0.5), groups=GROUPS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"below": -1.0}, r"Grid\(below=-1.0, .* is no grid; wanted below and band from 0 up, 1"),
        ({"below": math.nan}, "is no grid"),
        ({"averages": 0}, "averages=0, .* 1 average or more, and 1 positive ratio or more"),
        ({"ratios": ()}, "is no grid"),
        ({"ratios": (1.0, 0.0)}, "is no grid"),
        ({"band": -0.1}, "is no grid"),
        ({"band": math.inf}, "is no grid"),
    ],
)
def test_a_grid_that_is_none_is_an_error(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**values)
