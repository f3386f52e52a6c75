"""The commands that run a model: search, sensitivity, cost, verify."""

import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from mpsearch import fronts, pipeline, registry
from mpsearch.allocation import Allocation, named
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
from mpsearch.commands.timed import Machine, compared
from mpsearch.documents import TABLE, cost_document, save_problem, save_table
from mpsearch.loading import load_task
from mpsearch.network import Network
from mpsearch.pareto import Frontier
from mpsearch.problem import Problem
from mpsearch.protocols import HardwareModel
from mpsearch.quant.recipe import Recipe
from mpsearch.reading import write_bytes
from mpsearch.report.data import Report, Run
from mpsearch.report.page import page
from mpsearch.report.picture import frontier_svg
from mpsearch.report.text import allocation_table, runs_table, table
from mpsearch.sweep import Folder, Sweep
from mpsearch.tables import Cost
from mpsearch.task import Task
from mpsearch.tracing import trace
from mpsearch.verification import Verifier, verify_frontier
from mpsearch.verification import verify as measure


def search(arguments: Namespace) -> Said:
    """Find an allocation within budgets, and run it for real."""
    for path in _files(arguments):
        writable(path)
    models, sweep = _models(arguments), _sweep(arguments)
    budgets = pairs(arguments.budget, "NAME=VALUE")
    clock = [time.perf_counter()]
    task = load_task(arguments.task, text=arguments.text)
    machine, priced = _priced(task, arguments, models, sweep)
    found = _found(task, arguments, budgets, priced, sweep)
    clock.append(time.perf_counter())
    along = next(iter(budgets), found.problem.costs[0].name)
    front = fronts.frontier(found.problem, along, points=arguments.points, sweep=sweep)
    front = replace(front, recipe=found.allocation.recipe, provenance=found.allocation.provenance)
    clock.append(time.perf_counter())
    answer = found.allocation
    points: tuple[Run, ...] = ()
    if task.heldout and not arguments.no_verify:
        answer, points = _verified(task, found, front, along, arguments, machine)
    clock.append(time.perf_counter())
    steps = ("search took", "frontier took", "verification took")
    facts = {s: f"{b - a:.1f} s" for s, (a, b) in zip(steps, pairwise(clock), strict=True)}
    facts = {"command": shlex.join(["mpsearch", *sys.argv[1:]])} | facts
    if machine is not None:
        facts["latency measured"] = machine.said()
    report = _report(arguments.task, found.problem, answer, front, along, points, facts)
    return _written(report, found, arguments)


def _priced(
    task: Task, arguments: Namespace, models: tuple[str, ...], sweep: Sweep
) -> tuple[Machine | None, tuple[str | HardwareModel, ...]]:
    """The models, and the machine where one measures: then networks run on it, and bytes count."""
    measured = [model for model in models if model.partition(":")[0] == "measured"]
    if not measured:
        return None, models
    if len(measured) > 1:
        raise ValueError(f"one backend is measured at a time, got {', '.join(measured)}; name one")
    network = _network(task, arguments)
    machine = Machine.of(measured[0], task, arguments.batch, arguments.rounds, arguments.phase)
    made = machine.model(task, network, sweep)
    priced = tuple(made if model == measured[0] else model for model in models)
    return machine, priced if "size" in models else (*priced, "size")


def _found(
    task: Task,
    arguments: Namespace,
    budgets: Mapping[str, str],
    models: tuple[str | HardwareModel, ...],
    sweep: Sweep,
) -> pipeline.Search:
    return pipeline.search(
        task,
        split_options(arguments.options),
        budgets,
        method=arguments.method,
        models=models,
        solver=arguments.solver,
        recipe=_recipe(arguments),
        pin=pairs(arguments.pin, "REGEX=OPTION"),
        skip=arguments.skip,
        seed=arguments.seed,
        sweep=sweep,
    )


def _files(arguments: Namespace) -> tuple[str | None, ...]:
    return arguments.output, arguments.report, arguments.picture, arguments.save_problem


def _written(report: Report, found: pipeline.Search, arguments: Namespace) -> Said:
    """Write what was asked for, and say it."""
    answer = report.allocation
    if arguments.save_problem:
        provenance = {**found.allocation.provenance, "recipe": found.recipe.document()}
        save_problem(found.problem, arguments.save_problem, provenance)
    if arguments.output:
        answer.save(arguments.output)
    if arguments.report:
        write_bytes(arguments.report, page(report).encode())
    if arguments.picture:
        write_bytes(arguments.picture, frontier_svg(report).encode())
    wrote = [f"wrote {path}" for path in _files(arguments) if path]
    timed = [compared(report.runs)] if "latency measured" in report.facts else []
    last = "\n".join([verdict(answer), *timed, *wrote])
    prose = [allocation_table(answer), runs_table(report), last]
    return Said(answer.document(), "\n\n".join(prose))


def _verified(
    task: Task,
    found: pipeline.Search,
    front: Frontier,
    along: str,
    arguments: Namespace,
    machine: Machine | None,
) -> tuple[Allocation, tuple[Run, ...]]:
    """The allocation measured, beside every uniform option and some points of the frontier."""
    sweep, problem = _sweep(arguments), found.problem
    if machine is not None:
        task = machine.timing(task)
    verifier = Verifier.of(task, found.recipe)
    if machine is not None:
        verifier = replace(verifier, quantize=machine.quantize)
    choices = {f"uniform {o}": problem.loss.uniform(o) for o in problem.loss.options}
    others = {name: named(problem, choice) for name, choice in choices.items() if choice}
    answer = measure(task, found.allocation, others=others, verifier=verifier, sweep=sweep)
    spread = min(arguments.measure, len(front))
    chosen = sorted({round(i * (len(front) - 1) / max(spread - 1, 1)) for i in range(spread)})
    measured = verify_frontier(front, chosen, verifier, sweep)
    runs = [
        _run(f"point {i}", front[i].cost, along, front[i].loss, m.document())
        for i, m in measured.items()
    ]
    return answer if machine is None else machine.named(answer), tuple(runs)


def _report(
    title: str,
    problem: Problem,
    answer: Allocation,
    front: Frontier,
    along: str,
    points: tuple[Run, ...],
    facts: Mapping[str, str],
) -> Report:
    loss = problem.loss
    measured = dict(answer.measured or {})
    baselines = measured.get("baselines", {})
    uniform = []
    for option in loss.options:
        choice = loss.uniform(option)
        if choice is not None:
            costs = {cost.name: cost.total(choice) for cost in problem.costs}
            name = f"uniform {option}"
            was = baselines.get(name, {})
            uniform.append(_run(name, costs, along, problem.total(choice), was))
    others = [_run("this allocation", answer.cost, along, answer.loss, measured)]
    if answer.template is not None:
        rival, was = answer.template, baselines.get("template", {})
        others.append(_run("type template", rival.cost, along, rival.loss, was))
    return Report(title, answer, front, along, loss, points, tuple(uniform), tuple(others), facts)


def _run(
    name: str, costs: Mapping[str, float], along: str, predicted: float, was: Mapping[str, Any]
) -> Run:
    """Beside the cost along the frontier, its bytes."""
    mean = was.get("kl", was.get("relative_mse"))
    size = {key: value for key, value in costs.items() if key == "size" != along}
    metrics = was.get("metrics", {})
    return Run(name, costs[along], predicted, mean, was.get("stderr"), metrics, size)


def sensitivity(arguments: Namespace) -> Said:
    """Write the table of predicted losses."""
    writable(arguments.output)
    sweep = _sweep(arguments)
    task = load_task(arguments.task, text=arguments.text)
    made = pipeline.estimate(
        task,
        split_options(arguments.options),
        arguments.method,
        network=_network(task, arguments),
        recipe=_recipe(arguments),
        seed=arguments.seed,
        sweep=sweep,
    )
    return _saved_table(made, arguments.output)


def cost(arguments: Namespace) -> Said:
    """Write the tables of a hardware model: one as FILE, several as FILE-NAME."""
    writable(arguments.output)
    models = _models(arguments)
    task = load_task(arguments.task, text=arguments.text)
    network, options = _network(task, arguments), split_options(arguments.options)
    made = {n: c for model in models for n, c in pipeline.costs(network, options, model).items()}
    if len(made) == 1:
        return _saved_table(next(iter(made.values())), arguments.output)
    output = Path(arguments.output) if arguments.output else None
    said = {
        name: _saved_table(each, str(output.with_stem(f"{output.stem}-{name}")) if output else None)
        for name, each in made.items()
    }
    document = {name: each.document for name, each in said.items()}
    return Said(document, "\n\n".join(each.text for each in said.values()))


def _models(arguments: Namespace) -> tuple[str, ...]:
    """The hardware models asked for, the device's among them."""
    models = list(arguments.model or [])
    if arguments.device:
        models.append(f"{registry.load('devices', arguments.device).model}:{arguments.device}")
    return tuple(models) or (("size",) if arguments.command == "cost" else ("size", "bitops"))


def _network(task: Task, arguments: Namespace) -> Network:
    pin = pairs(arguments.pin, "REGEX=OPTION")
    return trace(task.model, checked(task.batches)[0], pin=pin, skip=arguments.skip)


def _saved_table(made: Cost, output: str | None) -> Said:
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
    options = split_options(arguments.uniform) if arguments.uniform else ()
    others = {f"uniform {o}": dict.fromkeys(answer, o) for o in options}
    answer = measure(task, answer, others=others, sweep=progress())
    if arguments.output:
        answer.save(arguments.output)
    measured = dict(answer.measured or {})
    runs: dict[str, Any] = {"this allocation": measured, **measured.get("baselines", {})}
    predicted = {"this allocation": answer.loss}
    simple = {"uniform": answer.uniform, "template": answer.template}
    predicted |= {name: baseline.loss for name, baseline in simple.items() if baseline}
    rows = [
        [name, f"{predicted[name]:.6g}" if name in predicted else "", *figures(was)]
        for name, was in runs.items()
    ]
    heads = ["network", "predicted", "measured", "+-", "metrics"]
    return Said(answer.document(), table(heads, rows) + "\n\n" + verdict(answer))


def _recipe(arguments: Namespace) -> Recipe:
    alike = ("ranges", "rounding", "salience", "samples", "bos")
    given = {name: getattr(arguments, name) for name in alike}
    for steps in ("corrections", "preparations"):
        if (named := getattr(arguments, steps)) is not None:
            names = re.split(r"[,\s]+", named)
            given[steps] = [name for name in names if name not in ("", "none")]
    return Recipe.read({key: value for key, value in given.items() if value is not None})


def _sweep(arguments: Namespace) -> Sweep:
    if arguments.workers != 1:
        raise ValueError(f"got {arguments.workers} workers; this version runs 1")
    cache: MutableMapping[str, Any] = Folder(arguments.cache) if arguments.cache else {}
    return Sweep(progress=True, cache=cache, memory=arguments.memory)
