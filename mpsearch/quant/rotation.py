"""Hadamard rotation of what a transformer's blocks hand on, so that no channel stands out.

From Ashkboos et al. 2024, QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs (arXiv 2404.00456,
stage 1a), after SliceGPT (arXiv 2401.15024). What lies between blocks is multiplied by an
orthogonal Q: all that writes it by Q, all that reads it by Q^T. A norm in between commutes with Q
once its weight is in the layers that read it, if it does not subtract the mean.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.quant.consumers import consumers
from mpsearch.quant.smoothing import readers
from mpsearch.tracing import output_first, sites

_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")


@torch.no_grad()
def rotate(model: nn.Module, batch: Any) -> int:
    """Rotate, in place, where there is one such stream; how many weights that read or write it."""
    norms = {norm: found for norm, found in readers(model, batch).items() if _commutes(norm)}
    widths = [found[0].shape[1] for found in norms.values()]
    if not widths:
        return 0
    width = max(set(widths), key=widths.count)
    turn = hadamard(width)
    wrote = [writer for writer in _writers(model, batch, set(norms)) if writer[0].shape[0] == width]
    read = 0
    for norm, weights in norms.items():
        if weights[0].shape[1] != width:
            continue
        gain = norm.get_parameter("weight")
        for weight in weights:
            weight.copy_((weight.double() * gain.double()) @ turn)
            read += 1
        gain.fill_(1)
    for weight, bias in wrote:
        weight.copy_(turn.T @ weight.double())
        if bias is not None:
            bias.copy_(bias.double() @ turn)
    return read + len(wrote)


def hadamard(width: int, seed: int = 0) -> Tensor:
    """(width, width) an orthogonal matrix: blocks of a power of two, with random signs.

    >>> bool(torch.allclose(hadamard(12) @ hadamard(12).T, torch.eye(12).double()))
    True
    """
    block = torch.ones(1, 1, dtype=torch.float64)
    while width % (2 * len(block)) == 0:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)]) / 2**0.5
    signs = torch.randint(2, (width,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    turn: Tensor = torch.block_diag(*[block] * (width // len(block))) * signs
    return turn


@torch.no_grad()
def _commutes(norm: nn.Module) -> bool:
    """Whether a norm with weights of one turns as what it reads does."""
    weight = norm.get_parameter("weight")
    before, turn = weight.clone(), hadamard(len(weight)).to(weight)
    x = torch.linspace(-1, 2, len(weight)).to(weight)[None, None]
    try:
        weight.fill_(1)
        same = torch.allclose(norm(x @ turn), norm(x) @ turn, atol=1e-2)
    finally:
        weight.copy_(before)
    return bool(same) and norm._parameters.get("bias") is None  # noqa: SLF001


def _writers(
    model: nn.Module, batch: Any, norms: set[nn.Module]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(out, in) weights, or tables so turned, and biases: read by additions and norms alone."""
    held = {site.module: site.weight for site in sites(model) if site.weight is not None}
    taken: set[nn.Parameter] = set()  # an encoder and a decoder may share their table
    for module, found in consumers(model, batch, held, through=True).items():
        weight, bias = held[module], getattr(module, "bias", None)
        among = all(one.name in _SUMS or one.module in norms for one in found)
        if found and among and weight not in taken:
            taken.add(weight)
            table = isinstance(module, nn.Embedding)
            yield weight.t() if table else output_first(weight, module), bias
