"""Running a model as it is in use, and leaving it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mpsearch.batches import call, tensor_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients; training flags and buffers are put back."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it hides the layers inside
        model.eval()
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def answer(model: nn.Module, batch: Any) -> Any:
    """The model's output; ``ValueError`` where it fails on the batch."""
    try:
        return call(model, batch)
    except Exception as error:
        raise ValueError(
            f"the model failed on the example ({type(error).__name__}: {error}); wanted a batch as"
            " the model takes it: a tensor x for model(x), a tuple (x, y) for model(x), a dict for"
            " model(**batch)"
        ) from error


def check_deterministic(model: nn.Module, batch: Any) -> None:
    """Run the model twice in eval mode; ``ValueError`` where the outputs are not equal."""
    with evaluating(model):
        one, other = (tensor_of(answer(model, batch)).clone() for _ in range(2))
    if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
        raise ValueError(
            "the model is not deterministic: two runs in eval mode on one batch gave different"
            " outputs; switch off what is random, such as functional dropout with its default"
            " training=True, or seed it inside the model"
        )
