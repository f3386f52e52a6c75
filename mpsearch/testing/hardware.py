"""Laws of hardware models: costs are finite, speak of what was asked, and fall with the bits."""

import math
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np

from mpsearch.formats import Option, options
from mpsearch.network import Fixed, Layer, Network
from mpsearch.protocols import HardwareModel
from mpsearch.tables import Cost, Table


def network() -> Network:
    """A convolution, a depthwise one, a linear layer and an embedding, as tracing would say it."""
    return Network(
        (
            Layer("stem", 216, 55_296, "conv2d", "first", ((8, 3, 3, 3),), 768, 2048),
            Layer("depthwise", 72, 18_432, "conv2d", "depthwise", ((8, 1, 3, 3),), 2048, 2048),
            Layer("table", 512, 0, "embedding", "embedding", ((64, 8),), 16, 128),
            Layer("heads", 160, 160, "linear", "last", ((10, 8), (10, 8)), 8, 20, ("q", "k")),
        ),
        fixed=(Fixed("heads.bias", 10, 40),),
    )


class HardwareSuite:
    """What any hardware model does.

    Attributes:
        hardware: The model.
        options: What it prices, each list dearest last.
        monotone: Whether fewer bits never cost more (untrue of hardware without such kernels).
    """

    hardware: HardwareModel
    options: Sequence[Option] = options("int2/int8", "int4/int8", "int8/int8", "fp16/fp16")
    monotone: bool = True

    def network(self) -> Network:
        """What is priced."""
        return network()

    def costs(self) -> list[Cost]:
        """Every cost it names."""
        return list(self.hardware.costs(self.network(), tuple(self.options)).values())

    def test_costs_are_named_and_speak_of_the_layers_and_options_asked(self) -> None:
        found = self.hardware.costs(self.network(), tuple(self.options))
        assert found
        for name, cost in found.items():
            assert cost.name == name
            assert cost.unit
            assert list(cost.layers) == list(self.network().layers)
            assert cost.options == tuple(self.options)

    def test_costs_are_finite_and_positive(self) -> None:
        for cost in self.costs():
            totals = self._uniform(cost)
            assert all(math.isfinite(total) and total > 0 for total in totals)
            if isinstance(cost, Table):
                assert (cost.values >= 0).all()

    def test_fewer_bits_cost_no_more(self) -> None:
        if not self.monotone:
            return  # fewer bits may cost more on this hardware
        for cost in self.costs():
            if isinstance(cost, Table):
                assert (np.diff(cost.values, axis=1) >= 0).all()
            totals = self._uniform(cost)
            assert totals == sorted(totals)

    def test_the_reference_is_no_less_than_the_fewest_bits(self) -> None:
        for cost in self.costs():
            assert cost.reference is None or cost.reference >= cost.least() >= cost.fixed

    def test_permuting_layers_permutes_the_table(self) -> None:
        whole = self.network()
        turned = replace(whole, layers=whole.layers[::-1])
        there = self.hardware.costs(turned, tuple(self.options))
        for cost in self.costs():
            if isinstance(cost, Table):
                other = there[cost.name]
                assert isinstance(other, Table)
                np.testing.assert_array_equal(other.values, cost.values[::-1])
                assert (other.fixed, other.reference) == (cost.fixed, cost.reference)

    def test_a_batch_costs_no_less_than_a_sample_and_no_more_than_each_alone(self) -> None:
        if not (is_dataclass(self.hardware) and hasattr(self.hardware, "batch")):
            return  # it prices single samples
        hardware: Any = self.hardware
        three = replace(hardware, batch=3 * hardware.batch)
        there = three.costs(self.network(), tuple(self.options))
        for cost in self.costs():
            for one, many in zip(self._uniform(cost), self._uniform(there[cost.name]), strict=True):
                assert one * (1 - 1e-9) <= many <= 3 * one * (1 + 1e-9)

    def test_each_option_is_priced_alone(self) -> None:
        for number, option in enumerate(self.options):
            for name, cost in self.hardware.costs(self.network(), (option,)).items():
                whole = self.hardware.costs(self.network(), tuple(self.options))[name]
                if isinstance(cost, Table) and isinstance(whole, Table):
                    np.testing.assert_array_equal(cost.values[:, 0], whole.values[:, number])

    def test_refuses_an_option_without_formats(self) -> None:
        try:
            self.hardware.costs(self.network(), (Option(label="Q4_K"),))
        except ValueError as reason:
            assert "Q4_K" in str(reason)
        else:
            raise AssertionError("it priced the bare label 'Q4_K'")

    def _uniform(self, cost: Cost) -> list[float]:
        """What each option costs everywhere."""
        return [cost.total([i] * len(cost.layers)) for i in range(len(self.options))]
