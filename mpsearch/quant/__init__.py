"""Formats applied to tensors: rounding, packing, calibration, corrections, quantized networks.

Names are loaded on first use, so that ``mpsearch.quant.recipe`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsearch.quant.activations import Grid, fake_quantize
    from mpsearch.quant.attention import explicit
    from mpsearch.quant.bench import Bench
    from mpsearch.quant.codes import Codes
    from mpsearch.quant.encoding import encode, round_trip
    from mpsearch.quant.model import packed, quantize, quantized_like
    from mpsearch.quant.packing import pack, unpack
    from mpsearch.quant.places import Mixed, mixed
    from mpsearch.quant.recipe import Recipe
    from mpsearch.quant.replay import Replay
    from mpsearch.quant.unfusing import unfused

_HOME = {
    "activations": "Grid fake_quantize",
    "attention": "explicit",
    "bench": "Bench",
    "codes": "Codes",
    "encoding": "encode round_trip",
    "model": "packed quantize quantized_like",
    "packing": "pack unpack",
    "places": "Mixed mixed",
    "recipe": "Recipe",
    "replay": "Replay",
    "unfusing": "unfused",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "Bench",
    "Codes",
    "Grid",
    "Mixed",
    "Recipe",
    "Replay",
    "encode",
    "explicit",
    "fake_quantize",
    "mixed",
    "pack",
    "packed",
    "quantize",
    "quantized_like",
    "round_trip",
    "unfused",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'mpsearch.quant' has no attribute {name!r}")
    value = getattr(import_module(f"mpsearch.quant.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
