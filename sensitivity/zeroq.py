"""Calibration data made from a network's own batch norms, for a user who has none.

ZeroQ (Cai, Yao, Dong, Gholami, Mahoney and Keutzer 2020, arXiv 2001.00281), equation 3: inputs are
found whose statistics at every batch norm are those it keeps of the training data.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpsearch.sweep import Sweep
from mpsearch.tracing import answer, evaluating

Over = Literal["sample", "batch"]

_SMALL = 1e-6  # added to a variance under its root


@dataclass(frozen=True)
class ZeroQ:
    """Inputs x whose statistics are those that batch norms keep.

    Adam minimises a sum over batch norms and x itself of ``|m - m(x)|^2 + |s - s(x)|^2``: squares
    added up over channels, averaged over samples; m and s are the mean and standard deviation that
    the batch norm keeps, and those of x are ``mean`` and ``std``. What a batch norm itself reads is
    looked at; the authors' code pairs convolutions with batch norms by their order among the
    modules, which need not be that of a forward pass. Batch norms that do not run add nothing.

    Attributes:
        samples: How many inputs.
        batch: So many at a time, each batch on its own; what is left over goes with the others.
        steps: Of Adam.
        rate: Of learning, in units of ``std``; a tenth of it after 100 steps without gain.
        over: Statistics of each ``sample`` over its positions, as in the authors' code, or of a
            ``batch``, as training took them; always the latter where there is one position.
        mean: Of the inputs the network was trained on, all channels alike: 0 where normalised.
        std: Their standard deviation.
        seed: Of the noise it begins with.
    """

    samples: int = 64
    batch: int = 32
    steps: int = 500
    rate: float = 0.5
    over: Over = "sample"
    mean: float = 0.0
    std: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that make no data."""
        for name, least in (("samples", 2), ("batch", 2), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted {least} or more")
        for name in ("rate", "std"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}; wanted a number above 0")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean is {self.mean!r}; wanted a finite number")
        if self.over not in get_args(Over):
            known = ", ".join(map(repr, get_args(Over)))
            raise ValueError(f"over is {self.over!r}; there are {known}: take one")

    def batches(
        self, model: nn.Module, shape: Sequence[int], *, progress: bool = False
    ) -> list[Tensor]:
        """Batches of inputs of a shape, that of one sample, such as ``(3, 32, 32)``.

        Raises:
            ValueError: A model without batch norms that keep statistics, or that does not take the
                shape; a distance that is not finite.
        """
        if not shape or min(shape) < 1:
            raise ValueError(
                f"shape is {tuple(shape)}; wanted that of one sample, such as (3, 32, 32)"
            )
        kept = statistics(model)
        like = next(itertools.chain(model.parameters(), *kept.values()))
        seeded = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.samples, *shape, generator=seeded)
        parts = noise.tensor_split(max(1, self.samples // self.batch))
        bar = iter(Sweep(progress=progress).steps("zeroq", range(len(parts) * self.steps)))

        def inputs(z: Tensor) -> Tensor:
            return (self.mean + self.std * z).to(like)

        with evaluating(model), torch.enable_grad(), _watching(kept, self.over) as terms:

            def far(z: Tensor) -> Tensor:
                terms.clear()
                answer(model, inputs(z))
                if not any(term.requires_grad for term in terms):
                    raise ValueError(
                        "no batch norm of the model gets a gradient from its input; give a model"
                        " whose forward runs them with gradients, or batches of real data"
                    )
                zero, one = torch.zeros(()).to(z), torch.ones(()).to(z)
                return torch.stack([*terms, distance(z, zero, one, self.over)]).sum()

            return [inputs(self._nearest(part.to(like.device), far, bar)) for part in parts]

    def _nearest(
        self, start: Tensor, far: Callable[[Tensor], Tensor], bar: Iterator[int]
    ) -> Tensor:
        """What Adam comes to, beginning at ``start``."""
        z = start.clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=self.rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, patience=100, min_lr=1e-4)
        for step in range(self.steps):
            next(bar)
            left = far(z)
            if not torch.isfinite(left):
                raise ValueError(
                    f"at step {step} the distance from the batch norms' statistics is"
                    f" {left.item()}; wanted a finite number: see that weights and statistics"
                    " are finite, run the model in float32, or give a lower rate"
                )
            (z.grad,) = torch.autograd.grad(left, z)
            adam.step()
            plateau.step(left.item())
        return z.detach()


def distance(x: Tensor, mean: Tensor, std: Tensor, over: Over) -> Tensor:
    """How far the statistics of (N, C, ...) are from (C,) a mean and a standard deviation."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(*x.shape[:2], -1)
    axes = (2,) if over == "sample" and x.shape[2] > 1 else (0, 2)
    variance, average = torch.var_mean(x, axes)
    error = (average - mean).square() + ((variance + _SMALL).sqrt() - std).square()
    return error.sum(-1).mean()


def statistics(model: nn.Module) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """(C,) mean and standard deviation that each batch norm keeps; ``ValueError`` without any."""
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not norms:
        raise ValueError(
            "the model has no batch norm, so it keeps no statistics that data could be made from;"
            " give batches of real data, or the model from before its batch norms were folded"
        )
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for name, norm in norms.items():
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(
                f"batch norm {name!r} keeps no statistics (track_running_stats=False); give batches"
                " of real data, or train it with track_running_stats=True"
            )
        kept[norm] = norm.running_mean.clone(), (norm.running_var + _SMALL).sqrt()
    if not any(mean.any() for mean, _ in kept.values()):
        raise ValueError(
            "the mean that every batch norm keeps is 0, as before any training; give a trained"
            " model, or batches of real data"
        )
    return kept


@contextmanager
def _watching(
    kept: Mapping[nn.Module, tuple[Tensor, Tensor]], over: Over
) -> Iterator[list[Tensor]]:
    """A list to which each batch norm that runs adds how far it reads from what it keeps."""
    terms: list[Tensor] = []

    def hook(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (x,) = (*args, *kwargs.values())
        terms.append(distance(x, *kept[norm], over))

    with ExitStack() as stack:
        for norm in kept:
            stack.callback(norm.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield terms
