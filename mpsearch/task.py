"""What is searched for: a model, the data that calibrates it, and the data that judges it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Task:
    """A model with its data.

    A batch that is a tensor is called as ``model(x)``, a tuple ``(x, y)`` as ``model(x)``, a dict
    as ``model(**batch)``.

    Attributes:
        model: A torch module; it is left as it was.
        batches: What calibrates and scores.
        heldout: What verification measures on; no search sees it.
        loss: ``loss(output, batch) -> one number``; by default the divergence from the float
            model's own output, which needs no labels.
        evaluate: The task's own metrics, ``evaluate(model) -> {"top1": 0.91}``, on held-out data.
    """

    model: Any
    batches: Sequence[Any]
    heldout: Sequence[Any] = ()
    loss: Callable[[Any, Any], Any] | None = None
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
