"""Bit operations: multiply-accumulates times the bits of their operands.

Papers count differently under one name; each way is a named variant, and they are never mixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.tables import Table


@dataclass(frozen=True)
class BitOps:
    """Bit operations of one sample.

    ``hawq-v3``: MACs x weight bits x activation bits (HAWQ-V3, arXiv 2011.10680; fp32 is 32 x 32).
    ``nncf``: MACs x the larger of both (NNCF's bit complexity).
    """

    variant: Literal["hawq-v3", "nncf"] = "hawq-v3"

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``bitops`` as integers; the reference is every operand at 32 bits."""
        each = [self._bits(o.weight.bits, o.activation.bits) for o in options]
        macs = np.array([layer.macs for layer in network.layers], dtype=np.int64)
        table = Table(
            network.layers,
            tuple(options),
            macs[:, None] * np.array(each, dtype=np.int64),
            "BitOps" if self.variant == "hawq-v3" else "BitOps (NNCF)",
            "bitops",
            allowed=network.mask(options),
            reference=int(macs.sum()) * self._bits(32, 32),
        )
        return {"bitops": table}

    def _bits(self, weight: int, activation: int) -> int:
        return weight * activation if self.variant == "hawq-v3" else max(weight, activation)
