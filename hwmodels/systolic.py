"""Cycles of arrays of multiply-accumulate units: systolic, fused from narrow units, or tabulated.

What a device's figures name decides how it is counted. ``rows``, ``columns`` and ``fused``: Bit
Fusion (Sharma et al., ISCA 2018, as its published simulator counts), where a unit of 8 x 8 bits
works as up to 16 of 2 x 2. ``rows`` and ``columns`` alone: a systolic array as SCALE-Sim v2 counts
it (Samajdar et al., arXiv 1811.02883; for an output-stationary one its code has R where the paper
has 2R: the code is followed). ``macs_per_cycle``: a published table by operand widths, as of MPIC
(Ottavi et al., arXiv 2010.04073). Compute cycles only: memory is taken to keep up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from mpsearch.formats import Option
from mpsearch.hwmodels.device import Device, device
from mpsearch.hwmodels.gemm import Gemm, gemms
from mpsearch.network import Network
from mpsearch.tables import Floats, Mask, Numbers, Table

Dataflow = Literal["ws", "os", "is"]


@dataclass(frozen=True)
class Systolic:
    """``cycles`` and ``latency`` of one sample, and ``energy`` where the device has figures of it.

    Attributes:
        device: A device of ours, or the path of its file.
        dataflow: What stays in the units of a plain array: weights, outputs or inputs.
        batch: Samples run together; costs are of the whole batch.
    """

    device: str = "bitfusion"
    dataflow: Dataflow = "ws"
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse an unknown dataflow and an empty batch."""
        if self.dataflow not in ("ws", "os", "is"):
            raise ValueError(f"no dataflow is named {self.dataflow!r}; there are ws, os and is")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; wanted at least 1")

    @cached_property
    def machine(self) -> Device:
        """The device's figures."""
        return device(self.device, model="systolic")

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """One table for each cost; there is no unquantized reference on such a machine."""
        shapes = gemms(network)
        widths = [self._widths(option) for option in options]
        cycles = np.stack([self._cycles(shapes, w, a) for w, a in widths], axis=1)
        notes = _notes(options, widths, len(network.layers))
        allowed = network.mask(options)

        def table(name: str, unit: str, values: Numbers) -> Table:
            return Table(
                network.layers, tuple(options), values, unit, name, allowed=allowed, notes=notes
            )

        found = {
            "cycles": table("cycles", "cycle", np.ceil(cycles).astype(np.int64)),
            "latency": table("latency", "s", cycles / self.machine["clock"]),
        }
        if self.machine.family("energy"):
            found["energy"] = table("energy", "J", self._joules(shapes, widths, cycles))
        return found

    def _widths(self, option: Option) -> tuple[int, int]:
        """The operand widths (weight, activation) an option really runs at."""
        there = self._there()
        pair = []
        for role in (option.weight, option.activation):
            wide = [bits for bits in there if bits >= role.bits]
            if not wide or not role.quantized:
                raise ValueError(
                    f"option {str(option)!r}: device {self.machine.name!r} multiplies integers of"
                    f" {', '.join(map(str, there))} bits, not {role.base}; give such an option"
                )
            pair.append(wide[0])
        return pair[0], pair[1]

    def _there(self) -> list[int]:
        """The operand widths the machine has."""
        table = self.machine.family("macs_per_cycle")
        if table:
            return sorted({int(key.split("a")[1]) for key in table})
        if "fused" not in self.machine.figures:
            return [8]
        widest, narrowest = int(self.machine["fused"]), int(self.machine["narrowest"])
        return [narrowest << step for step in range((widest // narrowest).bit_length())]

    def _cycles(self, shapes: Gemm, weight: int, activation: int) -> Floats:
        """(L,) cycles at these operand widths."""
        if self.machine.family("macs_per_cycle"):
            rate = self.machine[f"macs_per_cycle.w{weight}a{activation}"]
            return self.batch * shapes.macs / rate
        if "fused" in self.machine.figures:
            return self._fused(shapes, weight, activation)
        return self._systolic(shapes)

    def _fused(self, shapes: Gemm, weight: int, activation: int) -> Floats:
        """Bit Fusion: rows take input channels, so many times more as operands are narrower.

        The first layer, of few channels, is unrolled over its kernel too.
        """
        widest = int(self.machine["fused"])
        rows = int(self.machine["rows"]) * (widest // weight) * (widest // activation)
        columns = int(self.machine["columns"])
        deep = np.where(
            shapes.first, _ceil(shapes.k, rows), shapes.kernel * _ceil(shapes.channels, rows)
        )
        return np.asarray(self.batch * shapes.m * shapes.groups * _ceil(shapes.n, columns) * deep)

    def _systolic(self, shapes: Gemm) -> Floats:
        """SCALE-Sim: folds of the array, each filled and drained."""
        rows, columns = int(self.machine["rows"]), int(self.machine["columns"])
        m = shapes.m * self.batch
        down, across, through = {
            "ws": (shapes.k, shapes.n, m),
            "os": (m, shapes.n, shapes.k),
            "is": (shapes.k, m, shapes.n),
        }[self.dataflow]
        fill = rows if self.dataflow == "os" else 2 * rows
        folds = _ceil(down, rows) * _ceil(across, columns)
        return np.asarray(shapes.groups * folds * (fill + columns + through - 2))

    def _joules(self, shapes: Gemm, widths: Sequence[tuple[int, int]], cycles: Floats) -> Floats:
        """(L, K) the array at work, and each operand once through its buffer (so a lower bound)."""
        energy = self.machine.family("energy")
        weights, inputs = (np.array(bits) for bits in zip(*widths, strict=True))
        through = np.outer(shapes.weights, weights) * energy["weights"]
        through = through + self.batch * np.outer(shapes.inputs, inputs) * energy["inputs"]
        out = self.batch * np.outer(shapes.outputs, inputs) * energy["outputs"]
        return np.asarray(cycles * energy["cycle"] + through + out)


def _ceil(count: Floats, by: int) -> Floats:
    return np.ceil(count / by)


def _notes(
    options: Sequence[Option], widths: Sequence[tuple[int, int]], layers: int
) -> dict[str, Mask]:
    """Which options run wider than they say."""
    notes: dict[str, Mask] = {}
    for column, (option, (weight, activation)) in enumerate(zip(options, widths, strict=True)):
        if (option.weight.bits, option.activation.bits) != (weight, activation):
            where = notes.setdefault(
                f"runs at {weight}-bit weights and {activation}-bit activations",
                np.zeros((layers, len(options)), bool),
            )
            where[:, column] = True
    return notes
