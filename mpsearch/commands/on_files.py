"""The commands that need no model, and no torch: solve, frontier, show, diff, export, list."""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from mpsearch import pipeline, registry
from mpsearch.allocation import (
    ALLOCATION,
    FRONTIER,
    Allocation,
    Figure,
    Frontier,
    read_allocation,
    read_frontier,
)
from mpsearch.commands.said import Said, pairs, plain, progress, table_text, verdict, writable
from mpsearch.documents import (
    PROBLEM,
    TABLE,
    cost_document,
    load_problem,
    load_provenance,
    load_table,
)
from mpsearch.formats import FAMILIES
from mpsearch.problem import Budget, Problem
from mpsearch.reading import read, write
from mpsearch.report.text import allocation_table, readable, table


def solve(arguments: Namespace) -> Said:
    """Solve a saved problem."""
    writable(arguments.output)
    problem = _with_budgets(load_problem(arguments.problem), arguments.budget)
    answer = pipeline.solve(problem, solver=arguments.solver)
    known = load_provenance(arguments.problem)
    recipe = known.pop("recipe", None)
    answer = replace(answer, recipe=recipe, provenance={**known, **answer.provenance})
    if arguments.output:
        answer.save(arguments.output)
    return Said(answer.document(), allocation_table(answer) + "\n\n" + verdict(answer))


def _with_budgets(problem: Problem, texts: Sequence[str]) -> Problem:
    """The problem with budgets of the command line in place of its own of the same names."""
    known = {c.name: c for c in problem.costs}
    given = pairs(texts, "NAME=VALUE")
    for name in given:
        if name not in known:
            raise LookupError(f"no cost is named {name!r}; there are: {', '.join(known) or 'none'}")
    kept = tuple(b for b in problem.budgets if b.cost.name not in given)
    return replace(problem, budgets=(*kept, *(Budget.of(known[n], v) for n, v in given.items())))


def frontier(arguments: Namespace) -> Said:
    """The Pareto frontier of a saved problem."""
    writable(arguments.output)
    problem = load_problem(arguments.problem)
    along = arguments.cost
    if along is None and len(problem.costs) > 1 and len(problem.budgets) == 1:
        along = problem.budgets[0].cost.name
    front = pipeline.frontier(
        problem, along, solver=arguments.solver, points=arguments.points, sweep=progress()
    )
    if arguments.output:
        front.save(arguments.output)
    return Said(front.document(), _frontier_text(front))


def _frontier_text(front: Frontier) -> str:
    names = list(front.points[0].cost)
    rows = [
        [
            *(readable(p.cost[n], front.units.get(n, "")) for n in names),
            f"{p.loss:.6g}",
            f"{p.bound:.6g}",
        ]
        for p in front.points
    ]
    return table([*names, f"loss ({front.unit})", "bound"], rows)


def show(arguments: Namespace) -> Said:
    """Print an allocation, a frontier, a table or a problem."""
    node = read(arguments.file)
    found = node.members().get("schema")
    kind = None if found is None else found.value
    if kind == ALLOCATION:
        answer = read_allocation(node)
        return Said(answer.document(), allocation_table(answer) + "\n\n" + verdict(answer))
    if kind == FRONTIER:
        front = read_frontier(node)
        return Said(front.document(), _frontier_text(front))
    if kind == TABLE:
        made = load_table(arguments.file)
        return Said({"schema": TABLE, **plain(cost_document(made))}, table_text(made))
    if kind == PROBLEM:
        problem = load_problem(arguments.file)
        lines = [table_text(problem.loss), *(table_text(c) for c in problem.costs)]
        lines += [
            f"budget {b.cost.name}: {readable(b.limit, b.cost.unit)}" for b in problem.budgets
        ]
        return Said({"schema": PROBLEM, "layers": len(problem.loss.layers)}, "\n\n".join(lines))
    raise ValueError(
        f"{arguments.file}: has schema {kind!r}; this shows {ALLOCATION}, {FRONTIER},"
        f" {TABLE} and {PROBLEM}"
    )


def diff(arguments: Namespace) -> Said:
    """What differs between two allocations."""
    first, second = Allocation.load(arguments.first), Allocation.load(arguments.second)
    names = list(dict.fromkeys([*first, *second]))
    pairs = {n: [str(a[n]) if n in a else None for a in (first, second)] for n in names}
    layers = {n: pair for n, pair in pairs.items() if pair[0] != pair[1]}
    none = Figure(math.nan, "")
    figures = {
        n: [a.figures.get(n, none).value for a in (first, second)]
        for n in {**first.figures, **second.figures}
    }
    document = {"layers": layers, "loss": [first.loss, second.loss]}
    document["cost"] = {
        n: [None if math.isnan(x) else x for x in pair] for n, pair in figures.items()
    }
    rows = [[n, *(x or "-" for x in pair)] for n, pair in layers.items()]
    rows.append([f"loss ({first.unit})", f"{first.loss:.6g}", f"{second.loss:.6g}"])
    rows += [[n, *(f"{x:.12g}" for x in pair)] for n, pair in figures.items()]
    return Said(document, table(["", arguments.first, arguments.second], rows))


def export(arguments: Namespace) -> Said:
    """An allocation in another tool's words."""
    writable(arguments.output)
    written = registry.load("exporters", arguments.to)(Allocation.load(arguments.allocation))
    if arguments.output:
        write(arguments.output, written)
    rows = [[name, *map(str, entry.values())] for name, entry in written.items()]
    heads = list(next(iter(written.values()))) if written else []
    return Said(written, table(["module", *heads], rows))


def list_(arguments: Namespace) -> Said:
    """What is there by name."""
    if arguments.kind == "formats":
        known = {name: f"{family.kind}, {family.bits} bits" for name, family in FAMILIES.items()}
    else:
        known = registry.names(arguments.kind)
    rows = [[name, what] for name, what in known.items()]
    return Said(
        known, table([arguments.kind, ""], rows) if rows else f"no {arguments.kind} in this version"
    )
