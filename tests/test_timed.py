"""Searches on measured latency, from the command line to networks on kernels."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.cli import main
from mpsearch.commands.timed import Machine, compared, timed_batch
from mpsearch.report.data import Run
from mpsearch.verification import Verifier

LINE = ["search", "demo:digits", "--options", "fp32/fp32,w8a8,w8a16", "--measure", "1"]
MEASURED = ["--model", "measured:torch-cpu", "--batch", "8", "--rounds", "5"]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """What a search wrote, as an object and as a page."""
    folder: Path = tmp_path_factory.mktemp("timed")
    out, page = str(folder / "bits.json"), str(folder / "page.html")
    files = ["-o", out, "--report", page]
    assert main([*LINE, *MEASURED, "--budget", "latency=uniform:w8a8", *files]) == 0
    return json.loads(Path(out).read_text()), Path(page).read_text()


def test_predicted_and_measured_latency_loss_and_bytes_stand_in_one_row(
    answered: tuple[Any, str],
) -> None:
    document, page = answered
    assert set(document["cost"]) == {"latency", "size"}
    found = document["measured"]
    for run in (found, *found["baselines"].values()):
        assert 0 < run["metrics"]["latency"] < 1
        assert run["kl"] >= 0
    heads = [f">{name}</th>" for name in ("latency", "measured latency", "size", "measured")]
    places = [page.index(head) for head in heads]
    assert places == sorted(places)
    assert "torch-cpu, batch 8, 1 thread, CPU time, median of 5" in page


def test_every_layer_is_named_with_what_it_ran_as(answered: tuple[Any, str]) -> None:
    document, page = answered
    kernels = document["measured"]["kernels"]
    runs = {
        "fp32/fp32": "fp32/fp32",
        "int8/int8": "int8/int8",
        "int8/fp16": "fp32/fp32 in place of int8/fp16",
    }
    assert kernels == {name: runs[each["option"]] for name, each in document["layers"].items()}
    assert ">runs as</th>" in page


def test_what_is_said_ends_with_how_far_predictions_were_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["search", "demo:digits", "--options", "fp32/fp32", *MEASURED, "--measure", "1"]
    assert main([*line, "--budget", "latency=100%"]) == 0
    said = capsys.readouterr().out
    assert "measured latency" in said
    assert "% off the measured one, over" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "1000"], "samples of one shape, and --batch asks for 1000; ask for fewer"),
        (["--model", "measured:plain"], "one backend is measured at a time, got measured:torch"),
        (["--rounds", "1"], "rounds is 1; wanted at least 2"),
        (["--batch", "0"], "--batch is 0; wanted at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LINE, *MEASURED, *more, "--budget", "latency=50%"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_machine_times_what_it_is_given_and_keeps_the_task_s_own_metrics() -> None:
    torch.manual_seed(0)
    task = mp.Task(nn.Linear(4, 3), [torch.randn(9, 4)], evaluate=lambda _: {"top1": 0.5})
    machine = Machine.of("measured", task, 4, 3)
    assert machine.backend == "onednn"
    timed = machine.timing(task).evaluate
    assert timed is not None
    found = timed(task.model)
    assert found["top1"] == 0.5
    assert found["latency"] > 0


def test_a_verifier_runs_what_it_is_told_to_quantize_with() -> None:
    torch.manual_seed(0)
    task = mp.Task(nn.Linear(4, 3), [torch.randn(9, 4)], [torch.randn(5, 4)])
    machine = Machine.of("measured:torch-cpu", task, 4, 3)
    verifier = Verifier.of(task)
    wanted = verifier({"": mp.Option.parse("w8a8")})
    real = Verifier(task, verifier.recipe, verifier.reference, {}, machine.quantize)
    found = real({"": mp.Option.parse("w8a8")})
    assert list(machine.kernels.values()) == [{"": "int8/int8"}]
    assert found.divergence == pytest.approx(wanted.divergence, rel=1e-3)


def test_the_largest_errors_of_predictions_are_told() -> None:
    runs = [
        Run("a", 1.0, 0.0, metrics={"latency": 2.0}),
        Run("b", 3.0, 0.0, metrics={"latency": 2}),
    ]
    assert compared(runs).startswith("latency predicted: -50 to +50 % off")
    assert compared([Run("a", 1.0, 0.0)]) == "latency: no network was run"


def test_a_batch_of_more_than_there_is_is_refused() -> None:
    task = mp.Task(nn.Linear(3, 3), [torch.zeros(2, 3)])
    with pytest.raises(ValueError, match="batches hold 2 samples of one shape, and --batch asks"):
        timed_batch(task, 3, "traced")


def test_one_token_of_each_sample_is_timed_to_decode() -> None:
    ids, hints = torch.arange(12).reshape(3, 4), torch.randn(3, 4, 5)
    batch = {"ids": ids, "mask": torch.ones(3, 4), "hints": hints, "kind": torch.zeros(3)}
    task = mp.Task(nn.Identity(), [batch])
    cut = timed_batch(task, 2, "decode")
    assert {key: tuple(value.shape) for key, value in cut.items()} == {
        "ids": (2, 1),
        "mask": (2, 1),
        "hints": (2, 1, 5),
        "kind": (2,),
    }
    assert cut["ids"].tolist() == [[0], [4]]
    assert tuple(timed_batch(task, 2, "traced")["ids"].shape) == (2, 4)


@pytest.mark.parametrize("x", [torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)])
def test_only_token_ids_decode(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="decode' runs one token of each sample, from token ids"):
        timed_batch(mp.Task(nn.Identity(), [x]), 1, "decode")


def test_a_search_that_decodes_prices_and_runs_one_token(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["search", "demo:language", "--options", "fp32/fp32,w8a8", "--method", "weight-error"]
    settings = ["--model", "measured:torch-cpu", "--phase", "decode", "--rounds", "5"]
    assert main([*line, *settings, "--budget", "latency=100%", "--measure", "1"]) == 0
    one = capsys.readouterr().out
    assert "% off the measured one, over" in one
    seconds = re.search(r"latency: (\S+ \S+) of", one)
    assert seconds is not None
    number, unit = seconds[1].split()
    assert float(number) * {"s": 1, "ms": 1e-3, "us": 1e-6}[unit] < 0.1
