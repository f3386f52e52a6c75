"""Batches: how a model is called with one, how many samples it has, how far two outputs differ."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Divergence = Literal["kl", "mse"]


def call(model: nn.Module, batch: Any) -> Any:
    """The model's output: a tensor is called as ``model(x)``, ``(x, y)`` too, a dict by name."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def tensor_of(output: Any) -> Tensor:
    """The tensor that a loss looks at: the output, its ``logits``, or its first item."""
    found = getattr(output, "logits", output)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the model returned {type(output).__name__}; wanted a tensor, a tuple that begins with"
            " one, or an object with 'logits': wrap the model so that it returns one"
        )
    return found


def samples(batch: Any) -> int:
    """How many samples a batch has: the first axis of its first tensor."""
    return len(_leading(batch))


def _leading(batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        first = next((v for v in batch.values() if isinstance(v, Tensor)), None)
    else:
        first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(first, Tensor) or first.dim() == 0:
        raise TypeError(
            f"a batch is a tensor, a tuple (x, y) or a dict of tensors with samples along the first"
            f" axis; got {type(batch).__name__}"
        )
    return first


def checked(batches: Sequence[Any]) -> Sequence[Any]:
    """The batches, once there is one and none is empty."""
    if not isinstance(batches, Sequence):
        raise TypeError(
            f"batches are a list of batches, got {type(batches).__name__}; write [batch]"
        )
    if not batches:
        raise ValueError("no batches were given; give at least one batch of calibration data")
    for number, batch in enumerate(batches):
        if samples(batch) == 0:
            raise ValueError(f"batch {number} is empty; give batches with at least one sample")
    return batches


def joined(batches: Sequence[Any], most: int) -> Any:
    """One batch of the first ``most`` samples; only the first batch's where shapes differ."""
    taken: list[Any] = []
    count = 0
    for batch in batches:
        if count >= most or (taken and not _alike(taken[0], batch)):
            break
        taken.append(_map(batch, partial(_first, most - count)))
        count += samples(taken[-1])
    if len(taken) == 1:
        return taken[0]
    return _join(taken)


def parts(batch: Any, most: int) -> list[Any]:
    """The batch in parts of at most ``most`` samples."""
    starts = range(0, samples(batch), most)
    return [_map(batch, partial(_from, start, start + most)) for start in starts]


def one_token(batch: Any) -> Any:
    """The first token of each sample, of all tensors that have one for each of the ids.

    Raises:
        ValueError: The batch's first tensor is not (samples, tokens) of ids.
    """
    ids = _leading(batch)
    if ids.dim() != 2 or ids.is_floating_point():
        raise ValueError(
            "phase 'decode' runs one token of each sample, from token ids (samples, tokens); got"
            f" {tuple(ids.shape)} of {ids.dtype}: use phase 'traced'"
        )
    return _map(batch, lambda x: x[:, :1] if x.dim() > 1 and x.shape[1] == ids.shape[1] else x)


def _first(count: int, tensor: Tensor) -> Tensor:
    return tensor[:count]


def _from(start: int, stop: int, tensor: Tensor) -> Tensor:
    return tensor[start:stop]


def _alike(one: Any, other: Any) -> bool:
    return bool(_signature(one) == _signature(other))


def _signature(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.shape[1:], batch.dtype
    if isinstance(batch, Mapping):
        return {key: _signature(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_signature(value) for value in batch]
    return batch


def _map(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch) if batch.dim() else batch
    if isinstance(batch, Mapping):
        return {key: _map(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_map(value, change) for value in batch)
    return batch


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.dim() else first
    if isinstance(first, Mapping):
        return {key: _join([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_join(column) for column in zip(*parts, strict=True))
    return first


def divergence(reference: Tensor, output: Tensor, kind: Divergence | None = None) -> Tensor:
    """(N,) how far each sample's output is from the reference, in float64.

    ``kl``: KL(reference || output) in nats over the last axis, averaged over what lies between
    (tokens). ``mse``: squared error over squared reference. By default outputs of two or three
    axes are logits, others are not.
    """
    reference, output = reference.double(), output.double()
    if kind is None:
        kind = "kl" if reference.dim() in (2, 3) else "mse"
    if kind == "kl":
        log_p, log_q = reference.log_softmax(-1), output.log_softmax(-1)
        p = log_p.exp()
        each = torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1)  # a masked class is no loss
        return each.reshape(len(each), -1).mean(1)
    error = (output - reference).square().reshape(len(reference), -1).sum(1)
    return error / reference.square().reshape(len(reference), -1).sum(1).clamp_min(1e-300)


def unit(reference: Tensor) -> str:
    """What :func:`divergence` counts in by default."""
    return {2: "KL (nats)", 3: "KL (nats per token)"}.get(reference.dim(), "relative MSE")
