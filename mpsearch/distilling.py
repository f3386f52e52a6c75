"""Calibration data for a user who has none: made from the model by a method of the registry."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mpsearch.registry import make

if TYPE_CHECKING:
    from torch import Tensor


class Distiller(Protocol):
    """Makes calibration data from a model alone."""

    def batches(
        self, model: Any, shape: Sequence[int], *, progress: bool = False
    ) -> "list[Tensor]":
        """Batches of inputs, each of the shape, that of one sample."""
        ...


def distilled(
    model: Any,
    shape: Sequence[int],
    method: str | Distiller = "zeroq",
    *,
    labels: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> list[Any]:
    """Batches for a task whose model takes inputs of a shape, such as ``(3, 32, 32)``.

    ``method`` is a name of kind ``data``, ``zeroq:128`` being one with 128 samples, or what makes
    the data. With ``labels`` they are pairs (x, y), y the class that the model itself finds
    likeliest, for estimators that want labels.
    """
    maker: Distiller = make("data", method, seed=seed) if isinstance(method, str) else method
    batches = maker.batches(model, shape, progress=progress)
    if not labels:
        return list(batches)
    from mpsearch.batches import tensor_of
    from mpsearch.tracing import answer, evaluating

    with evaluating(model):
        return [(x, tensor_of(answer(model, x)).argmax(-1)) for x in batches]
