"""Any sampler of Optuna's, in any storage, begun with supported solutions and resumable.

Akiba, Sano, Yanase, Ohta and Koyama, "Optuna: A Next-generation Hyperparameter Optimization
Framework", 2019. A parameter is a layer's level: 0 is the option that uses least of the first
budget. What is drawn for a trial follows from the seed and from the trials that are complete, so
that a search which was interrupted goes on as if it had not been.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from mpsearch.problem import Problem, Solution, infeasible
from mpsearch.solvers.population import Genes, Integers, Objective, Scores

SAMPLERS = {
    "tpe": "TPESampler",
    "nsga2": "NSGAIISampler",
    "random": "RandomSampler",
}


@dataclass(frozen=True)
class OptunaSearch:
    """The least loss, or the least of an objective, in a study of Optuna's.

    Attributes:
        trials: How many choices the study looks at in all, those of earlier runs included; workers
            that share it may each add one. Fewer do where one is proven optimal.
        sampler: What draws: ``tpe``, ``nsga2``, ``random``, or a function that makes any
            other sampler of Optuna's from a seed; a fresh one draws for every trial.
        storage: Where the study is kept: an address such as ``sqlite:///study.db``, or one of
            PostgreSQL that many workers share, or a storage of Optuna's; by default in memory.
        study: Its name there.
        starts: At most so many trials are of solutions near the relaxation's and supported ones.
        seed: Of all chance.
        objective: What a real run of a choice gives, less is better, in place of the table's loss.
            The answer's loss is the table's all the same, and its bound minus infinity.
    """

    trials: int = 100
    sampler: str | Callable[[int], Any] = "tpe"
    storage: Any = None
    study: str = "mpsearch"
    starts: int = 10
    seed: int = 0
    objective: Objective | None = None

    def __post_init__(self) -> None:
        """Refuse what is no sampler, and to go without Optuna."""
        if isinstance(self.sampler, str) and self.sampler not in SAMPLERS:
            raise ValueError(
                f"no sampler is named {self.sampler!r}; there are {', '.join(SAMPLERS)}, or give a"
                " function that makes one from a seed"
            )
        if self.trials < 1 or self.starts < 0:
            raise ValueError(
                "there is a trial at least and starts are not below zero, got"
                f" trials={self.trials} and starts={self.starts}"
            )
        if find_spec("optuna") is None:
            raise ImportError('OptunaSearch needs optuna: pip install "mpsearch[nas]"')

    def solve(self, problem: Problem) -> Solution:
        """The best choice of the study, which is brought to ``trials`` complete ones.

        ``ValueError`` where the study in the storage is of another problem.
        """
        genes = Genes.of(problem, every=self.objective is not None)
        if genes is None:
            return infeasible("optuna")
        scores = Scores(genes, self.objective)
        known = genes.starts(2 * self.starts, np.random.default_rng(self.seed))[: self.starts]
        with _storage(self.storage) as storage:
            search = _Search(genes, scores, self._study(genes, storage))
            search.recall()
            while not scores.optimal and search.complete < self.trials:
                search.study.sampler = self._sampler(search.taken)
                search.enqueue(known)
                search.look()
        named = self.sampler if isinstance(self.sampler, str) else self.sampler.__name__
        return scores.solution(f"optuna ({named})")

    def _sampler(self, place: int) -> Any:
        """A sampler for one trial, whose chance follows from the seed and the trial's place."""
        import optuna

        seed = int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])
        if isinstance(self.sampler, str):
            return getattr(optuna.samplers, SAMPLERS[self.sampler])(seed=seed)
        return self.sampler(seed)

    def _study(self, genes: Genes, storage: Any) -> Any:
        """The study of that name, a new one or one of the same problem."""
        import optuna

        study = optuna.create_study(storage=storage, study_name=self.study, load_if_exists=True)
        mine = _fingerprint(genes, "table" if self.objective is None else "objective")
        theirs = study.user_attrs.get("problem", mine)
        if theirs != mine or (study.trials and "problem" not in study.user_attrs):
            raise ValueError(
                f"study {self.study!r} is of another problem; give another name, or another storage"
            )
        study.set_user_attr("problem", mine)
        return study


class _Search:
    """A study, and what is known of its choices."""

    def __init__(self, genes: Genes, scores: Scores, study: Any) -> None:
        self.genes, self.scores, self.study = genes, scores, study
        layers = genes.problem.loss.layers
        first = {group: row for row, group in reversed([*enumerate(genes.groups)])}
        self.names = [
            " ".join(layers[first[layer]].name for layer in part) for part in genes.program.layers
        ]

    def _trials(self, *states: str) -> list[Any]:
        from optuna.trial import TrialState

        wanted = [TrialState[state] for state in states]
        return list(self.study.get_trials(deepcopy=False, states=wanted))

    @property
    def complete(self) -> int:
        """How many trials are."""
        return len(self._trials("COMPLETE"))

    @property
    def taken(self) -> int:
        """How many trials are complete, or being run by some worker."""
        return len(self._trials("COMPLETE", "RUNNING"))

    def recall(self) -> None:
        """Take note of what is in the study already; no objective is run for it."""
        for trial in self._trials("COMPLETE"):
            levels = np.array([trial.params.get(name, 0) for name in self.names])
            run = self.scores.objective is not None and trial.constraints["conditions"] <= 0
            if run:
                self.scores.known[self.genes.choice(levels)] = trial.value
            self.scores.of(levels[None])

    def enqueue(self, known: Integers) -> None:
        """Have the first of the known solutions that is not in the study looked at next."""
        there = self._trials("COMPLETE", "RUNNING", "WAITING")
        tried = [trial.system_attrs.get("fixed_params", trial.params) for trial in there]
        for levels in known.tolist():
            asked = {n: x for n, x, most in self._free(levels) if most}
            if asked not in tried:
                self.study.enqueue_trial(asked)
                return

    def _free(self, levels: Sequence[int]) -> Iterator[tuple[str, int, int]]:
        return zip(self.names, levels, (self.genes.sizes - 1).tolist(), strict=True)

    def look(self) -> None:
        """Look at what the sampler draws; a trial that is interrupted does not count."""
        from optuna.trial import TrialState

        trial = self.study.ask()
        try:
            levels = [
                trial.suggest_int(name, 0, most) if most else 0
                for name, _, most in self._free([0] * len(self.names))
            ]
            fitness, excess = self.scores.of(np.array([levels]))
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        trial.set_constraint("conditions", float(excess[0]))
        value = float(fitness[0])
        if self.scores.objective is None:
            value = self.genes.program.bound(value)
        self.study.tell(trial, value)


@contextmanager
def _storage(given: Any) -> Iterator[Any]:
    """The storage, closed afterwards; Optuna says nothing meanwhile."""
    import optuna

    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        storage = optuna.storages.get_storage(given)
        try:
            yield storage
        finally:
            storage.remove_session()
    finally:
        optuna.logging.set_verbosity(said)


def _fingerprint(genes: Genes, *more: str) -> str:
    """What tells one problem's study from another's."""
    program = genes.program
    parts = (program.owner, program.loss, program.rows, program.limits, program.columns)
    hashed = hashlib.sha256(
        "\n".join([*more, *(x.name for x in genes.problem.loss.layers)]).encode()
    )
    for part in parts:
        hashed.update(f"{part.shape}".encode())
        hashed.update(np.ascontiguousarray(part).tobytes())
    return hashed.hexdigest()
