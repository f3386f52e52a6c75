"""Weights on disk: float16 in a safetensors file, float32 in memory."""

from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: Path) -> None:
    """Write the model's state; floats are rounded to float16."""
    state = model.state_dict()
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    save_file({name: t.contiguous() for name, t in half.items()}, path)


def load(model: Model, path: Path) -> Model:
    """The model with the state that the file holds, exactly its tensors, in eval mode."""
    model.load_state_dict(load_file(path), strict=True)
    return model.eval()
