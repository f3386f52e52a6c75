"""Microcontrollers: cycles for each multiply-accumulate by operator, flash, and peak SRAM.

``latency`` is MACs times the cycles of one, over the clock; the device's file has cycles for 8-bit
convolutions, depthwise ones and linear layers, derived by us from MLPerf Tiny's published results.
Below 8 bits a core without such instructions is no faster, only its flash and SRAM are smaller: it
is priced at what it has, and the table says so. ``flash`` is exact bytes of packed weights,
``sram`` as in :mod:`mpsearch.hwmodels.sram`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpsearch.formats import Option
from mpsearch.hwmodels.device import Device, device
from mpsearch.hwmodels.size import Size
from mpsearch.hwmodels.sram import Scratch, Sram
from mpsearch.network import Layer, Network
from mpsearch.tables import Cost, Floats, Mask, Table

WIDTHS = (2, 4, 8)


@dataclass(frozen=True)
class Mcu:
    """``latency`` in seconds, ``flash`` and ``sram`` in bytes, of one sample.

    Attributes:
        device: A device of ours, or the path of its file: ``clock``, and cycles by operator and
            operand widths, such as ``cycles.conv2d.w8a8``; where it has one, ``overhead``, the
            cycles it takes to begin a layer.
        scratch: What kernels need beside their tensors (see ``Sram``).
        in_place: Whether depthwise convolutions write over their input.
    """

    device: str = "stm32h7a3"
    scratch: Scratch = "none"
    in_place: bool = False

    @cached_property
    def machine(self) -> Device:
        """The device's figures."""
        return device(self.device, model="mcu")

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Cost]:
        """All three; there is no reference for latency, as floats are not priced."""
        first = {operator_of(layer): layer for layer in reversed(network.layers)}
        each = {op: [self._runs_as(layer, o) for o in options] for op, layer in first.items()}
        runs = [each[operator_of(layer)] for layer in network.layers]
        table = Table(
            network.layers,
            tuple(options),
            self._seconds(network, runs),
            "s",
            "latency",
            allowed=network.mask(options),
            notes=_notes(options, runs),
        )
        flash = Size().costs(network, options)["size"]
        sram = Sram(self.scratch, self.in_place).costs(network, options)["sram"]
        stored = Table(
            network.layers,
            flash.options,
            flash.values,
            flash.unit,
            "flash",
            allowed=flash.allowed,
            fixed=flash.fixed,
            reference=flash.reference,
        )
        return {"latency": table, "flash": stored, "sram": sram}

    def _runs_as(self, layer: Layer, option: Option) -> str:
        """The figure an option of a layer is priced by: the narrowest kernel that holds it."""
        weight, activation = option.weight, option.activation
        operator = operator_of(layer)
        there = self.machine.family(f"cycles.{operator}")
        pairs = [
            (w, a) for w in WIDTHS for a in WIDTHS if w >= weight.bits and a >= activation.bits
        ]
        pairs.sort(key=lambda pair: pair[0] * pair[1])
        integers = weight.quantized and activation.quantized
        found = next((f"w{w}a{a}" for w, a in pairs if integers and f"w{w}a{a}" in there), None)
        if found is None:
            raise ValueError(
                f"layer {layer.name!r} at {str(option)!r}: device {self.machine.name!r} has no"
                f" cycles.{operator} that hold it; it has {', '.join(there) or 'none'}"
            )
        return found

    def _seconds(self, network: Network, runs: Sequence[Sequence[str]]) -> Floats:
        """(L, K) seconds."""
        work = np.array([_work(layer) for layer in network.layers], np.float64)
        cycles = [
            [self.machine[f"cycles.{operator_of(layer)}.{run}"] for run in row]
            for layer, row in zip(network.layers, runs, strict=True)
        ]
        spent = work[:, None] * np.array(cycles) + self.machine.get("overhead", 0.0)
        return np.asarray(spent / self.machine["clock"])


def operator_of(layer: Layer) -> str:
    """What a device's figures call a layer's operator."""
    if layer.role == "depthwise":
        return "depthwise"
    if layer.kind in ("linear", "embedding") or layer.kind.startswith("conv"):
        return "conv2d" if layer.kind.startswith("conv") else layer.kind
    raise ValueError(
        f"layer {layer.name!r} is a {layer.kind!r}; wanted conv, linear or embedding: leave it out"
        " (skip), or give a cost of your own with the lookup model"
    )


def _work(layer: Layer) -> int:
    """What cycles are counted for: MACs, and of an embedding the elements it copies."""
    return layer.outputs if layer.kind == "embedding" else layer.macs


def fit(macs: Floats, seconds: Floats, clock: float) -> Floats:
    """(O,) cycles a MAC of each operator, from (N, O) MACs of N networks and their (N,) seconds.

    Least squares of the relative error, none below zero (Lawson and Hanson 1974).
    """
    from scipy.optimize import nnls

    if len(macs) < macs.shape[1]:
        raise ValueError(
            f"got {len(macs)} networks for {macs.shape[1]} operators; measure as many or more"
        )
    cycles = seconds * clock
    return np.asarray(nnls(macs / cycles[:, None], np.ones(len(macs)))[0])


def _notes(options: Sequence[Option], runs: Sequence[Sequence[str]]) -> dict[str, Mask]:
    """Which entries run wider than they say."""
    notes: dict[str, Mask] = {}
    said = [f"w{option.weight.bits}a{option.activation.bits}" for option in options]
    for row, each in enumerate(runs):
        for column, (run, asked) in enumerate(zip(each, said, strict=True)):
            if run != asked:
                text = f"takes the cycles of {run}"
                notes.setdefault(text, np.zeros((len(runs), len(options)), bool))[row, column] = (
                    True
                )
    return notes
