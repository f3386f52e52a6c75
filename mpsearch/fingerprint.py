"""Hashes of models and data, so that a result says what it was computed from."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(*things: Any) -> str:
    """SHA-256 of tensors, modules (their parameters and buffers), containers and plain values."""
    digest = hashlib.sha256()
    for thing in things:
        _feed(digest, thing)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", thing: Any) -> None:
    if isinstance(thing, Tensor):
        plain = thing.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(thing, nn.Module):
        _feed(digest, str(thing))
        _feed(digest, thing.state_dict())
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            _feed(digest, key)
            _feed(digest, value)
    elif isinstance(thing, list | tuple):
        digest.update(f"{len(thing)} items".encode())
        for item in thing:
            _feed(digest, item)
    else:
        digest.update(f"{type(thing).__qualname__}:{thing}".encode())
