"""The law suites catch members that break a law: one wrong member for each."""

import itertools
import math
import subprocess
import sys
import unittest
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch.problem import Problem, Solution, Status
from mpsearch.protocols import Estimator, HardwareModel, Solver
from mpsearch.solvers import Exhaustive
from mpsearch.tables import Cost, Table
from mpsearch.task import Task
from mpsearch.testing import EstimatorSuite, FormatSuite, HardwareSuite, SolverSuite


def broken(suite: Any, *laws: str) -> set[str]:
    """Which of these laws, or of all, a suite finds broken."""
    every = [name.removeprefix("test_") for name in dir(suite) if name.startswith("test_")]
    found = set()
    for law in laws or every:
        try:
            getattr(suite, f"test_{law}")()
        except unittest.SkipTest:
            continue
        except (AssertionError, ValueError, LookupError):
            found.add(law)
    return found


def suite_of(solver: Solver, **settings: Any) -> SolverSuite:
    made = SolverSuite()
    made.solver = solver
    for name, value in settings.items():
        setattr(made, name, value)
    return made


Change = Callable[[Problem, Solution], Solution]


class Changed:
    """The best answer to a problem changed one way, changed another way."""

    def __init__(self, answer: Change, ask: Callable[[Problem], Problem] = lambda p: p) -> None:
        self.answer, self.ask = answer, ask

    def solve(self, problem: Problem) -> Solution:
        return self.answer(problem, Exhaustive().solve(self.ask(problem)))


def as_found(problem: Problem, solution: Solution) -> Solution:
    return replace(solution, loss=problem.total(solution.choice)) if solution.choice else solution


def first_feasible(problem: Problem, solution: Solution) -> Solution:
    rows, columns = problem.loss.values.shape
    every = itertools.product(range(columns), repeat=rows)
    choice = next((c for c in every if problem.feasible(c)), ())
    if not choice:
        return solution
    loss = problem.total(choice)
    return Solution(choice, loss, Status.OPTIMAL, loss)


WRONG: dict[str, tuple[Solver, str]] = {
    "ignores budgets": (
        Changed(as_found, lambda p: replace(p, budgets=())),
        "answers_keep_every_condition_and_say_their_loss",
    ),
    "ignores constraints": (
        Changed(as_found, lambda p: replace(p, constraints=())),
        "answers_keep_every_condition_and_say_their_loss",
    ),
    "ignores ties": (
        Changed(as_found, lambda p: replace(p, ties=())),
        "answers_keep_every_condition_and_say_their_loss",
    ),
    "ignores interactions": (
        Changed(as_found, lambda p: replace(p, interactions=())),
        "optimal_means_optimal",
    ),
    "calls any answer optimal": (Changed(first_feasible), "optimal_means_optimal"),
    "calls any answer the bound": (
        Changed(first_feasible),
        "no_choice_has_less_loss_than_the_bound",
    ),
    "gives a bound too high": (
        Changed(lambda p, s: replace(s, bound=s.bound + 1e-3 * p.span)),
        "no_choice_has_less_loss_than_the_bound",
    ),
    "calls optimal what it has not proven": (
        Changed(lambda _, s: replace(s, bound=-math.inf)),
        "optimal_means_optimal",
    ),
    "proves nothing": (
        Changed(lambda _, s: replace(s, bound=-math.inf, status=Status.FEASIBLE)),
        "proves_what_is_small",
    ),
    "gives up": (
        Changed(lambda *_: Solution((), math.inf, Status.INFEASIBLE, math.inf)),
        "says_infeasible_only_where_nothing_is_feasible",
    ),
    "says another loss": (
        Changed(lambda _, s: replace(s, loss=s.loss * (1 + 1e-12))),
        "answers_keep_every_condition_and_say_their_loss",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_solver_is_caught(what: str) -> None:
    solver, law = WRONG[what]
    assert broken(suite_of(solver), law)


def test_a_solver_that_forgets_is_caught() -> None:
    calls = itertools.count()

    def changes(problem: Problem, solution: Solution) -> Solution:
        return replace(solution, solver=str(next(calls)))

    assert broken(suite_of(Changed(changes))) == {"same_problem_same_answer"}


def test_a_solver_may_support_less_if_it_says_so() -> None:
    class Modest:
        def solve(self, problem: Problem) -> Solution:
            if problem.interactions:
                raise NotImplementedError("no interactions")
            return Exhaustive().solve(problem)

    assert not broken(suite_of(Modest(), supports=SolverSuite.supports - {"interactions"}))
    silent = suite_of(Exhaustive(), supports=SolverSuite.supports - {"ties"})
    assert broken(silent) == {"refuses_what_it_does_not_support"}


def test_a_heuristic_that_says_so_keeps_the_laws() -> None:
    def humble(problem: Problem, solution: Solution) -> Solution:
        status = Status.FEASIBLE if solution.choice else Status.UNKNOWN
        return replace(solution, status=status, bound=-math.inf)

    assert not broken(suite_of(Changed(humble), proves=False))


class Priced:
    """Prices a layer at an option as a function says, under a name."""

    def __init__(self, each: Callable[[int, mp.Layer, mp.Option], float], **more: Any) -> None:
        self.each = each
        self.more: dict[str, Any] = {"name": "cost"} | more

    def costs(self, network: mp.Network, options: Sequence[mp.Option]) -> Mapping[str, Cost]:
        rows = list(enumerate(network.layers))
        values = np.array([[self.each(i, layer, o) for o in options] for i, layer in rows])
        more = self.more
        return {"cost": Table(network.layers, tuple(options), values, "ms", **more)}


def wavering(place: int, layer: mp.Layer, option: mp.Option) -> float:
    """The total grows with the bits, a small layer's cost falls."""
    return option.weight.bits * (layer.params if layer.params > 100 else -1) + 1e3


MISPRICED: dict[str, tuple[HardwareModel, str]] = {
    "fewer bits dearer": (
        Priced(lambda _, layer, o: layer.params * (40 - o.weight.bits)),
        "fewer_bits_cost_no_more",
    ),
    "fewer bits dearer somewhere": (Priced(wavering), "fewer_bits_cost_no_more"),
    "negative": (
        Priced(lambda *asked: asked[2].weight.bits - 5.0),
        "costs_are_finite_and_positive",
    ),
    "by place": (
        Priced(lambda place, _, o: (place + 1.0) * o.weight.bits),
        "permuting_layers_permutes_the_table",
    ),
    "under another name": (
        Priced(lambda _, layer, o: layer.params * o.weight.bits, name="latency"),
        "costs_are_named_and_speak_of_the_layers_and_options_asked",
    ),
    "a reference too low": (
        Priced(lambda _, layer, o: layer.params * o.weight.bits, reference=1),
        "the_reference_is_no_less_than_the_fewest_bits",
    ),
    "labels too": (
        Priced(lambda *asked: asked[1].params * 1.0),
        "refuses_an_option_without_formats",
    ),
}


@pytest.mark.parametrize("what", MISPRICED)
def test_a_wrong_hardware_model_is_caught(what: str) -> None:
    suite = HardwareSuite()
    suite.hardware, law = MISPRICED[what]
    assert broken(suite, law)


def test_hardware_on_which_fewer_bits_may_cost_more_says_so() -> None:
    suite = HardwareSuite()
    suite.hardware, suite.monotone = MISPRICED["fewer bits dearer"][0], False
    assert not broken(suite)


def formats() -> FormatSuite:
    suite = FormatSuite()
    suite.formats = ("int4", "int8", "int3g16a", "fp16")
    return suite


def test_wrong_bytes_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not broken(formats())
    monkeypatch.setattr(mp.Format, "bytes", lambda self, shape: math.prod(shape) // self.bits)
    assert broken(formats()) == {
        "what_is_stored_has_the_bytes_the_format_counts",
        "bytes_hold_every_code_and_grow_with_the_weight",
        "fewer_bits_take_no_more_bytes",
    }


def test_a_wrong_name_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp.Format, "__str__", lambda self: self.base)
    assert "the_name_is_read_back" in broken(formats())


def test_wrong_rounding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpsearch.quant.integers import Codes

    right = Codes.dequantize
    monkeypatch.setattr(Codes, "dequantize", lambda self: right(self) * 1.05)
    found = broken(formats())
    assert "a_rounded_weight_is_half_a_step_away_at_most" in found
    assert "rounding_twice_is_rounding_once" in found


class Guessing:
    """An estimate of nothing, spoiled in one way."""

    def __init__(self, spoil: Callable[[Any, Any], Any], *, checks: bool = True) -> None:
        self.spoil, self.checks = spoil, checks

    def estimate(
        self,
        task: Task,
        network: mp.Network,
        options: Sequence[mp.Option],
        *,
        recipe: Any,
        sweep: Any,
    ) -> Table:
        values = np.array([[32.0 - o.weight.bits for o in options] for _ in network.layers])
        values = self.spoil(task, values)
        if task.loss is not None:
            for _ in range(5):
                task.loss(task.model(task.batches[0][0]), task.batches[0])
        return Table(network.layers, tuple(options), values, "loss")


def noise(task: Any, values: Any) -> Any:
    import torch

    return values + torch.rand(()).item()


def seeding(task: Any, values: Any) -> Any:
    import torch

    torch.manual_seed(0)
    return values


CALLS = itertools.count()


def counting(task: Any, values: Any) -> Any:
    return values + next(CALLS) * values


def changing_weights(task: Any, values: Any) -> Any:
    next(iter(task.model.parameters())).data.mul_(2)
    return values


def leaving_a_hook(task: Any, values: Any) -> Any:
    task.model.register_forward_hook(lambda *_: None)
    return values


def leaving_gradients(task: Any, values: Any) -> Any:
    task.model(task.batches[0][0]).sum().backward()
    return values


def training(task: Any, values: Any) -> Any:
    task.model.train()
    return values


GUESSES: dict[str, tuple[Estimator, str]] = {
    "unseeded": (Guessing(noise), "same_bytes_whatever_the_state_of_global_randomness"),
    "counting": (Guessing(counting), "same_bytes_whatever_the_state_of_global_randomness"),
    "seeding": (Guessing(seeding), "same_bytes_whatever_the_state_of_global_randomness"),
    "weights": (Guessing(changing_weights), "the_model_is_left_as_it_was"),
    "hooks": (
        Guessing(leaving_a_hook),
        "the_model_is_left_as_it_was_when_the_loss_raises_midway",
    ),
    "gradients": (Guessing(leaving_gradients), "the_model_is_left_as_it_was"),
    "mode": (Guessing(training), "the_model_is_left_as_it_was"),
    "more bits lose more": (
        Guessing(lambda _, values: -values),
        "more_bits_lose_less_in_all_and_none_lose_nothing",
    ),
    "constant": (
        Guessing(lambda _, values: values + 1),
        "more_bits_lose_less_in_all_and_none_lose_nothing",
    ),
    "trusting": (Guessing(lambda _, values: values), "refuses_a_model_that_is_not_deterministic"),
    "unfed": (Guessing(lambda _, values: values), "refuses_empty_batches"),
}


@pytest.mark.parametrize("what", GUESSES)
def test_a_wrong_estimator_is_caught(what: str) -> None:
    suite = EstimatorSuite()
    suite.estimator, law = GUESSES[what]
    assert broken(suite, law)


def test_an_estimator_that_does_not_call_the_model_keeps_the_rest() -> None:
    suite = EstimatorSuite()
    suite.estimator, suite.runs_model = Guessing(lambda _, values: values), False
    assert not broken(suite)


def test_the_suites_load_neither_torch_nor_pytest() -> None:
    code = "import sys, mpsearch.testing; print(sorted({'torch', 'pytest'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"
