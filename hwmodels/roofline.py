"""Latency on CPUs and GPUs: arithmetic against memory traffic, and what it takes to begin.

Williams, Waterman and Patterson, "Roofline", CACM 2009, for each layer as a matrix product::

    seconds = launch + serial * k + (compute ** q + memory ** q) ** (1 / q)

with ``compute`` the operations over the peak of the format that really runs, ``memory`` the bytes
over the bandwidth. ``launch``, ``serial`` (each further product of a sum) and the sharpness ``q``
are ours: with peaks of the specification alone, formats come out in the wrong order for half the
products measured on four GPUs; :func:`fit` finds all five for a format from measurements. Where a
device has no fitted figures there is no ``serial`` and the corner is sharp.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpsearch.formats import Format, Option
from mpsearch.hwmodels.device import Device, device
from mpsearch.hwmodels.gemm import Gemm, gemms
from mpsearch.hwmodels.phases import Phase, check_phase
from mpsearch.network import Network
from mpsearch.tables import Floats, Mask, Table

FITTED = ("launch", "peak", "bandwidth", "serial", "sharpness")
FEW = 60  # measurements below which only launch, peak and bandwidth are fitted
START = (5e-6, 1e14, 1e12, 1e-9, 2.0)
OUTPUT = 2  # bytes of an output


@dataclass(frozen=True)
class Roofline:
    """``latency`` of one batch, layer after layer.

    Attributes:
        device: A device of ours, or the path of its file: figures ``peak.FORMAT`` in operations a
            second, ``bandwidth`` in bytes a second, ``launch`` in seconds, and fitted ones by
            format, such as ``bandwidth.int8``.
        batch: Samples run together.
        phase: ``traced``: as many rows (pixels, tokens) a sample as the traced run had; ``decode``:
            one token a sample.
    """

    device: str = "h200"
    batch: int = 1
    phase: Phase = "traced"

    def __post_init__(self) -> None:
        """Refuse an unknown phase and an empty batch."""
        check_phase(self.phase)
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; wanted at least 1")

    @cached_property
    def machine(self) -> Device:
        """The device's figures."""
        return device(self.device, model="roofline")

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """``latency`` in seconds; the reference is the widest floats that the device has."""
        shapes = gemms(network)
        runs = [self.runs_as(option) for option in options]
        values = [
            self._seconds(shapes, option.weight, option.activation, name)
            for option, name in zip(options, runs, strict=True)
        ]
        wide = next(n for n in ("fp32", "bf16", "fp16") if f"peak.{n}" in self.machine.figures)
        float_ = Format.parse(wide)
        table = Table(
            network.layers,
            tuple(options),
            np.stack(values, axis=1),
            "s",
            "latency",
            allowed=network.mask(options),
            reference=math.fsum(self._seconds(shapes, float_, float_, wide).tolist()),
            notes=_notes(options, runs, len(network.layers)),
        )
        return {"latency": table}

    def runs_as(self, option: Option) -> str:
        """The format an option is multiplied in on this device.

        Integers run at the next wider integers that there are, floats at the next wider floats;
        where there are none, and where only weights are quantized, at 16- or 32-bit floats.
        """
        there = self.machine.family("peak")
        weight, activation = option.weight, option.activation
        wide = max(weight.bits, activation.bits)
        known: list[str] = []
        if not activation.quantized:
            known = (
                [f"w{weight.bits}a16", activation.base]
                if weight.quantized
                else [weight.base if weight.bits > activation.bits else activation.base]
            )
        elif weight.kind == activation.kind == "int":
            known = [name for name, bits in (("int4", 4), ("int8", 8)) if wide <= bits]
        elif weight.quantized:
            known += ["nvfp4"] if weight.base == activation.base == "nvfp4" else []
            known += ["fp8_block"] if weight.group and wide == 8 else []
            known += ["fp8"] if wide <= 8 else []
        found = next((n for n in (*known, "bf16", "fp16", "fp32") if n in there), None)
        if found is None:
            raise ValueError(
                f"option {str(option)!r}: device {self.machine.name!r} multiplies"
                f" {', '.join(there)}; give an option that runs as one of these"
            )
        return found

    def _seconds(self, shapes: Gemm, weight: Format, activation: Format, name: str) -> Floats:
        """(L,) seconds of each layer."""
        m = np.sign(shapes.m) if self.phase == "decode" else shapes.m
        operations = 2 * self.batch * m * shapes.k * shapes.n * shapes.groups
        # An embedding reads what it gives, not its table.
        stored = np.where(shapes.m > 0, shapes.weights, 0) * weight.stored_bits / 8
        read = activation.as_activation().stored_bits / 8
        traced = shapes.inputs * read + shapes.outputs * OUTPUT
        product = m * shapes.groups * (shapes.k * read + shapes.n * OUTPUT)
        unknown = (shapes.inputs == 0) | (self.phase == "decode")
        moved = stored + self.batch * np.where(unknown, product, traced)
        figures = [self._figure(figure, name) for figure in FITTED]
        return roof(figures, shapes.k, operations, moved)

    def _figure(self, figure: str, name: str) -> float:
        """A figure of a format, or that of all."""
        nothing = {"serial": 0.0, "sharpness": np.inf, "launch": 0.0}
        special = self.machine.figures.get(f"{figure}.{name}")
        if special is not None:
            return special.value
        if figure in nothing:
            return self.machine.get(figure, nothing[figure])
        return self.machine[figure]


def roof(figures: Sequence[float], k: Floats, operations: Floats, moved: Floats) -> Floats:
    """(L,) seconds, from launch, peak, bandwidth, serial and sharpness."""
    launch, peak, bandwidth, serial, sharpness = figures
    compute, memory = operations / peak, moved / bandwidth
    high, low = np.maximum(compute, memory), np.minimum(compute, memory)
    ratio = low / np.where(high > 0, high, 1.0)
    soft = 1.0 if np.isinf(sharpness) else (1 + ratio**sharpness) ** (1 / sharpness)
    return np.asarray(launch + serial * k + high * soft)


def fit(
    m: Floats, n: Floats, k: Floats, seconds: Floats, weight_bits: float, activation_bits: float
) -> dict[str, float]:
    """The figures of a format from (P,) measured products, by least squares of the logarithm.

    Large errors count less (soft L1), so that a few odd measurements spoil nothing. Below 60
    measurements ``serial`` and ``sharpness`` are left out.
    """
    from scipy.optimize import least_squares

    if len(seconds) < 3 or not (np.asarray(seconds) > 0).all():
        raise ValueError(f"got {len(seconds)} measurements; wanted at least 3, all above zero")
    operations = 2.0 * m * n * k
    moved = n * k * weight_bits / 8 + m * (k * activation_bits / 8 + n * OUTPUT)
    count = 3 if len(seconds) < FEW else len(FITTED)
    rest = (0.0, np.inf)[: 5 - count] if count == 3 else ()

    def figures(theta: NDArray[np.float64]) -> list[float]:
        free = np.exp(theta).tolist()
        return [*free[:4], 1 + free[4]] if count == 5 else [*free, *rest]

    def errors(theta: NDArray[np.float64]) -> Floats:
        return np.asarray(np.log(roof(figures(theta), k, operations, moved) / seconds))

    fast = float((operations / seconds).max())
    start = np.log([START[0], fast, float((moved / seconds).max()), START[3], 1.0][:count])
    low = np.log([1e-9, fast * 1e-3, fast * 1e-6, 1e-15, 1e-3][:count])
    high = np.log([1.0, fast * 1e3, fast * 1e3, 1e-3, 30.0][:count])
    found = least_squares(
        errors, np.clip(start, low, high), bounds=(low, high), loss="soft_l1", f_scale=0.1
    )
    names = FITTED[:count]
    return dict(zip(names, figures(found.x)[:count], strict=True))


def _notes(options: Sequence[Option], runs: Sequence[str], layers: int) -> dict[str, Mask]:
    """Which options do not run as they say."""
    notes: dict[str, Mask] = {}
    for column, (option, name) in enumerate(zip(options, runs, strict=True)):
        if (option.weight.base[: len(name)], option.activation.base[: len(name)]) != (name, name):
            where = notes.setdefault(
                f"is multiplied as {name}", np.zeros((layers, len(options)), bool)
            )
            where[:, column] = True
    return notes
