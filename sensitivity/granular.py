"""Tables of places: what rounding one channel, group of weights or expert does to the loss.

As other estimators say of layers (:mod:`mpsearch.places` says what places are).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from mpsearch.batches import checked
from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.places import Per, Places, finer
from mpsearch.protocols import Estimator
from mpsearch.quant.bench import changes
from mpsearch.quant.recipe import Recipe
from mpsearch.registry import make
from mpsearch.sensitivity.fisher import Fisher
from mpsearch.sensitivity.hessian_trace import HessianTrace
from mpsearch.sensitivity.kl import KL
from mpsearch.sensitivity.place_scores import SCORED, Study
from mpsearch.sensitivity.salience import Salience
from mpsearch.sensitivity.surroundings import Context, around, averaged, check_context
from mpsearch.sensitivity.taylor import Taylor
from mpsearch.sensitivity.weight_error import WeightError
from mpsearch.sensitivity.weights import check_nearest
from mpsearch.sweep import Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.tracing import check_deterministic

_DEFAULTS: dict[str, Estimator] = {
    "weight-error": WeightError(),
    "hessian-trace": HessianTrace(),
    "salience": Salience("gptq"),
    "fisher": Fisher(),
    "taylor": Taylor(),
    "kl": KL(),
}


@dataclass(frozen=True)
class Granular:
    """Another estimator's score of each place at each option.

    Experts are layers of several modules: any estimator scores them as it does any layer. Channels
    and groups are scored by

    - ``weight-error``, ``hessian-trace`` (with the mean trace of the whole weight), ``salience``
      (``gptq``, or ``spqr``), ``fisher`` (of weights) and ``taylor`` (``autoround``):
      sums over weights, of which each place gets its own. So the places of a layer add up to what
      the layer itself has, at a format with a scale for each place; any other is rounded as if it
      had one (``int4`` on groups of 128 is ``int4g128``).
    - ``kl``: measured, with one place rounded at a time, as the recipe says, on one forward for
      each place and option. What is measured does not add up.

    The format of activations does not enter: what a layer reads is read by all its places. The
    table is of ``finer(network, per, group=group).layers``, which a network given may have already.

    Attributes:
        per: What a place is.
        score: One of these, or its name, which stands for its default settings.
        group: Weights of a group.
        seed: Of an estimator given by its name, and of random options.
        context: What the layers have where gradients, curvature and inputs are taken, as
            :mod:`mpsearch.sensitivity.surroundings` says; ``kl`` of channels and groups is measured
            ``alone``. Of experts, that of a score given by its name.
        draws: How many random networks.
    """

    per: Per = "channel"
    score: str | Estimator = "weight-error"
    group: int = 128
    seed: int = 0
    context: Context = "alone"
    draws: int = 4

    def __post_init__(self) -> None:
        """Refuse what is no place, and scores that places cannot have."""
        check_context(self.context, self.draws)
        if self.per not in get_args(Per):
            raise ValueError(f"per is {self.per!r}; there are {', '.join(get_args(Per))}")
        if self.group < 1:
            raise ValueError(f"group is {self.group!r}; wanted at least one weight")
        if self.per == "expert":
            return
        if isinstance(self.score, str) and self.score not in _DEFAULTS:
            known = ", ".join(map(repr, _DEFAULTS))
            raise ValueError(f"score is {self.score!r}; one per {self.per} is known for {known}")
        if not isinstance(self.score, str) and not _known(self.score):
            raise ValueError(
                f"{self.score!r} is no sum over weights, or has a context of its own; wanted"
                " weight-error that is not relative, hessian-trace, salience by 'gptq' or 'spqr',"
                " fisher of weights, taylor by 'autoround' of elements, or kl"
            )
        if self.context != "alone" and isinstance(self._score, KL):
            raise ValueError(
                f"context is {self.context!r}, and 'kl' of one {self.per} is measured with all else"
                " left alone; leave it out, or give another score"
            )

    def estimate(
        self,
        task: Task,
        network: Network,
        options: Sequence[Option],
        *,
        recipe: Recipe,
        sweep: Sweep,
    ) -> Table:
        """Table in the unit of the score.

        Raises:
            ValueError: A network without such places, or what the score refuses.
        """
        fine = self._fine(network)
        if not isinstance(fine.layers, Places):
            score = self.score
            settings = {"seed": self.seed, "context": self.context, "draws": self.draws}
            named = make("sensitivity", score, **settings) if isinstance(score, str) else score
            table: Table = named.estimate(task, fine, options, recipe=recipe, sweep=sweep)
            return table
        for option in options:
            changes(option)  # refuses what cannot be quantized to, before the long part
            check_nearest(option)
        if not isinstance(self._score, WeightError):
            check_deterministic(task.model, checked(task.batches)[0])
        each = around(self, task, fine.layers.coarse, options, recipe=recipe, sweep=sweep)
        return averaged(self._table(Study(at, fine.layers)) for at in each)

    def _table(self, study: Study) -> Table:
        score, places = self._score, study.places
        values, stderr, unit = SCORED[type(score)](study, score)
        mask = study.mask[places.tensors]
        return Table(places, study.options, values, unit, stderr=stderr, allowed=mask)

    @property
    def _score(self) -> Any:
        if not isinstance(self.score, str):
            return self.score
        found: Any = _DEFAULTS[self.score]
        return replace(found, seed=self.seed) if "seed" in vars(found) else found

    def _fine(self, network: Network) -> Network:
        layers = network.layers
        if not isinstance(layers, Places):
            return finer(network, self.per, group=self.group)
        if layers.per != self.per or (self.per == "group" and layers.group != self.group):
            raise ValueError(
                f"the network has places per {layers.per} of {layers.group}, granular is set to one"
                f" per {self.per} of {self.group}; give both the same"
            )
        return network


def _known(score: Any) -> bool:
    """Whether a score is a sum over weights, or measured, in a network left alone."""
    if vars(score).get("context", "alone") != "alone":
        return False
    if isinstance(score, WeightError):
        return not bool(score.relative)
    if isinstance(score, Salience):
        return score.method in ("gptq", "spqr")
    if isinstance(score, Fisher):
        return score.at == "weights"
    if isinstance(score, Taylor):
        return score.variant == "autoround" and score.absolute != "sum"
    return isinstance(score, HessianTrace | KL)
