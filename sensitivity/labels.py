"""The loss a score is of: the task's own, else cross-entropy with the batch's labels.

Where it is differentiated, the divergence from the model's own output, which needs no labels, would
have no slope at the model itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.batches import call, tensor_of
from mpsearch.task import Task

_IGNORED = -100  # as in torch

Loss = Callable[[Any, Any], Any]
"""``loss(output, batch) -> one number``."""


def sloped_loss(task: Task) -> Loss:
    """The task's loss, or without one :func:`cross_entropy`."""
    return task.loss or cross_entropy


def cross_entropy(output: Any, batch: Any) -> Tensor:
    """Mean cross-entropy of logits with the labels they have, as :func:`labelled` says."""
    logits, labels = labelled(output, batch)
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


def each_cross_entropy(output: Any, batch: Any) -> Tensor:
    """(N,) of each sample in float64, averaged over its tokens that have a label."""
    logits, labels = labelled(output, batch)
    wide = logits.double().flatten(0, -2)
    lost = F.cross_entropy(wide, labels.flatten(), reduction="none").reshape(len(labels), -1)
    return lost.sum(1) / (labels != _IGNORED).reshape(lost.shape).sum(1).clamp_min(1)


def labelled(output: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and a class for each row of them: of ``(x, y)``, or a dict's ``labels``.

    A language model is judged on the next token: of ``labels`` (Hugging Face's, not shifted), else
    of the token ids it read.

    Raises:
        ValueError: No labels that fit the logits.
    """
    logits = tensor_of(output)
    labels, next_token = _labels(batch)
    if labels is not None and next_token and logits.dim() == 3:
        logits, labels = logits[:, :-1], labels[:, 1:]
    elif next_token:
        labels = labels if isinstance(batch, Mapping) else None
    if labels is None or logits.dim() < 2 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            "this score is of a loss, the task has none, and the batch has no labels that fit"
            f" logits of shape {tuple(logits.shape)}; give batches (x, y) or {{..., 'labels': y}}"
            " with a class for each row of logits, or Task(..., loss=...); 'kl' needs neither"
        )
    flat, classes = labels.flatten().long(), logits.shape[-1]
    used = flat[flat != _IGNORED]
    if len(used) == 0 or int(used.min()) < 0 or int(used.max()) >= classes:
        raise ValueError(
            f"labels are {sorted(set(flat.tolist()))[:5]} and so on; wanted some from 0 to"
            f" {classes - 1}, as many classes as the logits have, or {_IGNORED} to leave one out"
        )
    return logits, labels.long().to(logits.device)


def _labels(batch: Any) -> tuple[Tensor | None, bool]:
    """The labels a batch carries, and whether they are the tokens themselves, to be shifted."""
    if isinstance(batch, Mapping):
        found = batch.get("labels", batch.get("input_ids"))
        shifted = "input_ids" in batch
    elif isinstance(batch, tuple | list):
        found, shifted = (batch[1] if len(batch) > 1 else None), False
    else:
        found, shifted = batch, True
    whole = isinstance(found, Tensor) and not found.is_floating_point()
    return (found if whole else None), shifted


def slopes(model: nn.Module, weights: Sequence[Tensor], batch: Any, loss: Loss) -> list[Tensor]:
    """The gradient of a batch's loss in each weight, in float64; zero where none is used.

    Raises:
        ValueError: A loss that is not one finite number with a finite gradient in the weights.
    """
    with torch.enable_grad():
        value = loss(call(model, batch), batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(
            f"the loss returned {type(value).__name__}{shape}; wanted a tensor of one number that"
            " can be differentiated by the weights: give such a loss, or use 'kl'"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"the loss of the float model is {value.item()}; wanted a finite number")
    found = torch.autograd.grad(value.sum(), weights, allow_unused=True, materialize_grads=True)
    if not all(torch.isfinite(each).all() for each in found):
        raise ValueError(
            f"the gradient of the loss holds NaN or infinity in {weights[0].dtype}; wanted finite"
            " numbers: give the model in float32, or a smaller loss"
        )
    return [each.double() for each in found]
