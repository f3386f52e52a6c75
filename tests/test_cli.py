"""The command line, as a shell would call it."""

import json
from pathlib import Path
from typing import Any

import pytest

import mpsearch as mp
from mpsearch.cli import main

PROBLEM: dict[str, Any] = {
    "schema": "mpsearch/problem/1",
    "layers": [{"name": "a", "params": 100, "macs": 900}, {"name": "b"}],
    "options": ["int4/int4", "int8/int8"],
    "loss": {"unit": "loss", "values": [[0.3, 0.1], [0.2, 0.05]]},
    "costs": {
        "size": {"unit": "byte", "values": [[50, 100], [20, 40]], "fixed": 10, "reference": 660}
    },
    "budgets": {"size": 120},
}


@pytest.fixture
def problem(tmp_path: Path) -> str:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(PROBLEM))
    return str(path)


def test_solve_writes_the_allocation(problem: str, tmp_path: Path) -> None:
    out = tmp_path / "bits.json"
    assert main(["solve", problem, "-o", str(out)]) == 0
    best = mp.Allocation.load(out)
    assert {n: str(o) for n, o in best.items()} == {"a": "int4/int4", "b": "int8/int8"}
    assert best.cost == {"size": 100}
    assert best.status is mp.Status.OPTIMAL


def test_json_is_one_object_on_standard_output(
    problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", problem, "--budget", "size=25%", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cost"]["size"] == {"value": 150, "unit": "byte", "limit": 165}


def test_an_infeasible_budget_exits_with_3_and_the_least_achievable(
    problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", problem, "--budget", "size=70", "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["least"] == {"size": 80}
    assert "size: 70 asked, 80 is the least achievable (byte)" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "nowhere.json"], "nowhere.json: cannot be read: No such file or directory"),
        (
            ["solve", "PROBLEM", "--budget", "latency=3"],
            "no cost is named 'latency'; there are: size",
        ),
        (["solve", "PROBLEM", "--budget", "size"], "got 'size'; wanted NAME=VALUE"),
        (["solve", "PROBLEM", "--solver", "magic"], "nothing in solvers is named 'magic'"),
        (
            ["solve", "PROBLEM", "-o", "no/such/folder/x.json"],
            "cannot write 'no/such/folder/x.json'",
        ),
        (["frontier", "PROBLEM", "--cost", "time"], "no cost is named 'time'; there are: size"),
        (["show", "PROBLEM.txt"], "cannot be read"),
        (["search", "nothing.py", "--options", "w4a8"], "no task is at 'nothing.py'"),
        (["sensitivity", "demo:none", "--options", "w4a8"], "nothing in networks is named 'none'"),
        (["sensitivity", "hf:x", "--options", "w4a8"], "give --text FILE"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(
    arguments: list[str], message: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([problem if a == "PROBLEM" else a for a in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("mpsearch: ")
    assert captured.err.count("\n") == 1


def test_frontier_show_and_diff_read_what_was_written(
    problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front, one, two = (str(tmp_path / name) for name in ("front.json", "one.json", "two.json"))
    assert main(["frontier", problem, "-o", front]) == 0
    assert [p["cost"]["size"] for p in json.loads(Path(front).read_text())["points"]] == [
        80,
        100,
        130,
        150,
    ]
    main(["solve", problem, "-o", one])
    main(["solve", problem, "--budget", "size=150", "-o", two])
    capsys.readouterr()
    for file in (problem, front, one):
        assert main(["show", file]) == 0
    assert "proven optimal" in capsys.readouterr().out
    assert main(["diff", one, two, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == {"a": ["int4/int4", "int8/int8"]}


def test_export_writes_torchao_s_words(
    problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["solve", problem, "-o", str(tmp_path / "bits.json")])
    capsys.readouterr()
    assert main(["export", str(tmp_path / "bits.json"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["a"]["weight_dtype"] == "torch.int4"
    assert written["a"]["activation_dtype"] == "torch.uint4"


@pytest.mark.parametrize(
    "kind", ["sensitivity", "solvers", "hwmodels", "formats", "exporters", "networks"]
)
def test_list_names_what_there_is(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 0


def test_list_says_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "devices"]) == 0
    assert capsys.readouterr().out == "no devices in this version\n"


def test_ctrl_c_exits_with_130(
    problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpsearch.pipeline.solve", stop)
    assert main(["solve", problem]) == 130
    assert "interrupted" in capsys.readouterr().err
