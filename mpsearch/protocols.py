"""What a third party can supply, each of one method."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mpsearch.formats import Option
from mpsearch.network import Layer, Network
from mpsearch.problem import Interaction, Problem, Solution
from mpsearch.tables import Cost, Table
from mpsearch.task import Task

if TYPE_CHECKING:
    from mpsearch.quant.recipe import Recipe
    from mpsearch.sweep import Sweep


class Estimator(Protocol):
    """Predicts what each option of each layer does to the network's loss."""

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: "Recipe",
        sweep: "Sweep",
    ) -> Table:
        """Table of loss increases, quantized as the recipe says, run as units of the sweep."""
        ...


@runtime_checkable
class PairEstimator(Protocol):
    """An estimator that also predicts what pairs of layers lose together."""

    def pairs(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: "Recipe",
        sweep: "Sweep",
    ) -> tuple[Interaction, ...]:
        """Losses beside the table's, run as units of the same sweep."""
        ...


class HardwareModel(Protocol):
    """Predicts what each option of each layer costs to run or to store."""

    def costs(self, network: Network, options: Sequence[Option]) -> Mapping[str, Cost]:
        """One or more named costs."""
        ...


class Solver(Protocol):
    """Picks one option per layer."""

    def solve(self, problem: Problem) -> Solution:
        """Least loss within every budget, with a proven bound."""
        ...


class Backend(Protocol):
    """Runs a layer at an option on real low-bit kernels."""

    def kernel(self, layer: Layer, option: Option, module: Any) -> Any:
        """A module that computes ``module`` at the option, or ``None`` where it has no kernel."""
        ...
