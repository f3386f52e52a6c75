"""How much rounding an expert costs, by how often and how firmly tokens are sent to it.

From MC-MoE (Huang et al. 2025, "Mixture Compressor for Mixture-of-Experts LLMs Gains More", arXiv
2410.06270, section 3.2): ``phi^alpha w^beta eps^gamma`` of each expert at each bit-width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.batches import call, checked, tensor_of
from mpsearch.formats import Option
from mpsearch.network import Layer, Network
from mpsearch.places import expert_of, finer
from mpsearch.quant.bench import Bench, changes
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Given
from mpsearch.sensitivity.surroundings import Around, Context, around, averaged, check_context
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats, Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

_TOP_K = ("top_k", "num_experts_per_tok", "k")


@dataclass(frozen=True)
class McMoe:
    """``phi^alpha w^beta eps^gamma``, in blocks of experts among which a router sends tokens.

    - phi is an expert's share of the tokens sent: how often it is among a token's ``top_k``.
    - w is its share of the routing weights of those tokens: softmax of the router, not
      renormalised over the ``top_k``.
    - eps is ``||MoE(x) - MoE'(x)||_F``, what the block writes with this expert alone at the option,
      weights and inputs; added up over batches.

    The paper gives gamma as 2; the program that made its published allocations takes 1, which all
    of them follow, so that is what is here by default. Later blocks write far larger numbers, so
    across blocks eps is taken as a share of ``||MoE(x)||_F`` (as the paper does not, which decides
    in one block at a time): within a block that changes nothing.

    Layers that are in no expert have no such score; each must be pinned to one option. The table is
    of ``finer(network, "expert").layers``. Experts that share a parameter have to be taken apart
    first: :func:`mpsearch.quant.unfusing.unfused`. The recipe's corrections are left out. The
    standard error is that of eps over batches.

    Attributes:
        alpha: Of how often an expert is asked.
        beta: Of how firmly.
        gamma: Of what its rounding does.
        relative: Whether eps is a share of what the block writes.
        top_k: Experts a token is sent to, where the block does not say so itself.
        context: What all other layers have: what blocks read, how tokens are sent, and what experts
            beside the one at the option write. The layers are those of the finer network.
        draws: How many random networks.
        seed: Of their options.
    """

    alpha: float = 1.0
    beta: float = 1.5
    gamma: float = 1.0
    relative: bool = True
    top_k: int | None = None
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse exponents that turn the order around, and what is no context."""
        check_context(self.context, self.draws)
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name == "gamma" and value == 0):
                raise ValueError(f"{name} is {value!r}; wanted a number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k!r}; wanted at least 1 expert a token")

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of rank scores.

        Raises:
            ValueError: A network without experts, layers that are neither experts nor pinned, a
                block without a router that can be told, or options it cannot work with.
        """
        check_deterministic(task.model, checked(task.batches)[0])
        for option in options:
            changes(option)  # refuses what cannot be quantized to, before the long part
        fine = finer(network, "expert")
        mask = fine.mask(options)
        blocks = _blocks(fine, mask.sum(axis=1) == 1)
        plain = replace(recipe, corrections=())
        each = around(self, task, fine, options, recipe=plain, sweep=sweep)
        return averaged(self._table(at, blocks) for at in each)

    def _table(self, at: Around, blocks: Mapping[str, Sequence[int]]) -> Table:
        layers, mask = at.network.layers, at.network.mask(at.options)
        values, stderr = np.zeros(mask.shape), np.zeros(mask.shape)
        for name, rows in blocks.items():
            values[rows], stderr[rows] = self._scores(name, [layers[row] for row in rows], at)
        doubt = stderr if len(at.task.batches) > 1 else None
        unit = "rank score (MC-MoE)"
        return Table(layers, at.options, values, unit, stderr=doubt, allowed=mask)

    def _scores(self, name: str, experts: Sequence[Layer], at: Around) -> tuple[Floats, Floats]:
        """(experts, options) scores of a block, and their standard errors."""
        each = [self._of_batch(name, experts, at, number) for number in range(len(at.task.batches))]
        routed = np.sum([one for one, _ in each], axis=0)
        found, batches = np.stack([errors for _, errors in each], axis=-1), len(each)
        frequency, weight = routed[:-1].reshape(2, -1)
        if not frequency.sum():
            raise ValueError(
                f"the router of {_said(name)} sends nothing to the experts that are layers here;"
                " set top_k to what the block itself takes"
            )
        if self.relative:
            found = found / (routed[-1] or 1.0)
        eps = found.sum(axis=-1)
        values = objective(frequency, weight, eps, self.alpha, self.beta, self.gamma)
        spread = found.std(axis=-1, ddof=1) * batches**0.5 if batches > 1 else np.zeros(eps.shape)
        share = np.divide(spread, eps, out=np.zeros(eps.shape), where=eps > 0)
        return values, values * self.gamma * share

    def _of_batch(
        self, name: str, experts: Sequence[Layer], at: Around, number: int
    ) -> tuple[Floats, Floats]:
        """What :meth:`Block.routed` says of a batch, and (experts, options) errors."""
        block = Block(at.bench, at.task.batches[number], name, experts, at.given)
        key, named = (name, self.top_k or 0, number), {str(option): option for option in at.options}
        routed = at.study.run("mc-moe routing", [key], lambda _: block.routed(self.top_k))
        units: list[Unit] = [
            (name, number, expert, option) for expert in range(len(experts)) for option in named
        ]

        def compute(unit: Unit) -> list[float]:
            return [block.error(int(unit[-2]), named[str(unit[-1])])]

        found = at.study.run("mc-moe", units, compute)
        return np.array(routed[0]), np.reshape(found, (len(experts), len(named)))


def objective(
    frequency: Floats,
    weight: Floats,
    eps: Floats,
    alpha: float = 1.0,
    beta: float = 1.5,
    gamma: float = 1.0,
) -> Floats:
    """(experts, options) ``phi^alpha w^beta eps^gamma`` of one block.

    From (experts,) counts, (experts,) sums of routing weights, and (experts, options) eps.
    """
    asked = (frequency / frequency.sum()) ** alpha * (weight / weight.sum()) ** beta
    scores: Floats = asked[:, None] * eps**gamma
    return scores


def _blocks(network: Network, pinned: Any) -> dict[str, list[int]]:
    """The layers that are experts of each block; ``ValueError`` where others have a choice."""
    found: dict[str, list[int]] = {}
    for row, layer in enumerate(network.layers):
        expert = expert_of(layer)
        if expert is not None:
            block = expert.rpartition(".experts.")[0] if ".experts." in expert else ""
            found.setdefault(block, []).append(row)
        elif not pinned[row]:
            raise ValueError(
                f"layer {layer.name!r} is in no expert, so it has no score by MC-MoE; pin it to one"
                " option, skip it, or use granular, which scores experts as any layer"
            )
    return found


@dataclass(frozen=True, eq=False)
class Block:
    """A router and its experts in a bench's copy of the model.

    Attributes:
        bench: Whose recipe corrects nothing.
        batch: What it is run on.
        name: Of the module that has both.
        experts: Those that run.
        given: What modules have meanwhile; what the expert at an option has itself is left out.
    """

    bench: Bench
    batch: Any
    name: str
    experts: Sequence[Layer]
    given: Given = field(default_factory=dict)

    @property
    def _module(self) -> nn.Module:
        return self.bench.model.get_submodule(self.name)

    def routed(self, top_k: int | None) -> list[float]:
        """How often each expert is asked, its summed weights, and the norm of the output."""
        numbers = [int(str(expert_of(one)).rpartition(".")[2]) for one in self.experts]
        router = self._router(max(numbers) + 1)
        k = top_k or self._top_k(router)
        rows, _ = [0.0] * (2 * len(self.experts)), self._inputs
        with self.bench.at(self.given), _watched(router) as seen:
            norm = self._norm(self._outputs())
            weight = router.get_parameter("weight").detach().clone()
        bias = getattr(router, "bias", None)
        for args, kwargs in seen:
            x = next(v for v in [*args, *kwargs.values()] if isinstance(v, Tensor))
            logits = nn.functional.linear(x.reshape(-1, x.shape[-1]), weight, bias)
            if k > logits.shape[-1]:
                raise ValueError(
                    f"top_k is {k}, and {_said(self.name)} has {logits.shape[-1]} experts"
                )
            value, chosen = logits.double().softmax(-1).topk(k)
            for place, number in enumerate(numbers):
                rows[place] += float((chosen == number).sum())
                rows[len(numbers) + place] += float(value[chosen == number].sum())
        return [*rows, norm]

    def error(self, number: int, option: Option) -> float:
        """The norm of what the output changes by with one expert at an option."""
        if not changes(option):
            return 0.0
        own, _ = dict.fromkeys(self.experts[number].modules, option), self._inputs
        others = {name: other for name, other in self.given.items() if name not in own}
        with self.bench.at(others):
            before = self._outputs()
        with self.bench.at(others | own):
            rounded = self._outputs()
        found = self._norm([x - y for x, y in zip(rounded, before, strict=True)])
        if not np.isfinite(found):
            raise ValueError(
                f"expert {self.experts[number].name!r} at {str(option)!r}: the output of its block"
                " is not finite; check the model on these batches, which may be out of range in"
                " half precision"
            )
        return found

    def _norm(self, outputs: Sequence[Tensor]) -> float:
        return math.sqrt(sum(float(x.double().square().sum()) for x in outputs))

    @torch.no_grad()
    def _outputs(self) -> list[Tensor]:
        """What the block writes in each call."""
        module = self._module
        return [tensor_of(module(*args, **kwargs)) for args, kwargs in self._inputs]

    @cached_property
    @torch.no_grad()
    def _inputs(self) -> list[Any]:
        """What the block reads in each call; read once, before anything is changed."""
        with self.bench.at(self.given), _watched(self._module) as seen:
            call(self.bench.model, self.batch)
        return seen

    def _router(self, experts: int) -> nn.Module:
        """The one module beside the experts whose weight has a row for each of them."""
        inside = self._module.get_submodule("experts")
        held = set(inside.modules())
        if isinstance(inside, nn.ModuleList):
            experts = len(inside)
        found: dict[str, nn.Module] = {
            name: module
            for name, module in self._module.named_modules()
            if module not in held
            and (weight := module._parameters.get("weight")) is not None  # noqa: SLF001
            and weight.dim() == 2
            and len(weight) == experts
        }
        if len(found) != 1:
            said = ", ".join(map(repr, found)) or "none"
            raise ValueError(
                f"{_said(self.name)} has {said} beside its experts with a weight of {experts} rows;"
                " wanted one, its router"
            )
        (router,) = found.values()
        return router

    def _top_k(self, router: nn.Module) -> int:
        """How many experts a token is sent to, as the block or its router says."""
        said = [vars(one).get(name) for one in (self._module, router) for name in _TOP_K]
        for value in said:
            if isinstance(value, int) and value > 0:
                return value
        raise ValueError(
            f"{_said(self.name)} does not say how many experts a token is sent to (in 'top_k'); set"
            " McMoe(top_k=...)"
        )


def _said(block: str) -> str:
    return f"block {block!r}" if block else "the model"


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Any]]:
    """Collects the arguments of each call."""
    seen: list[Any] = []

    def kept(x: Any) -> Any:
        return x.detach().clone() if isinstance(x, Tensor) else x  # it may be changed in place

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((tuple(map(kept, args)), {key: kept(x) for key, x in kwargs.items()}))

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
