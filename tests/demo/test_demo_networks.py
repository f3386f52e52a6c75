import importlib
import math
import os
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mpsearch.demo import NETWORKS, digits, language, weights
from mpsearch.task import Task

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def language_task() -> Task:
    return language.task()


@pytest.fixture(scope="module")
def digits_task() -> Task:
    return digits.task()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of Python's standard library."""
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    return tmp_path


def measured(task: Task) -> float:
    assert task.evaluate is not None
    (value,) = task.evaluate(task.model).values()
    return value


def test_the_two_files_fit_in_three_megabytes() -> None:
    assert sum(path.stat().st_size for path in (language.WEIGHTS, digits.WEIGHTS)) <= 3_000_000


def test_the_files_hold_float16_and_the_networks_float32_in_eval_mode() -> None:
    for path, model in ((language.WEIGHTS, language.load()), (digits.WEIGHTS, digits.load())):
        on_disk = {t.dtype for t in load_file(path).values() if t.is_floating_point()}
        in_memory = {parameter.dtype for parameter in model.parameters()}
        assert on_disk == {torch.float16}
        assert in_memory == {torch.float32}
        assert not model.training


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    weights.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "other.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        language.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_listed_by_where_its_task_is(name: str) -> None:
    module, _, attribute = NETWORKS[name].partition(":")
    task = getattr(importlib.import_module(module), attribute)(samples=1, heldout=1)
    assert isinstance(task, Task)


def test_the_digits_network_reads_held_out_digits(digits_task: Task) -> None:
    assert measured(digits_task) >= 0.985


def test_the_language_model_predicts_held_out_source(language_task: Task) -> None:
    assert measured(language_task) <= 3.5


def test_perplexity_is_the_exponential_of_the_mean_loss_over_bytes(language_task: Task) -> None:
    x = torch.cat(list(language_task.heldout))[:3]
    log_p = language_task.model(x).log_softmax(-1)
    nats = [-log_p[n, t, x[n, t + 1]].item() for n in range(len(x)) for t in range(len(x[n]) - 1)]
    in_two = language.perplexity(language_task.model, [x[:1], x[1:]])
    assert in_two["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)


def test_the_language_model_does_not_look_ahead(language_task: Task) -> None:
    x = language_task.heldout[0][:2]
    changed = x.clone()
    changed[:, 64:] = 32
    before, after = language_task.model(x), language_task.model(changed)
    torch.testing.assert_close(before[:, :64], after[:, :64])
    assert not torch.allclose(before[:, 64:], after[:, 64:])


def test_the_language_model_has_second_derivatives() -> None:
    model = language.ByteLanguageModel(width=8, depth=1, heads=2, hidden=8)
    x = torch.arange(12).view(1, 12)
    weight = model.get_parameter("blocks.0.attention.q_proj.weight")
    (first,) = torch.autograd.grad(language.loss(model(x), x), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.abs().sum() > 0


def test_language_batches_are_windows_of_bytes(language_task: Task) -> None:
    assert [tuple(x.shape) for x in language_task.batches] == [(16, 128)] * 2
    assert [tuple(x.shape) for x in language_task.heldout] == [(16, 128)] * 4
    logits = language_task.model(language_task.batches[0][:2])
    assert logits.shape == (2, 128, 256)
    assert b"self" in bytes(torch.cat(list(language_task.batches)).flatten().tolist())


def test_digits_batches_are_images_with_labels(digits_task: Task) -> None:
    assert [tuple(x.shape) for x, _ in digits_task.batches] == [(128, 1, 8, 8)] * 2
    assert [tuple(x.shape) for x, _ in digits_task.heldout] == [(128, 1, 8, 8)] * 4
    x, y = digits_task.batches[0]
    assert (x.min().item(), x.max().item()) == (0.0, 1.0)
    assert set(y.tolist()) == set(range(10))
    assert digits_task.model(x).shape == (128, 10)


def test_a_task_is_as_large_as_asked() -> None:
    language_task = language.task(samples=5, heldout=17)
    assert [len(x) for x in language_task.batches] == [5]
    assert [len(x) for x in language_task.heldout] == [16, 1]
    digits_task = digits.task(samples=130, heldout=3)
    assert [len(x) for x, _ in digits_task.batches] == [128, 2]
    assert [len(x) for x, _ in digits_task.heldout] == [3]


def test_tasks_are_the_same_every_time(language_task: Task, digits_task: Task) -> None:
    for first, second in ((language_task, language.task()), (digits_task, digits.task())):
        torch.testing.assert_close(first.batches, second.batches, rtol=0, atol=0)
        torch.testing.assert_close(first.heldout, second.heldout, rtol=0, atol=0)
        torch.testing.assert_close(
            first.model.state_dict(), second.model.state_dict(), rtol=0, atol=0
        )


def test_held_out_text_is_of_files_that_were_not_trained_on(library: Path) -> None:
    for number in range(200):
        (library / f"module{number}.py").write_text(f"{number}\n" * 5000)
    sides: list[language.Side] = ["train", "validation", "heldout"]
    found = [set(bytes(language.text(side).tolist()).split()) for side in sides]
    assert sum(map(len, found)) == len(set().union(*found)) == 200
    assert len(found[0]) > 100


def test_the_side_of_a_file_never_changes() -> None:
    sides = {name: language.side_of(name) for name in ("ast.py", "re/_parser.py", "argparse.py")}
    assert sides == {"ast.py": "heldout", "re/_parser.py": "heldout", "argparse.py": "train"}


def test_the_text_is_the_librarys_own() -> None:
    names = language.names(Path(sysconfig.get_path("stdlib")))
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "/test" in name]


def test_a_python_without_its_source_is_told_so(library: Path) -> None:
    (library / "ast.py").write_text("pass\n")
    with pytest.raises(FileNotFoundError, match=r"has 5 bytes of heldout text in .*; wanted"):
        language.text("heldout")


def test_the_digits_are_split_without_overlap() -> None:
    sides = [digits.images("train"), digits.images("validation"), digits.images("heldout")]
    assert [len(y) for _, y in sides] == [1157, 128, 512]
    held_out_when_the_shipped_weights_were_trained = [6, 5, 5, 7, 9, 9, 8, 4, 6, 8]
    assert sides[2][1][:10].tolist() == held_out_when_the_shipped_weights_were_trained
    pixels = torch.cat([x.flatten(1) for x, _ in sides])
    assert len(pixels.unique(dim=0)) == len(pixels) == 1797


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "mpsearch\[demo\]"'):
        digits.task()


@pytest.mark.parametrize("name", ["digits", "language"])
def test_training_scripts_run_and_write_what_loads(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    script = [sys.executable, f"examples/train_{name}.py", "--steps", "2", "-o", str(path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 2: validation" in done.stdout
    assert "held-out" in done.stdout
    network = digits.load(path) if name == "digits" else language.load(path)
    on_disk = load_file(path)
    assert network.state_dict().keys() == on_disk.keys()
    assert {t.dtype for t in on_disk.values() if t.is_floating_point()} == {torch.float16}


@pytest.mark.parametrize("name", ["digits", "language"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps is 0; wanted at least 1"),
        (["-o", "no/folder/x"], "--output is 'no/folder/x', in a folder that does not exist"),
    ],
)
def test_training_scripts_refuse_at_once_what_would_fail_at_the_end(
    name: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "examples" / f"train_{name}.py"))["main"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err
