"""Tasks by a word on the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch

import mpsearch as mp
from mpsearch.loading import load_task

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and a byte-level tokenizer, as ``save_pretrained`` leaves them."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["the cat sat on the mat"], vocab_size=270, show_progress=False)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config: Any = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_hugging_face_language_model_is_searched_on_text(
    saved_llama: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and looked at the dog. " * 80)
    task = load_task(f"hf:{saved_llama}", text=text)
    found = mp.search(task, mp.options("w4a16", "w8a16"), {"size": "50%"}, method="weight-error")
    assert "model.layers.0.self_attn.q_proj" in found.allocation
    assert found.allocation.status is mp.Status.OPTIMAL
    verified = mp.verify(task, found.allocation)
    assert verified.measured is not None
    assert 0 < verified.measured["kl"] < 0.1


def test_too_short_a_text_is_explained(saved_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("short")
    with pytest.raises(ValueError, match="at least 256 are needed, half of them to judge"):
        load_task(f"hf:{saved_llama}", text=tmp_path / "text.txt")


def test_a_network_of_the_package_is_named(tmp_path: Path) -> None:
    assert isinstance(load_task("demo:digits"), mp.Task)
    with pytest.raises(
        ValueError, match=r"no task is at .*or hf:MODEL, or demo:digits, demo:language"
    ):
        load_task(str(tmp_path / "task.txt"))


def test_a_task_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_task.py").write_text(
        "from mpsearch.demo.digits import task as made\n"
    )
    (tmp_path / "job.py").write_text("import neighbour_of_task\ntask = neighbour_of_task.made\n")
    assert isinstance(load_task(str(tmp_path / "job.py")), mp.Task)
