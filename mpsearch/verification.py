"""Predicted beside measured: allocations really quantized and run on data no search saw.

Judged by the divergence from the float network's own output, the relative error of its logits, and
the task's metrics; accuracy alone is blind on easy data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mpsearch.allocation import Allocation, Baseline
from mpsearch.baselines import instead, name
from mpsearch.batches import call, checked, divergence, tensor_of, unit
from mpsearch.formats import Option
from mpsearch.pareto import Frontier
from mpsearch.quant.model import quantize
from mpsearch.quant.recipe import Recipe
from mpsearch.sweep import Sweep
from mpsearch.task import Task
from mpsearch.tracing import evaluating


@dataclass(frozen=True)
class Measured:
    """What one quantized network gave on held-out data.

    Attributes:
        divergence: (N,) per sample, KL in nats (relative squared error for what is no logits).
        relative_logit_error: ``||quantized - float|| / ||float||`` over all outputs.
        metrics: The task's own.
    """

    divergence: tuple[float, ...]
    relative_logit_error: float
    metrics: Mapping[str, float]
    unit: str

    @property
    def mean(self) -> float:
        """Mean divergence over samples."""
        return math.fsum(self.divergence) / len(self.divergence)

    @property
    def stderr(self) -> float:
        """Standard error of the mean over samples."""
        return _stderr(self.divergence)

    def document(self) -> dict[str, Any]:
        """As an allocation records it."""
        return {
            "kl" if self.unit.startswith("KL") else "relative_mse": self.mean,
            "stderr": self.stderr,
            "relative_logit_error": self.relative_logit_error,
            "metrics": dict(self.metrics),
            "samples": len(self.divergence),
        }


def _stderr(numbers: Sequence[float]) -> float:
    if len(numbers) < 2:
        return 0.0
    mean = math.fsum(numbers) / len(numbers)
    spread = math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
    return math.sqrt(spread / len(numbers))


def outputs(model: nn.Module, batches: Sequence[Any]) -> list[Tensor]:
    """The model's output on each batch, in eval mode and without gradients."""
    with evaluating(model):
        return [tensor_of(call(model, batch)).detach().clone() for batch in batches]


def measure(model: nn.Module, task: Task, reference: Sequence[Tensor]) -> Measured:
    """How far ``model`` is from the float outputs ``reference`` on the task's held-out batches."""
    each: list[float] = []
    error = power = 0.0
    with evaluating(model):
        for one, batch in zip(reference, task.heldout, strict=True):
            other = tensor_of(call(model, batch))  # of one batch at a time
            each += divergence(one, other).tolist()
            error += (other.double() - one.double()).square().sum().item()
            power += one.double().square().sum().item()
    if not all(math.isfinite(x) for x in each):
        raise ValueError(
            "the quantized network's output is not finite on held-out data; look for NaN or"
            " infinity in its weights or inputs"
        )
    metrics = {} if task.evaluate is None else dict(task.evaluate(model))
    return Measured(tuple(each), math.sqrt(error / max(power, 1e-300)), metrics, unit(reference[0]))


@dataclass(frozen=True, eq=False)
class Verifier:
    """Quantizes allocations of one task for real and measures them; each distinct one once.

    Attributes:
        task: What is quantized, and what judges it.
        recipe: How.
        reference: The float network's output on each held-out batch.
        done: What was measured, by the options of all modules.
        quantize: What makes the quantized network; such as one on a backend's kernels.
    """

    task: Task
    recipe: Recipe
    reference: tuple[Tensor, ...]
    done: dict[tuple[tuple[str, str], ...], Measured]
    quantize: Callable[..., nn.Module] = quantize

    @classmethod
    def of(cls, task: Task, recipe: Recipe | Mapping[str, Any] | None = None) -> "Verifier":
        """Run the float network on the held-out batches."""
        checked(task.batches)
        if not task.heldout:
            raise ValueError("the task has no held-out batches; give Task(model, batches, heldout)")
        checked(task.heldout)
        made = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe or {})
        return cls(task, made, tuple(outputs(task.model, task.heldout)), {})

    def float(self) -> Mapping[str, float]:
        """The float network's own metrics."""
        return {} if self.task.evaluate is None else dict(self.task.evaluate(self.task.model))

    def __call__(self, options: Mapping[str, Option]) -> Measured:
        """Quantize modules at their options, and measure."""
        key = tuple(sorted((module, str(option)) for module, option in options.items()))
        if key not in self.done:
            model = self.quantize(self.task.model, options, self.task.batches, self.recipe)
            self.done[key] = measure(model, self.task, self.reference)
        return self.done[key]


def by_module(
    layers: Mapping[str, Option], modules: Mapping[str, Sequence[str]]
) -> dict[str, Option]:
    """Options by module name, from options by layer."""
    return {module: option for layer, option in layers.items() for module in modules[layer]}


def verify(
    task: Task,
    allocation: Allocation,
    *,
    others: Mapping[str, Mapping[str, Option]] | None = None,
    verifier: Verifier | None = None,
    sweep: Sweep | None = None,
) -> Allocation:
    """The allocation with measured figures beside the predicted ones, and those of its baselines.

    ``others`` are further allocations to measure, by name, each an option for every layer. Where a
    baseline within the budgets is measured better than the mix, that baseline is returned and
    ``provenance["guard"]`` says so.
    """
    check = Verifier.of(task, allocation.recipe) if verifier is None else verifier
    runs: dict[str, Mapping[str, Option]] = {"allocation": allocation.layers}
    simple = {"uniform": allocation.uniform, "template": allocation.template}
    runs |= {kind: b.layers for kind, b in simple.items() if b is not None}
    runs |= others or {}
    found = {
        kind: check(by_module(runs[kind], allocation.modules))
        for kind in (sweep or Sweep()).steps("verify", list(runs))
    }
    mine = found.pop("allocation")
    measured = mine.document() | {
        "float": {"metrics": dict(check.float())},
        "baselines": {kind: one.document() for kind, one in found.items()},
    }
    rivals = [(found[kind], b) for kind, b in simple.items() if b is not None]
    return _guarded(replace(allocation, measured=measured), mine, rivals)


def _guarded(
    answer: Allocation, mine: Measured, rivals: Sequence[tuple[Measured, Baseline]]
) -> Allocation:
    better = [(run, b) for run, b in rivals if run.mean < mine.mean and b.layers != answer.layers]
    if not better:
        return answer
    run, baseline = min(better, key=lambda pair: pair[0].mean)
    paired = [a - b for a, b in zip(mine.divergence, run.divergence, strict=True)]
    why = (
        f"{name(baseline)} is measured better ({run.mean:.6g}) than the mix ({mine.mean:.6g},"
        f" difference {mine.mean - run.mean:.3g} +- {_stderr(paired):.2g})"
    )
    measured = {**(answer.measured or {}), **run.document(), "mix": mine.document()}
    return replace(instead(answer, baseline, why), measured=measured)


def verify_frontier(
    frontier: Frontier,
    points: Sequence[int],
    verifier: Verifier,
    sweep: Sweep | None = None,
) -> dict[int, Measured]:
    """Measured figures of some points of a frontier, by index."""
    steps = (sweep or Sweep()).steps("verify points", list(points))
    return {i: verifier(frontier[i].by_module()) for i in steps}
