"""Layers in groups, each group judged by its own metric of the network's output.

As in MixDQ (Zhao et al. 2024, arXiv 2405.17873), where layers that change what an image shows are
judged by SSIM and those that change how good it looks by SQNR, and in ViDiT-Q (Zhao et al. 2024,
arXiv 2406.02540), which has four groups and metrics of videos.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from mpsearch import batches
from mpsearch.batches import divergence
from mpsearch.formats import Option
from mpsearch.network import Layer, Network
from mpsearch.quant.recipe import Recipe
from mpsearch.sensitivity.measures import Measure, compared
from mpsearch.sensitivity.mse import squared_error
from mpsearch.sensitivity.one_at_a_time import OneAtATime
from mpsearch.sensitivity.sqnr import decibels
from mpsearch.sensitivity.ssim import SSIM
from mpsearch.sensitivity.surroundings import Context, check_context
from mpsearch.sweep import Sweep
from mpsearch.tables import Mask, Table
from mpsearch.task import Task

Metric = str | SSIM | Measure | Callable[[Tensor, Tensor], Tensor]
"""A name, or what gives (N,) losses of samples from the float output and the quantized one."""

METRICS: dict[str, Measure | SSIM] = {
    "kl": compared(divergence, batches.unit),
    "mse": compared(squared_error, lambda _: "MSE"),
    "sqnr": decibels(120.0),
    "ssim": SSIM(),
}
GROUPS = {"content": r"(^|\.)(ff|attn2)(\.|$)", "quality": "."}
JUDGES: dict[str, Metric] = {"content": "ssim", "quality": "sqnr"}


@dataclass(frozen=True)
class MetricDecoupled:
    """What a layer at an option changes in the metric of its group.

    A layer is in the first group whose pattern is found in its name or in that of one of its
    modules; after ``role:`` or ``kind:`` a pattern is one of the layer's role or kind. By default
    the groups are MixDQ's: ``ff`` and ``attn2`` (cross-attention) by SSIM, the rest by SQNR, and a
    group without layers is left out. ViDiT-Q's are ``attn_temp``, ``cross_attn``, ``mlp`` and
    ``attn``.

    MixDQ scores weights and activations apart: ask for options such as ``w4a16`` and ``w16a4``
    where that is wanted, as an option's two roles are rounded together here. The SSIM it takes is
    of the final image and the SQNR of the network's own output: a metric may decode both outputs.

    Numbers of two groups are not comparable unless their metrics are the same. The table's unit
    says so, and a note for each group, ``group 'content': UNIT``, marks its layers;
    :func:`mpsearch.split` reads the notes, and does not add such numbers up.

    Attributes:
        groups: A pattern for each group's name.
        metrics: For the same names ``kl``, ``mse``, ``sqnr``, ``ssim``, ``SSIM(window=511)`` or
            the like, a ``Measure``, or a function of two outputs: the lower the better. What a
            function says, or anything else without a name of its own, is not kept in the cache.
        context: What the other layers have, as in ``KL``. What an allocation itself gains is the
            table's ``fixed`` where all groups are in one unit.
        draws: How many random networks.
        seed: Of their options.
    """

    groups: Mapping[str, str] | None = None
    metrics: Mapping[str, Metric] | None = None
    context: Context = "alone"
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse patterns that are none, groups without a metric, and what is no context."""
        check_context(self.context, self.draws)
        for name in ("groups", "metrics"):
            given: object = getattr(self, name)
            if given is not None and not (isinstance(given, Mapping) and given):
                raise ValueError(f"{name} is {given!r}; wanted one entry for each group's name")
        if (self.groups or GROUPS).keys() != (self.metrics or JUDGES).keys():
            raise ValueError(
                f"the groups are {_listed(self.groups or GROUPS)} and the metrics are of"
                f" {_listed(self.metrics or JUDGES)}; name one metric for each group"
            )
        for name, pattern in (self.groups or {}).items():
            try:
                re.compile(pattern)
            except (re.error, TypeError) as reason:
                raise ValueError(
                    f"the pattern of group {name!r} is {pattern!r}, no regular expression: {reason}"
                ) from None
        for name in self.metrics or {}:
            self._measure(name)

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table of each group in its own unit.

        Raises:
            ValueError: Groups that leave a layer out or are empty, a metric that gives no number a
                sample, and what ``SQNR`` refuses.
        """
        mask = network.mask(options)
        values, stderr = np.zeros(mask.shape), np.zeros(mask.shape)
        tables: dict[str, Table] = {}
        notes: dict[str, Mask] = {}
        for name, rows in self._rows(network.layers).items():
            inside = np.isin(np.arange(len(mask)), rows)[:, None] & mask
            title = f"metric-decoupled {(self.metrics or JUDGES)[name]!r}"
            measure = partial(self._measure, name)
            asked = OneAtATime(title, measure, self.context, self.draws, self.seed, inside)
            own = replace(sweep, cache={}) if " at 0x" in title else sweep
            table = asked.estimate(task, network, options, recipe=recipe, sweep=own)
            tables[name], values[rows] = table, table.values[rows]
            stderr[rows] = 0 if table.stderr is None else table.stderr[rows]
            notes[f"group {name!r}: {table.unit}"] = inside
        units = {name: table.unit for name, table in tables.items()}
        return Table(
            network.layers,
            tuple(options),
            values,
            _unit(units),
            stderr=stderr if all(t.stderr is not None for t in tables.values()) else None,
            allowed=mask,
            fixed=next(iter(tables.values())).fixed if len(set(units.values())) == 1 else 0,
            notes=notes,
        )

    def _rows(self, layers: Sequence[Layer]) -> dict[str, list[int]]:
        """The layers of each group."""
        groups = self.groups or GROUPS
        found: dict[str, list[int]] = {name: [] for name in groups}
        for row, layer in enumerate(layers):
            taken = [name for name, pattern in groups.items() if _matches(pattern, layer)]
            if not taken:
                raise ValueError(
                    f"layer {layer.name!r} is in none of the groups {_listed(groups)}; add a last"
                    " group with the pattern '.', which takes all that are left"
                )
            found[taken[0]].append(row)
        for name, rows in found.items():
            if self.groups and not rows:
                raise ValueError(
                    f"group {name!r} has no layer: its pattern is {groups[name]!r}, and the layers"
                    f" are {_listed([layer.name for layer in layers])}; mend it or leave it out"
                )
        return {name: rows for name, rows in found.items() if rows}

    def _measure(self, name: str, task: Task | None = None) -> Measure:
        """What a group is judged by."""
        metric = (self.metrics or JUDGES)[name]
        if isinstance(metric, str):
            metric = METRICS.get(metric, metric)
        if isinstance(metric, SSIM):
            return (metric.on(task) if task else metric).measure
        if isinstance(metric, Measure):
            return metric
        if not callable(metric):
            raise ValueError(  # noqa: TRY004  (a setting like any other)
                f"the metric of group {name!r} is {metric!r}; wanted {', '.join(METRICS)}, a"
                " Measure, or a function of the float output and the quantized one"
            )
        called = getattr(metric, "__name__", type(metric).__name__)
        return compared(partial(_asked, metric, name), lambda _: f"rank score ({called})")


def _asked(metric: Callable[[Tensor, Tensor], Tensor], group: str, t: Tensor, q: Tensor) -> Tensor:
    """(N,) what a user's metric says."""
    found: Any = metric(t, q)
    if not isinstance(found, Tensor) or found.shape != (len(t),):
        shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
        raise ValueError(
            f"the metric of group {group!r} returned {type(found).__name__}{shape}; wanted a tensor"
            f" of shape ({len(t)},), one number for each sample"
        )
    return found.double()


def _matches(pattern: str, layer: Layer) -> bool:
    field, _, rest = pattern.partition(":")
    if field in ("role", "kind"):
        return re.search(rest, getattr(layer, field)) is not None
    return any(re.search(pattern, name) for name in (layer.name, *layer.modules))


def _unit(units: Mapping[str, str]) -> str:
    """That of all groups, or what each is in, which only ranks."""
    if len(set(units.values())) == 1:
        return next(iter(units.values()))
    told = [f"{name} in {_bare(unit)}" for name, unit in units.items()]
    return f"rank score (not comparable between groups: {', '.join(told)})"


def _bare(unit: str) -> str:
    return unit.removeprefix("rank score (").removesuffix(")") if "rank" in unit else unit


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(map(repr, list(names)[:5]))
    return shown + (", ..." if len(names) > 5 else "")
