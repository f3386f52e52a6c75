"""From a word on the command line to a task.

A Python file, a network of the demo, or a Hugging Face model.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from mpsearch.registry import load, names
from mpsearch.task import Task


def load_task(spec: str, *, text: str | Path | None = None) -> Task:
    """The task that ``spec`` names.

    ``FILE.py`` defines ``task() -> mpsearch.Task``; ``demo:language`` is a network of the package;
    ``hf:DIR_OR_NAME`` is a Hugging Face causal language model, calibrated and judged on ``text``.
    """
    if spec.startswith("demo:"):
        made: Task = load("networks", spec.removeprefix("demo:"))()
        return made
    if spec.startswith("hf:"):
        return _hugging_face(spec.removeprefix("hf:"), text)
    return _python_file(Path(spec))


def _python_file(path: Path) -> Task:
    if path.suffix != ".py" or not path.is_file():
        known = ", ".join(f"demo:{name}" for name in names("networks"))
        raise ValueError(
            f"no task is at {str(path)!r}; name a Python file that defines task(), or hf:MODEL,"
            f" or {known}"
        )
    name = f"_mpsearch_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ValueError(f"{str(path)!r} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "task"):
            raise LookupError(
                f"{str(path)!r} defines no task(); write: def task() -> mpsearch.Task"
            )
        made = module.task()
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(made, Task):
        raise TypeError(
            f"task() of {str(path)!r} returned {type(made).__name__}; wanted mpsearch.Task"
        )
    return made


def _hugging_face(name: str, text: str | Path | None, length: int = 128, windows: int = 32) -> Task:
    if text is None:
        raise ValueError(f"hf:{name} needs text to calibrate and judge on; give --text FILE")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ImportError('hf: models need transformers: pip install "mpsearch[hf]"') from None
    import torch

    content = Path(text).read_text(errors="replace")
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    ids = torch.tensor(tokenizer(content)["input_ids"])
    count = min(len(ids) // length, 2 * windows)
    if count < 2:
        raise ValueError(
            f"{str(text)!r} has {len(ids)} tokens; at least {2 * length} are needed, half of them"
            " to judge"
        )
    rows = ids[: count * length].reshape(count, length)
    half = count // 2
    batches, heldout = (
        [{"input_ids": part} for part in side.split(8)] for side in (rows[:half], rows[half:])
    )
    return Task(model.eval(), batches, heldout)
