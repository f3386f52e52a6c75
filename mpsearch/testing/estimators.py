"""Laws of estimators: finite, repeatable, and the model is left as it was."""

import contextlib
import itertools
import math
import unittest
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from mpsearch.formats import Option, options
from mpsearch.protocols import Estimator
from mpsearch.tables import Table
from mpsearch.task import Task


@dataclass(frozen=True)
class _State:
    """All of a model that an estimator must leave as it was."""

    tensors: dict[str, bytes]
    modes: tuple[bool, ...]
    hooks: tuple[int, ...]
    gradients: tuple[tuple[bool, bool], ...]
    classes: tuple[type, ...]

    @classmethod
    def of(cls, model: Any) -> "_State":
        modules = list(model.modules())
        return cls(
            {k: v.detach().numpy().tobytes() for k, v in model.state_dict().items()},
            tuple(m.training for m in modules),
            tuple(
                len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
                for m in modules
            ),
            tuple((p.requires_grad, p.grad is None) for p in model.parameters()),
            tuple(type(m) for m in modules),
        )


class _Midway(Exception):
    """What the laws raise in the middle of an estimate."""


class EstimatorSuite:
    """What any estimator does, on a tiny convolutional network.

    Attributes:
        estimator: The estimator.
        runs_model: Whether it calls the model, so that it notices one that is not deterministic.
    """

    estimator: Estimator
    options: Sequence[Option] = options("int2/int8", "int4/int8", "int8/int8", "fp32/fp32")
    runs_model: bool = True

    def model(self) -> Any:
        """What is estimated: a convolution, a batch norm, and two linear layers, in eval mode."""
        import torch
        from torch import nn

        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Conv2d(2, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64, 8),
                nn.ReLU(),
                nn.Linear(8, 5),
            ).eval()

    def batches(self) -> list[Any]:
        """Two batches of eight inputs with labels."""
        import torch

        seeded = torch.Generator().manual_seed(1)
        return [
            (torch.randn(8, 2, 6, 6, generator=seeded), torch.randint(5, (8,), generator=seeded))
            for _ in range(2)
        ]

    def estimate(self, task: Task, traced: Any = None) -> Table:
        """The table of a task; ``traced`` is what the network is traced from, if not the model."""
        if find_spec("torch") is None:
            raise unittest.SkipTest("torch is not installed")
        from mpsearch.quant.recipe import Recipe
        from mpsearch.sweep import Sweep
        from mpsearch.tracing import trace

        found = trace(self.model() if traced is None else traced, self.batches()[0])
        return self.estimator.estimate(
            task, found, tuple(self.options), recipe=Recipe(), sweep=Sweep(progress=False)
        )

    def test_one_finite_number_per_layer_and_option(self) -> None:
        table = self.estimate(Task(self.model(), self.batches()))
        assert [layer.name for layer in table.layers] == ["0", "4", "6"]
        assert table.options == tuple(self.options)
        assert np.isfinite(table.values).all()
        assert table.unit

    def test_more_bits_lose_less_in_all_and_none_lose_nothing(self) -> None:
        table = self.estimate(Task(self.model(), self.batches()))
        coarse, *_, fine, full = table.values.sum(axis=0)
        assert coarse > fine
        np.testing.assert_allclose(full, 0, atol=1e-9 * coarse)

    def test_same_bytes_whatever_the_state_of_global_randomness(self) -> None:
        import torch

        found = []
        for seed in (1, 2):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                before = torch.random.get_rng_state()
                table = self.estimate(Task(self.model(), self.batches()))
                assert bool((torch.random.get_rng_state() == before).all())
            stderr = b"" if table.stderr is None else table.stderr.tobytes()
            found.append((table.values.tobytes(), stderr))
        assert found[0] == found[1]

    def test_the_model_is_left_as_it_was(self) -> None:
        model = self.model()
        before = _State.of(model)
        self.estimate(Task(model, self.batches()))
        assert _State.of(model) == before

    def test_the_model_is_left_as_it_was_when_the_loss_raises_midway(self) -> None:
        for after, error in itertools.product((0, 1, 4), (_Midway, KeyboardInterrupt)):
            calls = itertools.count()

            def loss(output: Any, batch: Any, *, calls: Any, after: int, error: Any) -> Any:
                if next(calls) >= after:
                    raise error
                return output.square().mean()

            model = self.model()
            before = _State.of(model)
            broken = partial(loss, calls=calls, after=after, error=error)
            with contextlib.suppress(_Midway, KeyboardInterrupt):
                self.estimate(Task(model, self.batches(), loss=broken))
            assert _State.of(model) == before

    def test_refuses_a_model_that_is_not_deterministic(self) -> None:
        if not self.runs_model:
            return  # this estimator does not call the model
        import torch
        from torch import nn

        class Noisy(nn.Module):
            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: torch.Tensor) -> Any:
                return self.inner(x) + torch.rand(())

        noisy = Noisy(self.model()).eval()
        self._refuses(Task(noisy, self.batches()), "deterministic", noisy)

    def test_refuses_empty_batches(self) -> None:
        if not self.runs_model:
            return  # this estimator does not call the model
        import torch

        self._refuses(Task(self.model(), []), "batch")
        self._refuses(Task(self.model(), [torch.zeros(0, 2, 6, 6)]), "empty")

    def test_refuses_a_loss_that_is_not_finite(self) -> None:
        if not self.runs_model:
            return  # this estimator does not call the model

        def loss(output: Any, batch: Any) -> Any:
            return output.sum() * math.nan

        try:
            table = self.estimate(Task(self.model(), self.batches(), loss=loss))
        except ValueError as reason:
            assert "nan" in str(reason).lower()
        else:
            assert np.isfinite(table.values).all()  # an estimator that does not ask the loss

    def _refuses(self, task: Task, word: str, traced: Any = None) -> None:
        try:
            self.estimate(task, traced)
        except ValueError as reason:
            assert word in str(reason)
        else:
            raise AssertionError(f"it took a task it should refuse as {word!r}")
