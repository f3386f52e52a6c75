"""NVIDIA ModelOpt's two scores, in its own environment."""

import time
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.peers.given import Batch, Seconds, told

MTQ: Any = import_module("modelopt.torch.quantization")
ALGORITHMS: Any = import_module("modelopt.torch.quantization.algorithms")

SEARCHERS = {
    "kl_div": ALGORITHMS.AutoQuantizeKLDivSearcher,
    "gradient": ALGORITHMS.AutoQuantizeGradientSearcher,
}


def _format(bits: int) -> dict[str, Any]:
    """Weights by channel and inputs by tensor, both symmetric and over all of their range."""
    quantizers = {"*weight_quantizer": 0, "*input_quantizer": None}
    given = [
        {"quantizer_name": name, "cfg": {"num_bits": bits, "axis": axis}}
        for name, axis in quantizers.items()
    ]
    return {
        "quant_cfg": [{"quantizer_name": "*", "enable": False}, *given],
        "algorithm": "max",
    }


def score(model: nn.Module, batches: list[Batch], *, method: str) -> dict[str, Any]:
    seconds, searcher = Seconds(), SEARCHERS[method]
    untimed = searcher.estimate_sensitivity_scores
    searcher.estimate_sensitivity_scores = seconds.timed(untimed)

    def loss(output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch[1])

    start = time.process_time()
    try:
        _, found = MTQ.auto_quantize(
            model,
            constraints={"effective_bits": 6.0},
            quantization_formats=[_format(8), _format(4)],
            data_loader=batches,
            forward_step=lambda net, batch: net(batch[0]),
            loss_func=loss if method == "gradient" else None,
            num_calib_steps=len(batches),
            num_score_steps=len(batches),
            method=method,
        )
    finally:
        searcher.estimate_sensitivity_scores = untimed
    stats = list(found["candidate_stats"].values())
    options = {len(one["formats"]) - 1 for one in stats}  # without the float one
    return {
        "version": f"ModelOpt {version('nvidia-modelopt')}",
        "total": time.process_time() - start,
        "scoring": seconds.spent,
        "layers": len(stats),
        "options": options.pop() if len(options) == 1 else -1,
        "scores": {
            name.removesuffix(".quant_recipe"): one["scores"][1::-1]  # 8 bits first
            for name, one in found["candidate_stats"].items()
        },
    }


if __name__ == "__main__":
    told({name: partial(score, method=name) for name in SEARCHERS})
