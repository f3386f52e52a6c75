"""The answer in sentences."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

import mpsearch as mp
from mpsearch.report import prose
from mpsearch.report.data import Report, Run

Build = Callable[..., Report]
MINE = Run("this allocation", 2000.0, 0.5, 0.55, 0.012)
RIVAL = Run("uniform int4/int8", 2000.0, 0.6, 1.1, 0.02)


def test_the_headline_says_what_it_costs_and_what_it_loses(new_report: Build) -> None:
    assert prose.answer(new_report(others=(MINE,))) == (
        "This allocation of 4 layers brings size to 2 kB of 2.01 kB allowed, at a loss of"
        " 0.550 ±\u00a00.012 nats (KL), measured on data the search did not see"
        " (0.5 was predicted)."
    )


def test_what_was_not_measured_is_said_to_be_predicted(new_report: Build) -> None:
    only = new_report(others=(Run("this allocation", 2000.0, 0.5),))
    assert prose.answer(only).endswith("allowed, at a predicted loss of 0.5 nats (KL).")
    other = new_report(others=(), cost="latency", unit="loss")
    assert prose.answer(other).startswith("This allocation of 4 layers has a predicted loss of ")
    assert prose.answer(other).count("loss") == 1


def test_one_layer_is_one(new_report: Build) -> None:
    assert prose.answer(new_report(["only"])).startswith("This allocation of 1 layer brings")


def test_the_best_single_option_is_compared_as_measured(new_report: Build) -> None:
    report = new_report(others=(MINE,), uniform=(RIVAL,))
    assert prose.comparison(report) == (
        "Uniform int4/int8, the best single option within that budget, loses 1.100 ±\u00a00.020:"
        " 2.00 times as much."
    )


def test_predicted_is_compared_with_predicted(new_report: Build) -> None:
    rival = replace(RIVAL, measured=None)
    assert prose.comparison(new_report(others=(MINE,), uniform=(rival,))) == (
        "Uniform int4/int8, the best single option within that budget, is predicted to lose 0.6:"
        " 1.20 times as much."
    )


def test_a_rival_that_is_better_the_same_or_far_worse_is_told_so(new_report: Build) -> None:
    def told(loss: float) -> str:
        rival = replace(RIVAL, measured=loss, stderr=None)
        return prose.comparison(new_report(others=(MINE,), uniform=(rival,)))

    assert told(0.275).endswith("loses 0.275: 0.50 times as much.")
    assert told(0.55).endswith("loses 0.55: the same.")
    assert told(550.0).endswith("loses 550: 1000 times as much.")
    assert told(-0.45).endswith("loses −0.45: a difference of −1.")


def test_no_single_option_within_the_budget_is_said(new_report: Build) -> None:
    report = new_report(uniform=(Run("uniform int8/int8", 9000.0, 0.1),))
    bare = replace(report, allocation=replace(report.allocation, uniform=None))
    assert prose.comparison(bare) == "No single option everywhere is within the budget."


def test_an_allocation_that_is_a_uniform_one_says_so(new_report: Build) -> None:
    report = new_report(["only"])
    assert prose.comparison(report).startswith("It is uniform int4/int8 itself")


def test_without_a_named_rival_the_best_within_the_budget_is_taken(new_report: Build) -> None:
    runs = (
        Run("uniform a", 1000.0, 3.0, 2.0),
        Run("uniform b", 2000.0, 2.0, 2.5),
        Run("uniform c", 3000.0, 1.0, 1.0),
    )
    report = new_report(uniform=runs)
    bare = replace(report, allocation=replace(report.allocation, uniform=None))
    assert bare.rival == runs[0]  # measured; c is over the budget
    unmeasured = tuple(replace(run, measured=None) for run in runs)
    assert replace(bare, uniform=unmeasured).rival == unmeasured[1]


def test_the_proof_says_what_is_proven(new_report: Build) -> None:
    answer = new_report(values=[[4.0, 2.0, 1.0]]).allocation
    assert prose.badge(answer) == "proven optimal"
    assert prose.proof(answer) == (
        "No allocation within the budgets has a smaller predicted loss: predicted loss 7.2,"
        " proven bound 7.2, gap 0."
    )
    nearly = replace(answer, bound=answer.loss * (1 - 1e-15))
    assert prose.proof(nearly).endswith("proven bound 7.2, gap none but rounding.")
    open_ = replace(answer, status=mp.Status.FEASIBLE, bound=7.0)
    assert prose.badge(open_) == "bounded"
    assert prose.proof(open_) == (
        "Another may be better, by the gap at most: predicted loss 7.2, proven bound 7, gap 0.2."
    )
    unknown = replace(open_, bound=-np.inf)
    assert prose.badge(unknown) == "not proven"
    assert prose.proof(unknown) == (
        "Nothing is proven about better ones: predicted loss 7.2, no bound."
    )


def test_a_guard_that_acted_is_told_in_place_of_the_proof(new_report: Build) -> None:
    answer = new_report().allocation
    acted = replace(
        answer, provenance={"guard": "uniform int4/int8 is measured better; it is returned"}
    )
    assert prose.badge(acted) == "guarded"
    assert prose.proof(acted).startswith("Uniform int4/int8 is measured better; it is returned (")


def test_the_caption_speaks_of_what_is_drawn(new_report: Build) -> None:
    assert "shaded" in prose.frontier_caption(new_report())
    assert "Solid" in prose.frontier_caption(new_report())
    bare = new_report(frontier=None, measured=False)
    assert prose.frontier_caption(bare) == ""
