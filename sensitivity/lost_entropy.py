"""The share of the entropy at 8 bits that fewer bits lose: what QuantMCU scores feature maps by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.batches import call
from mpsearch.formats import Format, Option
from mpsearch.network import Layer, Network
from mpsearch.quant import activations
from mpsearch.quant.bench import Bench
from mpsearch.sensitivity.entropies import lively, shannon
from mpsearch.sensitivity.relative_error import members, watching
from mpsearch.sweep import Sweep, Unit
from mpsearch.tables import Floats
from mpsearch.task import Task

_EIGHT = Format.parse("int8")


@dataclass(frozen=True, eq=False)
class LostEntropy:
    """Of what a layer reads and of its weights, mean over members, both added up.

    Attributes:
        bench: Where codes come from.
        model: What is run.
        task: Whose batches are read.
        network: Whose layers.
    """

    bench: Bench
    model: nn.Module
    task: Task
    network: Network

    def table(self, options: Sequence[Option], sweep: Sweep) -> tuple[Floats, Floats | None]:
        """(layers, options) shares lost; from several batches, standard errors by jackknife."""
        read = self._inputs(options, sweep)
        rows = [
            [self._lost(layer, option, read.get(str(option.activation), {})) for option in options]
            for layer in self.network.layers
        ]
        count = len(self.task.batches)
        each = np.array(rows)  # (layers, options, 1 + batches): of all batches, then without each
        if count < 2:
            return each[..., 0], None
        spread = each[..., 1:].var(axis=-1) * (count - 1)
        return each[..., 0], np.sqrt(spread)

    def _lost(
        self, layer: Layer, option: Option, inputs: Mapping[str, tuple[Floats, Floats]]
    ) -> Floats:
        """(1 + batches,) the share a layer loses at an option."""
        total = np.zeros(1 + len(self.task.batches))
        if option.weight.quantized:
            eight, coarse = (
                [_histogram(self.bench.codes(name, *given).codes) for name in layer.modules]
                for given in ((_EIGHT,), (option.weight, option.method))
            )
            pairs = zip(eight, coarse, strict=True)
            total += np.mean([_share(layer, *pair) for pair in pairs])
        found = [inputs[name] for name in layer.modules if name in inputs]
        if found:
            total += np.mean([_shares(layer, *pair) for pair in found], axis=0)
        return total

    def _inputs(
        self, options: Sequence[Option], sweep: Sweep
    ) -> dict[str, dict[str, tuple[Floats, Floats]]]:
        """By format and module, (batches, codes) counts of inputs at 8 bits and at the format."""
        asked = {str(o.activation): o.activation for o in options if o.activation.quantized}
        forms = {"int8": _EIGHT} | asked
        names = [name for name in members(self.network) if asked and self.bench.grid(name, _EIGHT)]
        if not names:
            return {}
        units: list[Unit] = [(*forms, batch) for batch in range(len(self.task.batches))]
        flat = np.array(
            sweep.run("codes", units, lambda unit: self._codes(int(unit[-1]), names, forms))
        )
        each = flat.reshape(len(units), len(forms), len(names), 256).transpose(1, 2, 0, 3)
        by_form = dict(zip(forms, each, strict=True))
        return {
            form: dict(zip(names, zip(by_form["int8"], by_form[form], strict=True), strict=True))
            for form in asked
        }

    def _codes(self, batch: int, names: Sequence[str], forms: Mapping[str, Format]) -> list[float]:
        """(formats, modules, 256) counts of codes, end to end."""
        counts = np.zeros((len(forms), len(names), 256))
        place = {name: number for number, name in enumerate(names)}

        def see(name: str, read: Tensor | None, _: Tensor) -> None:
            for row, form in enumerate(forms.values()):
                grid = self.bench.grid(name, form)
                if read is not None and grid is not None:
                    counts[row, place[name]] += _histogram(activations.codes(read, grid))

        with torch.no_grad(), watching(self.model, names, see):
            call(self.model, self.task.batches[batch])
        found: list[float] = counts.flatten().tolist()
        return found


def _histogram(codes: Tensor) -> Floats:
    """(256,) how often each code is there."""
    flat = codes.flatten().long()
    low = -128 if bool((flat < 0).any()) else 0
    return np.array(torch.bincount(flat - low, minlength=256).numpy(force=True), dtype=np.float64)


def _share(layer: Layer, eight: Floats, coarse: Floats) -> float:
    full = lively(layer, shannon(eight))
    return max(0.0, 1 - shannon(coarse) / full)


def _shares(layer: Layer, eight: Floats, coarse: Floats) -> Floats:
    """(1 + batches,) of all batches, then without each of them."""
    whole = _share(layer, eight.sum(axis=0), coarse.sum(axis=0))
    if len(eight) < 2:
        return np.array([whole, whole])
    without = [
        _share(layer, eight.sum(axis=0) - one, coarse.sum(axis=0) - other)
        for one, other in zip(eight, coarse, strict=True)
    ]
    return np.array([whole, *without])
