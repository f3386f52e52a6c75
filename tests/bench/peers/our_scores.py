"""Our scores, as the peers' are taken."""

import time
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import mpsearch
from mpsearch.formats import Option
from mpsearch.protocols import Estimator
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.fisher import Fisher
from mpsearch.sensitivity.kl import KL
from mpsearch.sensitivity.taylor import Taylor
from mpsearch.sweep import Sweep
from mpsearch.task import Task
from mpsearch.tracing import trace
from tests.bench.peers.given import Batch, told

OPTIONS = [Option.parse("w8a8"), Option.parse("w4a4")]
WHOLE = Recipe(ranges="minmax", activation_ranges="minmax", corrections=())
CLIPPED = Recipe(corrections=())


def score(
    model: nn.Module, batches: list[Batch], *, estimator: Estimator, recipe: Recipe
) -> dict[str, Any]:
    labels = not isinstance(estimator, KL)
    given = batches if labels else [x for x, _ in batches]
    task = Task(model, given, loss=_cross_entropy if labels else None)
    network = trace(model, batches[0][0])
    start = time.process_time()
    table = estimator.estimate(task, network, OPTIONS, recipe=recipe, sweep=Sweep())
    total = time.process_time() - start
    layers, options = table.values.shape
    named = zip(table.layers, table.values, strict=True)
    return {
        "version": f"mpsearch {mpsearch.__version__}",
        "total": total,
        "scoring": total,  # calibration and all: it is not told apart
        "layers": layers,
        "options": options,
        "scores": {layer.name: row.tolist() for layer, row in named},
    }


def _cross_entropy(output: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(output, batch[1])


if __name__ == "__main__":
    named: dict[str, tuple[Estimator, Recipe]] = {
        "kl": (KL(), WHOLE),
        "kl-clipped": (KL(), CLIPPED),
        "kl-corrected": (KL(), Recipe()),
        "fisher-outputs": (Fisher(at="outputs"), WHOLE),
        "fisher": (Fisher(), WHOLE),
        "taylor": (Taylor("llm-mq"), WHOLE),
        "autoround": (Taylor(), WHOLE),
    }
    told({k: partial(score, estimator=e, recipe=r) for k, (e, r) in named.items()})
