"""Arithmetic computation effort: what hardware spends on a multiply of these operand widths.

PokeBNN (Zhang, Zhang and Lew, arXiv 2112.00133, section 3) counts i x j for operands of i and j
bits; "Pareto-Optimal Quantized ResNet Is Mostly 4-bit" (arXiv 2105.03536) counts the wider operand,
rounded up to the widths an A100-like unit has. A 64-bit CPU does 64 binary products at a time (Liu
et al., "Bi-Real Net", arXiv 1808.00278); between there and 8 x 8 bits, which take one, the product
of the widths is counted, which is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.tables import Table

_UNITS = {"quadratic": "ACE", "linear": "ACE (linear)", "cpu64": "operations (CPU64)"}
LINEAR_WIDTHS = (4, 8, 16)


@dataclass(frozen=True)
class Ace:
    """ACE of one sample; unquantized operands count as bfloat16, 16 bits.

    ``quadratic`` is ACE as PokeBNN has it, ``linear`` the A100-like variant, ``cpu64`` operations
    of a 64-bit CPU.
    """

    variant: Literal["quadratic", "linear", "cpu64"] = "quadratic"

    def __post_init__(self) -> None:
        """Refuse an unknown variant."""
        if self.variant not in _UNITS:
            raise ValueError(f"no variant is named {self.variant!r}; there are {', '.join(_UNITS)}")

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``ace``, as integers but for ``cpu64``; the reference is bfloat16 throughout."""
        each = [self._effort(o.weight.bits, o.activation.bits) for o in options]
        macs = np.array([layer.macs for layer in network.layers], dtype=np.int64)
        table = Table(
            network.layers,
            tuple(options),
            macs[:, None] * np.array(each),
            _UNITS[self.variant],
            "ace",
            allowed=network.mask(options),
            reference=int(macs.sum()) * self._effort(16, 16),
        )
        return {"ace": table}

    def _effort(self, weight: int, activation: int) -> float:
        if self.variant == "cpu64":
            return min(weight * activation / 64, 1.0)
        weight, activation = min(weight, 16), min(activation, 16)
        if self.variant == "quadratic":
            return weight * activation
        return next(width for width in LINEAR_WIDTHS if width >= max(weight, activation))
