"""From a torch module to a network: its layers, the graph between them, what they must share."""

from mpsearch.tracing.piecewise import curved, piecewise_linear
from mpsearch.tracing.runs import answer, check_deterministic, evaluating
from mpsearch.tracing.sites import module_weight, output_first, sites
from mpsearch.tracing.tracer import trace

__all__ = [
    "answer",
    "check_deterministic",
    "curved",
    "evaluating",
    "module_weight",
    "output_first",
    "piecewise_linear",
    "sites",
    "trace",
]
