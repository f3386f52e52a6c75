"""The command line, as a shell would call it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mpsearch as mp
from mpsearch import registry
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


def test_a_device_s_costs_are_written_one_file_each(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    line = ["cost", "demo:digits", "--options", "w4a8,w8a8", "--device", "stm32h743"]
    assert main([*line, "-o", str(out), "--json"]) == 0
    found = {path.name: mp.load_table(path) for path in sorted(tmp_path.glob("*.json"))}
    assert set(found) == {f"cost-{name}.json" for name in ("latency", "flash", "sram")}
    latency = found["cost-latency.json"]
    assert isinstance(latency, mp.Table)
    assert list(latency.notes) == ["takes the cycles of w8a8"]


def test_a_variant_is_named_after_a_colon(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["cost", "demo:digits", "--options", "w4a8", "--model", "bitops:nncf", "--json"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == "BitOps (NNCF)"


def test_an_unknown_device_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "demo:digits", "--options", "w4a8", "--device", "eniac"]) == 2
    assert "no device is named 'eniac'; there are a100, " in capsys.readouterr().err


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


def test_within_is_the_least_cost_for_a_loss(
    problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bits.json"
    line = ["solve", problem, "--within", "0.35", "--solver", "milp", "-o", str(out)]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "least size: 100 B, bound 100 B, for a loss of at most 0.35 (loss)" in said
    best = mp.Allocation.load(out)
    assert best.cost == {"size": 100}
    assert best.loss == pytest.approx(0.35)
    assert best.provenance["least"] == best.provenance["bound"] == 100
    assert main([*line, "--json", "--cost", "size"]) == 0
    assert json.loads(capsys.readouterr().out) == best.document()
    assert main(["solve", problem, "--within", "120%", "--solver", "milp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["size"]["value"] == 130


def test_a_loss_out_of_reach_exits_with_3_and_the_least_loss(
    problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", problem, "--within", "0.1", "--solver", "milp", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["least"] == {"loss": pytest.approx(0.15)}


def test_top_writes_its_answers_to_numbered_files(
    problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["solve", problem, "--top", "3", "--budget", "size=999", "-o", str(tmp_path / "b.json")]
    line += ["--solver", "milp"]
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    saved = [mp.Allocation.load(tmp_path / f"b-{i}.json") for i in (1, 2, 3)]
    assert document["allocations"] == [answer.document() for answer in saved]
    assert (document["asked"], document["apart"]) == (3, 1)
    assert [round(answer.loss, 6) for answer in saved] == [0.15, 0.3, 0.35]
    assert not (tmp_path / "b.json").exists()
    assert main([*line, "--apart", "2"]) == 0
    said = capsys.readouterr().out
    assert "no more than 2 differ in 2 layers or more" in said
    assert f"wrote {tmp_path / 'b-1.json'}, {tmp_path / 'b-2.json'}\n" in said


def test_nested_writes_a_chain(
    problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["solve", problem, "--nested", "size=100,20%,0.15kB", "-o", str(tmp_path / "bits.json")]
    line += ["--solver", "milp"]
    assert main(line) == 0
    assert "nesting costs 0, 0.05, 0 (loss)" in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "optimal"
    assert document["price"] == [0, pytest.approx(0.05), 0]
    assert document["bound"] <= document["loss"] == pytest.approx(0.35 + 0.35 + 0.15)
    saved = [mp.Allocation.load(tmp_path / f"bits-{i}.json") for i in (1, 2, 3)]
    assert document["allocations"] == [answer.document() for answer in saved]
    assert [answer["cost"]["size"]["limit"] for answer in document["independent"]] == [
        100,
        132,
        150,
    ]
    assert [answer["a"].weight.bits for answer in saved] == [4, 4, 8]


def test_every_answer_keeps_what_the_problem_knows_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps(PROBLEM | {"provenance": {"estimator": "kl", "recipe": {"x": 1}}}))
    for question in (["--within", "1"], ["--top", "2"], ["--nested", "size=100,130"]):
        assert main(["solve", str(path), *question, "--solver", "milp", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        for answer in document.get("allocations", [document]):
            assert answer["recipe"] == {"x": 1}
            assert answer["provenance"]["estimator"] == "kl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--within", "some"], "a loss within 'some' is not understood"),
        (["--within", "1", "--cost", "time"], "no cost is named 'time'; there are: size"),
        (
            ["--within", "1", "--budget", "size=9"],
            "--budget size=... has no meaning where --within",
        ),
        (["--cost", "size"], "--cost goes with --within; give both, or leave it out"),
        (["--apart", "2"], "--apart goes with --top; give both, or leave it out"),
        (["--top", "0"], "got the 0 best, apart in 1 layers; ask for 1 or more, apart in 1 to 2"),
        (["--top", "2", "--apart", "3"], "got the 2 best, apart in 3 layers"),
        (["--top", "1", "-o", "no/such/x.json"], "cannot write 'no/such/x-1.json'"),
        (["--nested", "size"], "got 'size'; wanted NAME=VALUE,VALUE"),
        (["--nested", "time=1,2"], "no cost is named 'time'; there are: size"),
        (["--nested", "size=120,100"], "limits grow from one to the next, got [120, 100]"),
        (["--nested", "size=1,,2"], "budget size= is not understood"),
        (
            ["--nested", "size=9,99", "--budget", "size=9"],
            "has no meaning where --nested gives its",
        ),
    ],
)
def test_a_bad_question_exits_with_2_and_one_line(
    arguments: list[str], message: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", problem, "--solver", "milp", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_within_asks_which_cost_where_there_are_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    time = {"unit": "ms", "values": [[1, 2], [1, 2]]}
    path = tmp_path / "two.json"
    body = PROBLEM | {"costs": {**PROBLEM["costs"], "time": time}}
    path.write_text(json.dumps(body | {"budgets": {}}))
    line = ["solve", str(path), "--within", "0.3", "--solver", "milp"]
    assert main(line) == 2
    assert "--within needs --cost NAME; there are: size, time" in capsys.readouterr().err
    assert main([*line, "--cost", "time", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["least"] == 3
    path.write_text(json.dumps(body))
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["cost"] == "size"


def test_one_question_at_a_time(problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["solve", problem, "--within", "1", "--top", "2"])
    assert "--top: not allowed with argument --within" in capsys.readouterr().err


WITHOUT_TORCH = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not installed here")

sys.meta_path.insert(0, Blocked())
from mpsearch.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "line",
    [
        "solve PROBLEM --solver milp",
        "solve PROBLEM --solver milp --within 5% --cost size",
        "solve PROBLEM --solver milp --top 2",
        "solve PROBLEM --solver milp --nested size=100,130",
        "frontier PROBLEM --cost size --solver milp",
        "show PROBLEM",
        "list solvers",
    ],
)
def test_what_works_on_files_says_the_same_without_torch(
    line: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [problem if word == "PROBLEM" else word for word in [*line.split(), "--json"]]
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(words) == 0
    assert json.loads(done.stdout) == json.loads(capsys.readouterr().out)


def test_torch_is_really_blocked_there(problem: str) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "cost", "demo:digits", "--options", "w4a8"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch is not installed here" in done.stderr


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


def test_list_says_what_there_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._OURS, "backends", {})
    assert main(["list", "backends"]) == 0
    assert capsys.readouterr().out == "no backends in this version\n"


def test_ctrl_c_exits_with_130(
    problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpsearch.pipeline.solve", stop)
    assert main(["solve", problem]) == 130
    assert "interrupted" in capsys.readouterr().err
