"""Every example runs, and so does every block of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES: dict[str, list[str]] = {
    "pareto_frontier.py": [],
    "config_from_table.py": [],
    "another_budget.py": [],
    "microcontroller.py": [],
    "save_and_load.py": [],
    "fine_tune.py": [],
    "nas_loop.py": ["--trials", "4", "--steps", "40"],
    "latency_on_this_cpu.py": [
        "--width=32",
        "--depth=4",
        "--steps=60",
        "--rounds=15",
        "--mlp-width=256",
    ],
}
ELSEWHERE = {  # tests that run them
    "train_digits.py": "tests/demo",
    "train_language.py": "tests/demo",
    "cifar10.py": "tests/test_real_networks.py",
    "mobilenet_v2.py": "tests/test_real_networks.py",
    "small_llama.py": "tests/test_real_networks.py",
}


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(name: str, folder: Path) -> str:
    return run(str(ROOT / "examples" / name), *EXAMPLES[name], folder=folder)


@pytest.mark.parametrize(
    "name", ["another_budget.py", "config_from_table.py", "microcontroller.py", "nas_loop.py"]
)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert example(name, tmp_path).strip()


def test_the_frontier_s_losses_fall_as_its_bytes_grow(tmp_path: Path) -> None:
    said = example("pareto_frontier.py", tmp_path)
    rows = [(float(a), float(b)) for a, b in re.findall(r"(\d+) byte  loss (\S+)", said)]
    assert len(rows) > 4
    assert rows == sorted(rows, key=lambda row: (row[0], -row[1]))
    assert [loss for _, loss in rows] == sorted((loss for _, loss in rows), reverse=True)


def test_the_saved_model_computes_the_same(tmp_path: Path) -> None:
    assert "the same outputs: True" in example("save_and_load.py", tmp_path)


def test_an_epoch_of_training_brings_a_network_of_few_bits_closer(tmp_path: Path) -> None:
    said = example("fine_tune.py", tmp_path)
    before, after = (float(kl) for kl in re.findall(r": KL (\S+) \+- \S+, top-1 \S+", said))
    assert after < 0.7 * before


def test_mixed_beats_uniform_on_this_cpu_or_it_is_said_that_it_does_not(tmp_path: Path) -> None:
    said = example("latency_on_this_cpu.py", tmp_path)
    rows = re.findall(r"(\S+) ms \+- \S+  KL (\S+) \+- \S+  (.+)", said)
    assert len(rows) > 3
    assert all(float(seconds) > 0 and float(kl) >= 0 for seconds, kl, _ in rows)
    verdicts = re.findall(r"(mixed|no mixed allocation) beats uniform (\S+):", said)
    floats, packed = ["fp32/fp32", "bf16/bf16", "int8/int8"], [f"int{n}/int8" for n in (2, 3, 4, 8)]
    assert [rival for _, rival in verdicts] in (floats + packed, floats)
    assert ("no MLP on packed weights" in said) == (len(verdicts) == len(floats))
    assert verdicts[0][0] == "no mixed allocation"  # nothing loses less than nothing, surely


def test_every_example_is_run_by_a_test() -> None:
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, *ELSEWHERE}


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "readme.py").write_text("\n".join(blocks))
    run("readme.py", folder=tmp_path)
    assert (tmp_path / "bits.json").is_file()


def test_the_readme_s_commands_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    commands = [part.strip() for line in lines for part in line.split(";")]
    (tmp_path / "task.py").write_text("from mpsearch.demo.digits import task\n")
    ran = 0
    for command in commands:
        if command.startswith("mpsearch") and "examples/" not in command:
            words = command.removeprefix("mpsearch ").split()
            run("-m", "mpsearch.cli", *words, folder=tmp_path)
            ran += 1
    assert ran > 8
