"""What a user may get wrong with a model: one clear error each, and the model left as it was."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.cli import main
from mpsearch.sweep import Folder

OPTIONS = mp.options("w2a8", "w4a8", "w8a8")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def task(model: nn.Module | None = None, batches: Any = None, **more: Any) -> mp.Task:
    torch.manual_seed(1)
    data = [torch.randn(16, 6)] if batches is None else batches
    return mp.Task(network() if model is None else model, data, data, **more)


class Noisy(nn.Module):
    """Dropout that is never switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.fc(x), 0.5, training=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(Noisy()), "deterministic|differ"),
        (lambda: task(batches=[]), "no batches were given"),
        (lambda: task(batches=[torch.zeros(0, 6)]), "batch 0 is empty"),
        (lambda: task(batches=torch.zeros(4, 6)), "batches are a list of batches, got Tensor"),
        (lambda: task(batches=[torch.zeros(4, 7)]), "the model failed on the example"),
        (lambda: task(batches=["text"]), "a batch is a tensor, a tuple"),
        (lambda: task(loss=lambda output, _: output.sum() * math.nan), "nan"),
        (lambda: task(nn.Sequential(nn.ReLU())), "no layer"),
    ],
)
@pytest.mark.parametrize("method", ["kl", "hessian-trace"])
def test_a_task_that_cannot_be_searched_is_explained(
    make: Callable[[], mp.Task], message: str, method: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=f"(?i){message}"):
        mp.search(make(), OPTIONS, {"size": "uniform:w4a8"}, method=method)


def test_a_budget_below_the_least_achievable_says_what_is_before_any_work() -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError("the estimator was run")

    with pytest.raises(
        mp.Infeasible, match=r"size: 10 asked, \d+ is the least achievable"
    ) as caught:
        mp.search(task(loss=never), OPTIONS, {"size": 10}, method="kl")
    least = caught.value.least["size"]
    assert mp.search(task(), OPTIONS, {"size": least}).allocation.cost["size"] == least


def test_a_budget_of_no_cost_asked_for_is_explained() -> None:
    with pytest.raises(
        LookupError, match="no cost is named 'latency'; the hardware models asked give"
    ):
        mp.search(task(), OPTIONS, {"latency": "3ms"})


def test_a_cost_in_bits_no_option_set_can_use_is_explained() -> None:
    with pytest.raises(ValueError, match="'bitops' is counted in"):
        mp.search(task(), OPTIONS, {"bitops": "4bit"})


def test_nan_weights_are_named() -> None:
    model = network()
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"(?i)nan|not finite"):
        mp.search(task(model), OPTIONS, {"size": "uniform:w4a8"})


@pytest.mark.parametrize(("method", "stop"), [("kl", 6), ("hessian-trace", 2)])
def test_ctrl_c_leaves_the_model_as_it_was_and_keeps_what_was_computed(
    method: str, stop: int, tmp_path: Path
) -> None:
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calls = 0

    def loss(output: Tensor, _: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return output.square().mean()

    cache = Folder(tmp_path)
    the_task = task(model, loss=loss)
    with pytest.raises(KeyboardInterrupt):
        mp.estimate(the_task, OPTIONS, method=method, sweep=mp.Sweep(cache=cache))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    calls = 100
    again = mp.estimate(the_task, OPTIONS, method=method, sweep=mp.Sweep(cache=cache))
    alone = mp.estimate(the_task, OPTIONS, method=method)
    assert (again.values == alone.values).all()


def test_an_output_path_that_cannot_be_written_is_refused_before_the_long_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.py").write_text("raise SystemExit('the task was loaded')")
    line = ["search", str(tmp_path / "task.py"), "--options", "w4a8"]
    assert main([*line, "-o", str(tmp_path / "nowhere" / "bits.json")]) == 2
    assert "name a file in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "defines no task()"),
        ("def task():\n    return 3", "returned int; wanted mpsearch.Task"),
    ],
)
def test_a_task_file_that_is_none_is_explained(
    source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task.py").write_text(source)
    assert main(["sensitivity", str(tmp_path / "task.py"), "--options", "w4a8"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pin", "nothing=w8a8"], "nothing"),
        (["--skip", "nothing"], "nothing"),
        (["--pin", "("], "wanted REGEX=OPTION"),
        (["--options", "w4a8,w4a8"], "option 'int4/int8' is named twice"),
        (["--options", "w4"], "no option is written 'w4'"),
        (["--workers", "4"], "this version runs 1"),
        (["--corrections", "magic"], "magic"),
        (["--rounding", "up"], "rounding has 'up'; known are 'nearest', 'gptq'"),
        (["--preparations", "melt"], "preparations has 'melt'"),
        (
            ["--method", "kl", "--bos", "nowhere"],
            "bos has 'nowhere', which is found in the name of no layer",
        ),
        (["--bos", "("], "which is no regular expression"),
    ],
)
def test_flags_that_make_no_sense_are_explained(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["sensitivity", "demo:digits", "--options", "w4a8,w8a8", "--method", "weight-error"]
    assert main([*line, *more]) == 2
    assert message in capsys.readouterr().err
