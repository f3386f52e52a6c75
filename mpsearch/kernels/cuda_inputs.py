"""What every kernel on a GPU asks of its input."""

import torch
from torch import Tensor


def flattened(x: Tensor, columns: int, name: str, device: torch.device) -> Tensor:
    """(tokens, in) of (..., in).

    Raises:
        ValueError: Another width, or another device.
    """
    many = x.shape[-1] if x.dim() else 0
    if many != columns:
        raise ValueError(f"layer {name!r} reads {columns} values a token, got {many}")
    if x.device != device:
        raise ValueError(
            f"layer {name!r} is on {device} and its input on {x.device}; move the input there"
        )
    return x.detach().reshape(-1, columns)
