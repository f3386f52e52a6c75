"""Streaming accelerators on FPGAs: every layer its own pipeline stage, folded to keep up.

FINN (Blott et al., TRETS 2018; formulas of its analysis passes): a layer multiplies PE x SIMD
operands a cycle, so more of them cost resources and save cycles. For each layer and option the
cheapest legal folding that takes at most ``clock / rate`` cycles is chosen, or the fastest where
none does; then ``cycles`` is a maximum over layers (a pipeline is as fast as its slowest stage) and
resources are sums. hls4ml (Fahim et al., arXiv 2103.05579) folds by a reuse factor instead, by its
own rule of which are legal. Line buffers, streams and control are not counted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from mpsearch.formats import Option
from mpsearch.hwmodels.device import Device, device
from mpsearch.hwmodels.gemm import gemms
from mpsearch.network import Network
from mpsearch.tables import Table

Flow = Literal["finn", "hls4ml"]
Where = Literal["lut", "dsp"]
RESOURCES = ("lut", "dsp", "bram18", "uram")


@dataclass(frozen=True)
class Stage:
    """One layer as FINN sees it.

    Attributes:
        rows: Output channels (of all groups).
        columns: Products in a sum.
        pixels: Vectors of one sample.
        depthwise: Whether every channel has its own weights.
    """

    rows: int
    columns: int
    pixels: int
    depthwise: bool = False


@dataclass(frozen=True)
class Folded:
    """What a folding takes; for hls4ml ``simd`` is 1 and ``pe`` the multipliers."""

    pe: int
    simd: int
    cycles: int
    lut: float
    dsp: int
    bram18: int
    uram: int


@dataclass(frozen=True)
class Fpga:
    """``cycles`` of one sample (a maximum), and ``lut``, ``dsp``, ``bram18`` and ``uram`` (sums).

    Attributes:
        device: A part of ours, or the path of its file: ``clock``, what there is of each resource,
            and ``usable.*``, the share of it that routing leaves.
        rate: Samples a second to keep up with.
        flow: FINN, or hls4ml.
        multipliers: What multiplies: logic, or DSP slices.
        weights: Where weights live.
    """

    device: str = "zynq7020"
    rate: float = 1000.0
    flow: Flow = "finn"
    multipliers: Where = "lut"
    weights: Literal["lutram", "bram", "uram"] = "bram"

    def __post_init__(self) -> None:
        """Refuse what is not there."""
        for name, known in (
            ("flow", ("finn", "hls4ml")),
            ("multipliers", ("lut", "dsp")),
            ("weights", ("lutram", "bram", "uram")),
        ):
            if getattr(self, name) not in known:
                there = ", ".join(known)
                raise ValueError(f"{name} is {getattr(self, name)!r}; there are {there}")
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate}; wanted samples a second, above zero")

    @cached_property
    def machine(self) -> Device:
        """The part's figures."""
        return device(self.device, model="fpga")

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Table]:
        """One table each; a resource's reference is what the part lets one use."""
        cycles = math.floor(self.machine["clock"] / self.rate)
        stages = self._stages(network)
        folds = [
            [self._folded(stage, *_widths(option), cycles) for option in options]
            for stage in stages
        ]
        allowed = network.mask(options)

        def table(name: str, unit: str, most: float | None, reduce: Literal["sum", "max"]) -> Table:
            values = np.array([[getattr(fold, name) for fold in row] for row in folds])
            return Table(
                network.layers,
                tuple(options),
                values,
                unit,
                name,
                allowed=allowed,
                reference=most,
                reduce=reduce,
            )

        found = {"cycles": table("cycles", "cycle", None, "max")}
        for name in RESOURCES:
            most = self.machine.get(name, 0) * self.machine.get(f"usable.{name}", 1)
            found[name] = table(name, name, most or None, "sum")
        return found

    def _stages(self, network: Network) -> list[Stage]:
        shapes = gemms(network)
        stages = []
        for row, layer in enumerate(network.layers):
            if layer.kind == "embedding" or not shapes.m[row]:
                raise ValueError(
                    f"layer {layer.name!r} is a {layer.kind!r}; a stage multiplies: wanted conv or"
                    " linear, leave it out (skip)"
                )
            depthwise = shapes.channels[row] == 1 and shapes.groups[row] > 1
            rows = int(shapes.n[row] * shapes.groups[row])
            stages.append(Stage(rows, int(shapes.k[row]), round(shapes.m[row]), depthwise))
        return stages

    def _folded(self, stage: Stage, weight: int, activation: int, most: int) -> Folded:
        return _cheapest(stage, weight, activation, most, self.flow, self.multipliers, self.weights)


def _widths(option: Option) -> tuple[int, int]:
    """Bits of weight and activation; ``ValueError`` for floats, which no stage multiplies."""
    for role in (option.weight, option.activation):
        if role.kind not in ("int", "fixed", "binary", "ternary", "power"):
            raise ValueError(
                f"option {str(option)!r}: stages multiply integers and fixed point (int4, fx8.4),"
                f" not {role.base}"
            )
    return option.weight.bits, option.activation.bits


@lru_cache(maxsize=100_000)
def _cheapest(
    stage: Stage, weight: int, activation: int, most: int, flow: Flow, by: Where, kept: str
) -> Folded:
    """The legal folding of fewest multipliers within the cycles, or the fastest."""
    made = [
        _stage_costs(stage, pe, simd, weight, activation, flow, by, kept)
        for pe, simd in _foldings(stage, most, flow)
    ]
    within = [fold for fold in made if fold.cycles <= most]
    if within:
        return min(within, key=lambda f: (f.pe * f.simd, f.lut, f.cycles, f.pe))
    return min(made, key=lambda f: (f.cycles, f.lut))


def _foldings(stage: Stage, most: int, flow: Flow) -> Iterator[tuple[int, int]]:
    """Legal foldings; of those in time for each number of PEs only the fewest SIMD lanes."""
    if flow == "hls4ml":
        work = stage.rows * stage.columns
        for factor in divisors(work):
            if legal_reuse(stage.columns, stage.rows, factor):
                yield work // factor, 1
        return
    lanes = divisors(stage.columns)
    for pe in divisors(stage.rows):
        in_time = [simd for simd in lanes if mvau_cycles(stage, pe, simd) <= most]
        yield pe, in_time[0] if in_time else lanes[-1]


def _stage_costs(
    stage: Stage, pe: int, simd: int, weight: int, activation: int, flow: Flow, by: Where, kept: str
) -> Folded:
    if flow == "hls4ml":
        cycles = stage.pixels * stage.rows * stage.columns // pe
        packed = 4 if max(weight, activation) <= 4 else 2 if max(weight, activation) <= 8 else 1
        dsp = -(-pe // packed) if by == "dsp" else 0
        lut = 0.0 if by == "dsp" else 1.1 * pe * _product_luts(weight, activation)
        return Folded(pe, 1, cycles, lut, dsp, 0, 0)
    words = _weights(stage) // (pe * simd)
    lut = mvau_luts(stage, pe, simd, weight, activation, by=by, embedded=kept == "lutram")
    return Folded(
        pe,
        simd,
        mvau_cycles(stage, pe, simd),
        lut,
        mvau_dsps(pe, simd, weight, activation) if by == "dsp" else 0,
        bram18(pe * simd * weight, words) if kept == "bram" else 0,
        -(-pe * simd * weight // 72) * -(-words // 4096) if kept == "uram" else 0,
    )


def _weights(stage: Stage) -> int:
    return stage.rows * stage.columns


def mvau_cycles(stage: Stage, pe: int, simd: int) -> int:
    """FINN's matrix-vector unit: ``(MH / PE) (MW / SIMD)`` a vector; depthwise the same."""
    return (stage.rows // pe) * (stage.columns // simd) * stage.pixels


def window_cycles(
    channels: int,
    simd: int,
    image: tuple[int, int],
    output: tuple[int, int],
    kernel: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
) -> int:
    """FINN's sliding-window generator (the default of its RTL); ``image`` padded."""
    folds = channels // simd
    fill = (kernel[0] - 1) * dilation * image[1] + (kernel[1] - 1) * dilation + 1
    rows = max(output[1] * kernel[0] * kernel[1] * folds, stride * image[1] * folds)
    return fill * folds + output[0] * rows


def _product_luts(weight: int, activation: int) -> int:
    bits = weight + activation
    return (2 * -(-bits // 6) - 1) * bits


def mvau_luts(  # noqa: PLR0913  FINN's own arguments
    stage: Stage,
    pe: int,
    simd: int,
    weight: int,
    activation: int,
    *,
    by: Where = "lut",
    embedded: bool = False,
    signed: bool = True,
    output: int = 0,
) -> float:
    """FINN's estimate of a matrix-vector unit's LUTs.

    ``embedded`` weights live in LUTs; ``output`` bits above zero add thresholds. FINN's own test of
    this estimate (317 LUTs, or 313 and a DSP) loops over nothing; its formula gives both with
    embedded weights, and 315 with weights beside the unit.
    """
    bits = weight + activation
    alpha = math.log2(stage.columns) + bits - 1 - int(signed)
    width = math.ceil(alpha + math.log2(1 + 2**-alpha) + 1)
    product = simd * _product_luts(weight, activation) if by == "lut" else 0
    levels = 2**output - 1 if output else 0
    thresholds = levels * width * (-(-(stage.rows // pe) // 64) + 1)
    memory = pe * simd * weight * -(-_weights(stage) // (pe * simd) // 64) if embedded else 0
    each = product + bits * (2 * simd - 1) + width + thresholds
    return 300 + 1.1 * pe * each + memory


def mvau_dsps(pe: int, simd: int, weight: int, activation: int) -> int:
    """DSP48 slices of FINN's RTL unit: four products of up to 4 bits a slice, two of up to 8.

    FINN's estimate takes four for 8 bits too; the unit it builds has a lane for every two.
    """
    wide = max(weight, activation)
    lanes = 4 if wide <= 4 else 2 if wide <= 8 else 1
    return -(-pe // lanes) * simd


def bram18(width: int, depth: int) -> int:
    """FINN's 18-kbit block memories for so many words of so many bits."""
    shallow = depth <= 512
    for bits, words in ((1, 16_384), (2, 8192), (4, 4096), (9, 2048)):
        if width <= bits:
            return -(-depth // words) * (-(-width // bits) if bits == 4 else 1)
    if width <= 18 or not shallow:
        return -(-depth // 1024) * -(-width // 18)
    return -(-depth // 512) * -(-width // 36)


def legal_reuse(inputs: int, outputs: int, factor: int) -> bool:
    """hls4ml's rule of which reuse factors its resource strategy takes."""
    limit = -(-inputs * outputs // min(inputs, factor))
    return (
        (inputs * outputs) % factor == 0
        and (limit % outputs == 0 or factor >= inputs)
        and (factor % inputs == 0 or factor < inputs)
    )


@lru_cache(maxsize=10_000)
def divisors(count: int) -> tuple[int, ...]:
    """Every divisor, ascending."""
    small = [d for d in range(1, math.isqrt(count) + 1) if count % d == 0]
    return tuple(sorted({*small, *(count // d for d in small)}))
