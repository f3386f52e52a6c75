"""How a layer divides relevance among what it reads: the epsilon, gamma and z+ rules of LRP.

Input j of a layer puts ``x_j w_jk`` into output k; of what arrived at k it gets its share of the
sum of these. Biases get none, so that what was read has all that arrived.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Name = Literal["zplus", "epsilon", "gamma"]
Product = Callable[[Tensor, Tensor], Tensor]
"""A layer without its bias, as a function of what it reads and its weight."""


@dataclass(frozen=True)
class Rule:
    """By which numbers ``q_jk`` relevance is divided: ``R_j = sum_k q_jk / sum_j q_jk R_k``.

    - ``zplus``: the positive part of ``x w``.
    - ``epsilon``: ``x w`` itself; sums near zero are moved away from it, and that much relevance
      is lost, as what a bias makes of them would else be divided among huge parts of both signs.
    - ``gamma``: ``x w`` and ``gamma`` times its part of the sum's sign; between the two others.

    Attributes:
        epsilon: How far a sum is moved, as a share of the mean size of the layer's sums.
        gamma: Of the rule of that name.
    """

    name: Name = "zplus"
    epsilon: float = 0.25
    gamma: float = 0.25

    def __post_init__(self) -> None:
        """Refuse what is no rule."""
        if self.name not in get_args(Name):
            known = ", ".join(map(repr, get_args(Name)))
            raise ValueError(f"no rule is named {self.name!r}; there are {known}")
        for name, value in (("epsilon", self.epsilon), ("gamma", self.gamma)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; wanted a finite number from 0")

    def divided(self, relevance: Tensor, x: Tensor, weight: Tensor, product: Product) -> Tensor:
        """What each element of ``x`` gets of the relevance that arrived at the layer's output."""
        if self.name == "zplus":
            same = list(_signed(x, weight))
            return _shared(product, same, _quotient(relevance, _sum(product, same)))
        total = product(x, weight)
        floor = self.epsilon * total.abs().mean()
        if self.name == "epsilon":
            return _shared(product, [(x, weight)], _quotient(relevance, total, floor))
        up, same = total >= 0, list(_signed(x, weight))
        opposite = [(read, -by) for read, by in _signed(x, -weight)]
        grown = torch.where(up, _sum(product, same), _sum(product, opposite))
        s = _quotient(relevance, total + self.gamma * grown, floor)
        return (
            _shared(product, [(x, weight)], s)
            + self.gamma * _shared(product, same, s * up)
            + self.gamma * _shared(product, opposite, s * ~up)
        )


def _signed(x: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts whose products are the positive part of ``x w``."""
    yield x.clamp(min=0), weight.clamp(min=0)
    if bool((x < 0).any()):
        yield x.clamp(max=0), weight.clamp(max=0)


def _sum(product: Product, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = product(*parts[0])
    for part in parts[1:]:
        total = total + product(*part)
    return total


def _shared(product: Product, parts: list[tuple[Tensor, Tensor]], s: Tensor) -> Tensor:
    """``x`` times the sum over outputs of weight times ``s``, added up over the parts."""
    shares = torch.zeros_like(parts[0][0])
    for x, weight in parts:
        with torch.enable_grad():
            read = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(product(read, weight), read, s)
        shares = shares + x * found
    return shares


def _quotient(relevance: Tensor, total: Tensor, floor: Tensor | float = 0.0) -> Tensor:
    """The relevance for one unit of the sums, which are moved from zero to the side they are on.

    What arrived where there is no sum goes to the other outputs of its sample, by their ``|R|``.
    """
    dead = total == 0
    if dead.any():
        left = relevance.masked_fill(dead, 0.0).reshape(len(total), -1)
        lost = relevance.reshape(len(total), -1).sum(1, keepdim=True) - left.sum(1, keepdim=True)
        size = left.abs()
        share = size / size.sum(1, keepdim=True).clamp_min(1e-30)
        relevance = (left + share * lost).reshape(total.shape)
    moved = total + torch.where(total < 0, -1.0, 1.0) * floor
    return torch.where(dead, 0.0, relevance / torch.where(dead, 1.0, moved))
