"""Energy of one sample: the arithmetic, and moving the operands.

Horowitz, "Computing's Energy Problem", ISSCC 2014, gives additions and multiplications of 8- and
32-bit integers and of floats, and reads of memories. Integers between and below are put on the
power law through the two published widths, of the product of both widths for a multiplication;
that law is ours. Each weight is read once from where weights live, each activation read and written
once where activations live.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpsearch.formats import Format, Option
from mpsearch.hwmodels.device import Device, device
from mpsearch.network import Network
from mpsearch.tables import Floats, Mask, Table

WORD = 64  # bits of one published read


@dataclass(frozen=True)
class Energy:
    """``energy`` in joule; unquantized operands are floats, and a mix of both runs as floats.

    Attributes:
        device: A device of ours, or the path of its file.
        weights: Where weights live: a figure ``read.NAME`` of the device.
        activations: Where activations live.
        accumulator: Bits of the integer sums.
    """

    device: str = "horowitz-45nm"
    weights: str = "dram"
    activations: str = "sram1m"
    accumulator: int = 32

    @cached_property
    def machine(self) -> Device:
        """The device's figures."""
        return device(self.device, model="energy")

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``energy``; the reference is 32-bit floats throughout."""
        fixed = self._read(self.weights) * 8 * sum(each.bytes for each in network.fixed)
        wide = self._joules(network, Option.parse("fp32/fp32"))
        mixed = np.array([o.weight.quantized != o.activation.quantized for o in options])
        where: Mask = np.broadcast_to(mixed, (len(network.layers), len(options)))
        note = "integers are turned into floats before they are multiplied"
        table = Table(
            network.layers,
            tuple(options),
            np.stack([self._joules(network, option) for option in options], axis=1),
            "J",
            "energy",
            allowed=network.mask(options),
            fixed=fixed,
            reference=math.fsum([*wide.tolist(), fixed]),
            notes={note: where} if mixed.any() else {},
        )
        return {"energy": table}

    def _joules(self, network: Network, option: Option) -> Floats:
        """(L,) energy of each layer."""
        weight, activation = option.weight, option.activation
        layers = network.layers
        macs = np.array([layer.macs for layer in layers], np.float64)
        weights = np.array([layer.params for layer in layers], np.float64)
        moved = np.array([layer.inputs + layer.outputs for layer in layers], np.float64)
        return np.asarray(
            macs * self.mac(weight, activation)
            + weights * weight.stored_bits * self._read(self.weights)
            + moved * activation.as_activation().stored_bits * self._read(self.activations)
        )

    def _read(self, memory: str) -> float:
        """Energy of one bit read from a memory."""
        return self.machine[f"read.{memory}"] / WORD

    def mac(self, weight: Format, activation: Format) -> float:
        """Energy of one multiply-accumulate of these operands."""
        if weight.quantized and activation.quantized:
            pair = weight.bits * activation.bits
            product = self._law("multiply", pair, 64, 1024)
            return product + self._law("add", self.accumulator, 8, 32)
        float_bits = max(f.bits for f in (weight, activation) if not f.quantized)
        return self.machine[f"multiply.fp{float_bits}"] + self.machine[f"add.fp{float_bits}"]

    def _law(self, operation: str, size: int, narrow: int, wide: int) -> float:
        """The power law through an operation's two integer entries."""
        low, high = (self.machine[f"{operation}.int{bits}"] for bits in (8, 32))
        exponent = math.log(high / low) / math.log(wide / narrow)
        return low * math.pow(size / narrow, exponent)
