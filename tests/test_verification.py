"""Predicted beside measured, on small networks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.allocation import Baseline
from mpsearch.verification import Verifier, verify_frontier

OPTIONS = mp.options("w2a8", "w4a8", "w8a8")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)
    ).eval()


def task(model: nn.Module | None = None, **more: Any) -> mp.Task:
    torch.manual_seed(1)
    return mp.Task(
        network() if model is None else model,
        [torch.randn(32, 12) for _ in range(2)],
        [torch.randn(40, 12) for _ in range(2)],
        **more,
    )


def allocation(*bits: int, uniform: int = 8) -> mp.Allocation:
    names = ("0", "2", "4")
    options: dict[int, mp.Option] = dict(zip((2, 4, 8), OPTIONS, strict=True))
    return mp.Allocation(
        dict(zip(names, (options[b] for b in bits), strict=True)),
        {n: (n,) for n in names},
        0.1,
        "KL (nats)",
        0.1,
        mp.Status.OPTIMAL,
        recipe=mp.Recipe().document(),
        uniform=Baseline(dict.fromkeys(names, options[uniform]), 0.2, {}, options[uniform]),
    )


def test_what_is_measured_is_what_the_quantized_network_gives() -> None:
    the_task = task()
    best = mp.verify(the_task, allocation(8, 8, 8, uniform=2))
    model = mp.quantize(the_task.model, best, the_task.batches)
    log_p = torch.cat([the_task.model(x) for x in the_task.heldout]).double().log_softmax(1)
    log_q = torch.cat([model(x) for x in the_task.heldout]).double().log_softmax(1)
    each = (log_p.exp() * (log_p - log_q)).sum(1)
    assert best.measured is not None
    assert best.measured["kl"] == pytest.approx(each.mean().item(), rel=1e-9)
    assert best.measured["stderr"] == pytest.approx(
        (each.std() / len(each) ** 0.5).item(), rel=1e-9
    )
    assert best.measured["baselines"]["uniform"]["kl"] > best.measured["kl"]


def test_the_float_network_measured_against_itself_loses_nothing() -> None:
    the_task = task()
    names = ("0", "2", "4")
    free = mp.options("fp32/fp32")[0]
    best = replace(allocation(8, 8, 8), layers=dict.fromkeys(names, free), uniform=None)
    measured = mp.verify(the_task, best).measured
    assert measured is not None
    assert measured["kl"] == 0
    assert measured["relative_logit_error"] == 0


def test_a_baseline_measured_better_is_returned_and_said() -> None:
    the_task = task()
    best = mp.verify(the_task, allocation(2, 2, 2, uniform=8))
    assert {str(o) for o in best.values()} == {"int8/int8"}
    assert "uniform int8/int8 is measured better" in best.provenance["guard"]
    assert best.loss == 0.2
    assert best.status is mp.Status.FEASIBLE
    assert best.measured is not None
    assert best.measured["mix"]["kl"] > best.measured["kl"]


def test_the_task_s_metrics_stand_beside_float_s() -> None:
    def evaluate(model: nn.Module) -> Mapping[str, float]:
        return {"mean": model(torch.ones(1, 12)).mean().item()}

    the_task = task(evaluate=evaluate)
    measured = mp.verify(the_task, allocation(8, 8, 8)).measured
    assert measured is not None
    assert measured["metrics"]["mean"] == pytest.approx(
        measured["float"]["metrics"]["mean"], abs=0.1
    )
    assert measured["metrics"]["mean"] != measured["float"]["metrics"]["mean"]


def test_points_of_a_frontier_are_measured_by_index() -> None:
    the_task = task()
    net = mp.trace(the_task.model, the_task.batches[0])
    loss = mp.estimate(the_task, OPTIONS, method="weight-error", network=net)
    front = mp.frontier(loss, mp.cost(net, OPTIONS), points=5)
    found = verify_frontier(front, [0, len(front) - 1], Verifier.of(the_task))
    assert found[0].mean > found[len(front) - 1].mean


@pytest.mark.parametrize(
    ("heldout", "message"),
    [([], "the task has no held-out batches"), ([torch.zeros(0, 12)], "batch 0 is empty")],
)
def test_held_out_data_is_needed(heldout: list[Tensor], message: str) -> None:
    the_task = replace(task(), heldout=heldout)
    with pytest.raises(ValueError, match=message):
        mp.verify(the_task, allocation(8, 8, 8))


def test_the_model_and_its_modes_are_left_as_they_were() -> None:
    model = network().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def fails(_: nn.Module) -> Mapping[str, float]:
        raise RuntimeError("midway")

    the_task = task(model, evaluate=fails)
    with pytest.raises(RuntimeError, match="midway"):
        mp.verify(the_task, allocation(2, 4, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
