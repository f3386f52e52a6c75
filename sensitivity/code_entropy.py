"""What entropy the codes of Gaussian values have at a bit-width, and how often a network counts it.

From the Quantization Entropy Score (Sun et al. 2022, Entropy-Driven Mixed-Precision Quantization
for Deep Network Design): layers with Gaussian weights and inputs write Gaussian values, whose
entropy is the logarithm of their standard deviation, a constant apart. Counted in codes, that is
the sum over all layers so far of the logarithms of the deviations of weight codes and input codes;
the score adds it up at the end of each stage, times the stage's ratio, with the channels'
logarithm. Of all this only the codes depend on bits. The paper's own table of deviations is not at
hand: those here are of codes of the least squared error.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.tables import Floats

_FULL = 16
_POINTS = 1 << 14


@lru_cache
def code_deviation(bits: int) -> float:
    """The standard deviation of symmetric codes of a standard Gaussian, clipped for least error.

    >>> round(code_deviation(2), 2)  # codes -1, 0, 1
    0.74
    """
    x = ndtri((np.arange(_POINTS) + 0.5) / _POINTS)
    top = max(1, (1 << (bits - 1)) - 1)

    def codes(clip: float) -> Floats:
        found: Floats = np.clip(np.round(x / (clip / top)), -top, top)
        return found

    clips = np.linspace(0.5, x.max(), 400)
    best = min(clips, key=lambda clip: float(np.square(codes(clip) * (clip / top) - x).sum()))
    return float(codes(best).std())


def lost_nats(options: Sequence[Option]) -> Floats:
    """(options,) what an option's codes lose against 16 bits, weights and inputs added up."""
    full = math.log(code_deviation(_FULL))
    return np.array(
        [
            sum(
                full - math.log(code_deviation(form.bits))
                for form in (option.weight, option.activation)
                if form.quantized
            )
            for option in options
        ]
    )


def stage_weights(network: Network, ratios: Sequence[float]) -> Floats:
    """(layers,) the sum of the ratios of a layer's own stage and of those after it.

    A stage is what writes images of one size; what has none belongs to the last stage so far. The
    last stage has the last ratio: how a network of fewer stages than ratios is meant is uncertain,
    and this is the reading here. A stage before the first ratio counts as the first one.
    """
    stages, seen = [], list[tuple[int, ...]]()
    for layer in network.layers:
        image = layer.window.output if layer.window is not None else None
        if image is not None and image not in seen:
            seen.append(image)
        stages.append(seen.index(image) if image is not None else max(0, len(seen) - 1))
    shift = len(ratios) - max(1, len(seen))
    return np.array([sum(ratios[max(0, stage + shift) :]) for stage in stages], dtype=np.float64)
