"""Experts that share one parameter taken apart, so that each is modules of its own."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """One gated expert: ``down(act(gate(x)) * up(x))``."""

    def __init__(self, gate_up: Tensor, down: Tensor, act: Callable[[Tensor], Tensor]) -> None:
        """From its part of what all experts share."""
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate_proj, self.up_proj, self.down_proj = map(_linear, (gate, up, down))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, width) what it makes of as many tokens."""
        out: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


class Experts(nn.ModuleList):
    """Experts of which each token asks some, and adds up what they say."""

    def forward(self, x: Tensor, index: Tensor, share: Tensor) -> Tensor:
        """(tokens, width) from (tokens, k) numbers of experts and the weights of their answers."""
        out = torch.zeros_like(x)
        for number, expert in enumerate(self):
            token, place = torch.where(index == number)
            if len(token):
                said = expert(x[token]) * share[token, place, None]
                out.index_add_(0, token, said.to(out.dtype))
        return out


def unfused(model: nn.Module) -> nn.Module:
    """A copy whose experts are modules, where they shared one parameter ``gate_up_proj``.

    As in Hugging Face's Mixtral and its like from version 5 on, of shapes (experts, 2 inner, width)
    and ``down_proj`` (experts, width, inner). A parameter of three axes is no layer to
    :func:`mpsearch.trace`; the linear modules of the copy are. It computes the same up to rounding,
    which is tried on each module that is replaced.

    Raises:
        ValueError: Experts that share parameters in another way, or none that do.
    """
    new = copy.deepcopy(model)
    fused = [
        (n, m) for n, m in new.named_modules() if isinstance(_fused(m, "gate_up_proj"), Tensor)
    ]
    if not fused:
        raise ValueError(
            "no module of this model has a parameter 'gate_up_proj' of three axes; one whose"
            " experts are modules already can be traced as it is"
        )
    for name, module in fused:
        owner, _, leaf = name.rpartition(".")
        setattr(new.get_submodule(owner), leaf, _apart(name, module))
    return new


def _fused(module: nn.Module, name: str) -> Tensor | None:
    found = module._parameters.get(name)  # noqa: SLF001  (an attribute may be computed)
    return found if found is not None and found.dim() == 3 else None


@torch.no_grad()
def _apart(name: str, module: nn.Module) -> Experts:
    gate_up, down = _fused(module, "gate_up_proj"), _fused(module, "down_proj")
    act: Any = getattr(module, "act_fn", None)
    refused = f"experts {name!r} share parameters in a way that is not known here"
    if gate_up is None or down is None or act is None:
        raise ValueError(f"{refused}: wanted 'gate_up_proj', 'down_proj' and 'act_fn'")
    count, width, inner = down.shape
    if gate_up.shape != (count, 2 * inner, width):
        raise ValueError(
            f"{refused}: shapes are {tuple(gate_up.shape)} and {tuple(down.shape)}; wanted"
            " (experts, 2 inner, width) and (experts, width, inner)"
        )
    made = Experts(Expert(*pair, act) for pair in zip(gate_up, down, strict=True))
    made.train(module.training)
    seeded = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=seeded).to(down)
    index = torch.arange(count, device=x.device)[:, None]
    one = torch.ones_like(x[:, :1])
    error = (module(x, index, one) - made(x, index, one)).abs().max()
    if not error <= 1e-2 * made(x, index, one).abs().max():
        raise ValueError(f"{refused}: they compute something else than 'down(act(gate) * up)'")
    return made


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    return made
