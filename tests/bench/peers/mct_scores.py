"""Sony MCT's mixed-precision scores, in its own environment.

torchvision has no CPU build in every index, and MCT imports it without calling it for these scores:
a module of empty names stands in for it.
"""

import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.bench.peers.given import Batch, Seconds, told

for name, held in {
    "torchvision": "",
    "torchvision.transforms": "Normalize RandomCrop RandomHorizontalFlip CenterCrop",
    "torchvision.transforms.transforms": "_setup_size",
}.items():
    stub: Any = ModuleType(name)
    stub.__spec__ = ModuleSpec(name, None)
    stub.__version__ = "0.28"
    for one in held.split():
        setattr(stub, one, nn.Identity)
    sys.modules[name] = stub

MCT: Any = import_module("model_compression_toolkit")
QUANTIZERS: Any = import_module("mct_quantizers")
SEARCH: Any = import_module(
    "model_compression_toolkit.core.common.mixed_precision.mixed_precision_search_manager"
)
CAPABILITIES = "model_compression_toolkit.target_platform_capabilities"
SCHEMA: Any = import_module(f"{CAPABILITIES}.schema.mct_current_schema")
CONSTANTS: Any = import_module(f"{CAPABILITIES}.constants")
PLENTY = 1e9  # bytes of activations: restricted, so that they are scored, and never short
NARROW = 600e3  # bytes of weights: not all of them fit at 8 bits


class Scored(Exception):
    """The scores are there; what MCT would do with them is not wanted."""


def score(model: nn.Module, batches: list[Batch], *, by: str) -> dict[str, Any]:
    seconds, evaluation = Seconds(), SEARCH.SensitivityEvaluation
    manager = SEARCH.MixedPrecisionSearchManager
    prepare, build = evaluation.__init__, manager._build_sensitivity_mapping
    timed = seconds.timed(build)
    found: dict[Any, Any] = {}

    def scored(search: Any) -> None:
        found.update(timed(search))
        raise Scored

    def images() -> Iterator[list[Any]]:
        for x, _ in batches:
            yield [x.numpy()]

    evaluation.__init__ = seconds.timed(prepare)
    manager._build_sensitivity_mapping = scored
    count = sum(len(x) for x, _ in batches)
    metric = _divergence(model, batches) if by == "kl" else None
    start = time.process_time()
    try:
        MCT.ptq.pytorch_post_training_quantization(
            model,
            images,
            MCT.core.ResourceUtilization(weights_memory=NARROW, activation_memory=PLENTY),
            MCT.core.CoreConfig(
                mixed_precision_config=MCT.core.MixedPrecisionQuantizationConfig(
                    num_of_images=count, custom_metric_fn=metric
                )
            ),
            _platform(),
        )
    except Scored:
        pass
    finally:
        evaluation.__init__ = prepare
        manager._build_sensitivity_mapping = build
    options = {len(scores) for scores in found.values()}
    return {
        "version": f"MCT {version('model-compression-toolkit')}",
        "total": time.process_time() - start,
        "scoring": seconds.spent,
        "layers": len(found),
        "options": options.pop() if len(options) == 1 else -1,
        "scores": {node.name: list(scores) for node, scores in found.items()},
    }


def _divergence(model: nn.Module, batches: list[Batch]) -> Any:
    """The mean KL of the output from the float model's: the leanest metric MCT can be given."""
    with torch.no_grad():
        float_ones = [model(x).log_softmax(-1) for x, _ in batches]

    @torch.no_grad()
    def metric(mixed: Any) -> float:
        total = 0.0
        for (x, _), float_one in zip(batches, float_ones, strict=True):
            output = mixed(x)
            logits = output[-1] if isinstance(output, list | tuple) else output
            parts = (logits.log_softmax(-1), float_one)
            total += float(F.kl_div(*parts, reduction="sum", log_target=True))
        return total / sum(len(x) for x, _ in batches)

    return metric


def _platform() -> Any:
    """Convolutions and linear layers at 8 or 4 bits, weights by channel, nothing else quantized."""
    by_operator = SCHEMA.QuantizationConfigOptions
    searched = by_operator(
        quantization_configurations=(_operator(8), _operator(4)), base_config=_operator(8)
    )
    names = SCHEMA.OperatorSetNames
    return SCHEMA.TargetPlatformCapabilities(
        default_qco=by_operator(quantization_configurations=(_operator(None),)),
        operator_set=tuple(
            SCHEMA.OperatorsSet(name=name, qc_options=searched)
            for name in (names.CONV, names.FULLY_CONNECTED)
        ),
        tpc_minor_version=1,
        tpc_patch_version=0,
        tpc_platform_type="bench",
        add_metadata=False,
        name="bench",
    )


def _operator(bits: int | None) -> Any:
    weights = {CONSTANTS.KERNEL_ATTR: _attribute(bits), CONSTANTS.BIAS_ATTR: _attribute(None)}
    return SCHEMA.OpQuantizationConfig(
        default_weight_attr_config=_attribute(None),
        attr_weights_configs_mapping=weights if bits else {},
        activation_quantization_method=QUANTIZERS.QuantizationMethod.SYMMETRIC,
        activation_n_bits=bits or 8,
        supported_input_activation_n_bits=[4, 8],
        enable_activation_quantization=bits is not None,
        quantization_preserving=False,
        fixed_scale=None,
        fixed_zero_point=None,
        simd_size=None,
        signedness=SCHEMA.Signedness.AUTO,
    )


def _attribute(bits: int | None) -> Any:
    return SCHEMA.AttributeQuantizationConfig(
        weights_quantization_method=QUANTIZERS.QuantizationMethod.SYMMETRIC,
        weights_n_bits=bits or 8,
        weights_per_channel_threshold=True,
        enable_weights_quantization=bits is not None,
    )


if __name__ == "__main__":
    told({name: partial(score, by=name) for name in ("kl", "distance")})
