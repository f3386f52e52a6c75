"""The commands that run a model: search, sensitivity, cost, verify."""

import re
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from mpsearch import pipeline, registry
from mpsearch.allocation import Allocation, Frontier
from mpsearch.batches import checked
from mpsearch.commands.said import (
    Said,
    figures,
    pairs,
    plain,
    progress,
    split_options,
    table_text,
    verdict,
    writable,
)
from mpsearch.documents import TABLE, cost_document, save_problem, save_table
from mpsearch.formats import Option
from mpsearch.loading import load_task
from mpsearch.network import Network
from mpsearch.problem import Problem
from mpsearch.quant.recipe import Recipe
from mpsearch.reading import write_bytes
from mpsearch.report.data import Report, Run
from mpsearch.report.page import page
from mpsearch.report.text import allocation_table, runs_table, table
from mpsearch.sweep import Folder, Sweep
from mpsearch.tables import Table
from mpsearch.task import Task
from mpsearch.tracing import trace
from mpsearch.verification import Verifier, verify_frontier
from mpsearch.verification import verify as measure


def search(arguments: Namespace) -> Said:
    """Find an allocation within budgets, and run it for real."""
    for path in (arguments.output, arguments.report, arguments.save_problem):
        writable(path)
    if arguments.device:
        registry.load("devices", arguments.device)
    task = load_task(arguments.task, text=arguments.text)
    return _search(task, arguments, _options(arguments), pairs(arguments.budget, "NAME=VALUE"))


def _search(
    task: Task, arguments: Namespace, options: Sequence[Option], budgets: Mapping[str, str]
) -> Said:
    clock = [time.perf_counter()]
    found = pipeline.search(
        task,
        options,
        budgets,
        method=arguments.method,
        models=arguments.model or ("size", "bitops"),
        solver=arguments.solver,
        recipe=_recipe(arguments),
        pin=pairs(arguments.pin, "REGEX=OPTION"),
        skip=arguments.skip,
        seed=arguments.seed,
        sweep=_sweep(arguments),
    )
    clock.append(time.perf_counter())
    provenance = dict(found.allocation.provenance) | {"recipe": found.recipe.document()}
    if arguments.save_problem:
        save_problem(found.problem, arguments.save_problem, provenance)
    along = next(iter(budgets), found.problem.costs[0].name)
    front = replace(
        pipeline.frontier(found.problem, along, points=arguments.points, sweep=_sweep(arguments)),
        recipe=found.recipe.document(),
        provenance=found.allocation.provenance,
    )
    clock.append(time.perf_counter())
    answer, points = found.allocation, ()
    if task.heldout and not arguments.no_verify:
        answer, points = _verified(task, found, front, along, arguments)
    clock.append(time.perf_counter())
    seconds = [f"{b - a:.1f} s" for a, b in pairwise(clock)]
    facts = {
        "task": arguments.task,
        "estimator": str(arguments.method),
        "seed": str(arguments.seed),
    }
    facts |= dict(zip(("search took", "frontier took", "verification took"), seconds, strict=True))
    report = _report(arguments.task, found.problem, answer, front, along, points, facts)
    if arguments.output:
        answer.save(arguments.output)
    if arguments.report:
        write_bytes(arguments.report, page(report).encode())
    wrote = [f"wrote {path}" for path in (arguments.output, arguments.report) if path]
    prose = [allocation_table(answer), runs_table(report), "\n".join([verdict(answer), *wrote])]
    return Said(answer.document(), "\n\n".join(prose))


def _verified(
    task: Task, found: pipeline.Search, front: Frontier, along: str, arguments: Namespace
) -> tuple[Allocation, tuple[Run, ...]]:
    """The allocation measured, beside every uniform option and some points of the frontier."""
    sweep, loss = _sweep(arguments), found.problem.loss
    verifier = Verifier.of(task, found.recipe)
    uniform = [o for o in loss.options if loss.uniform(o) is not None]
    answer = measure(task, found.allocation, uniform=uniform, verifier=verifier, sweep=sweep)
    spread = min(arguments.measure, len(front))
    chosen = sorted({round(i * (len(front) - 1) / max(spread - 1, 1)) for i in range(spread)})
    measured = verify_frontier(front, chosen, verifier, sweep)
    runs = [
        Run(f"point {i}", front[i].cost[along], front[i].loss, m.mean, m.stderr, m.metrics)
        for i, m in measured.items()
    ]
    return answer, tuple(runs)


def _report(
    title: str,
    problem: Problem,
    answer: Allocation,
    front: Frontier,
    along: str,
    points: tuple[Run, ...],
    facts: Mapping[str, str],
) -> Report:
    loss, cost = problem.loss, next(c for c in problem.costs if c.name == along)
    measured = dict(answer.measured or {})
    baselines = measured.get("baselines", {})
    uniform = []
    for option in loss.options:
        choice = loss.uniform(option)
        if choice is not None:
            was = baselines.get(f"uniform {option}", {})
            uniform.append(
                _run(f"uniform {option}", cost.total(choice), problem.total(choice), was)
            )
    others = [_run("this allocation", answer.cost[along], answer.loss, measured)]
    if answer.template is not None:
        was = baselines.get("template", {})
        others.append(_run("type template", answer.template.cost[along], answer.template.loss, was))
    return Report(title, answer, front, along, loss, points, tuple(uniform), tuple(others), facts)


def _run(name: str, cost: float, predicted: float, was: Mapping[str, Any]) -> Run:
    mean = was.get("kl", was.get("relative_mse"))
    return Run(name, cost, predicted, mean, was.get("stderr"), was.get("metrics", {}))


def sensitivity(arguments: Namespace) -> Said:
    """Write the table of predicted losses."""
    writable(arguments.output)
    task = load_task(arguments.task, text=arguments.text)
    made = pipeline.estimate(
        task,
        _options(arguments),
        arguments.method,
        network=_network(task, arguments),
        recipe=_recipe(arguments),
        seed=arguments.seed,
        sweep=_sweep(arguments),
    )
    return _saved_table(made, arguments.output)


def cost(arguments: Namespace) -> Said:
    """Write the table of a hardware cost."""
    writable(arguments.output)
    task = load_task(arguments.task, text=arguments.text)
    made = pipeline.cost(_network(task, arguments), _options(arguments), arguments.model)
    return _saved_table(made, arguments.output)


def _network(task: Task, arguments: Namespace) -> Network:
    pin = pairs(arguments.pin, "REGEX=OPTION")
    return trace(task.model, checked(task.batches)[0], pin=pin, skip=arguments.skip)


def _saved_table(made: Table, output: str | None) -> Said:
    if output:
        save_table(made, output)
    document = {"schema": TABLE, "name": made.name, "layers": [n.name for n in made.layers]}
    document |= {"options": [str(o) for o in made.options], **plain(cost_document(made))}
    return Said(document, table_text(made))


def verify(arguments: Namespace) -> Said:
    """Quantize for real, and put measured figures beside the predicted ones."""
    writable(arguments.output)
    answer = Allocation.load(arguments.allocation)
    task = load_task(arguments.task, text=arguments.text)
    uniform = split_options(arguments.uniform) if arguments.uniform else ()
    answer = measure(task, answer, uniform=uniform, sweep=progress())
    if arguments.output:
        answer.save(arguments.output)
    measured = dict(answer.measured or {})
    rows = [["this allocation", answer.loss, measured]]
    simple = {"uniform": answer.uniform, "template": answer.template}
    for name, was in measured.get("baselines", {}).items():
        baseline = simple.get(name)
        rows.append([name, baseline.loss if baseline else None, was])
    lines = [
        [name, "" if loss is None else f"{loss:.6g}", *figures(was)] for name, loss, was in rows
    ]
    return Said(
        answer.document(), table(["network", "predicted", "measured", "+-", "metrics"], lines)
    )


def _options(arguments: Namespace) -> tuple[Option, ...]:
    return split_options(arguments.options)


def _recipe(arguments: Namespace) -> Recipe:
    recipe = Recipe()
    if arguments.ranges:
        recipe = replace(recipe, ranges=arguments.ranges)
    if arguments.corrections is not None:
        names = [n for n in re.split(r"[,\s]+", arguments.corrections) if n not in ("", "none")]
        recipe = replace(recipe, corrections=tuple(names))
    return recipe if arguments.samples is None else replace(recipe, samples=arguments.samples)


def _sweep(arguments: Namespace) -> Sweep:
    if arguments.workers != 1:
        raise ValueError(f"got {arguments.workers} workers; this version runs 1")
    return Sweep(progress=True, cache=Folder(arguments.cache) if arguments.cache else {})
