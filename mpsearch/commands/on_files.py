"""The commands that need no model, and no torch: solve, frontier, show, diff, export, list."""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpsearch import fronts, pipeline, questions, registry
from mpsearch.allocation import ALLOCATION, Allocation, Figure, read_allocation
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
from mpsearch.pareto import FRONTIER, Frontier, read_frontier
from mpsearch.problem import Budget, Problem
from mpsearch.reading import read, write
from mpsearch.report.text import allocation_table, readable, table


def solve(arguments: Namespace) -> Said:
    """Solve a saved problem: the least loss, or another question about it."""
    for flag, of in (("cost", "within"), ("apart", "top")):
        if getattr(arguments, flag) is not None and getattr(arguments, of) is None:
            raise ValueError(f"--{flag} goes with --{of}; give both, or leave it out")
    problem = _with_budgets(load_problem(arguments.problem), arguments.budget)
    if arguments.nested is not None:
        return _nested(problem, arguments)
    if arguments.top is not None:
        return _top(problem, arguments)
    writable(arguments.output)
    if arguments.within is not None:
        along = _along(problem, arguments.cost)
        _not_twice(arguments, along, "--within makes it least")
        answer = questions.tolerance(problem, along, arguments.within, solver=arguments.solver)
    else:
        answer = pipeline.solve(problem, solver=arguments.solver)
    (answer,) = _known([answer], arguments)
    if arguments.output:
        answer.save(arguments.output)
    return Said(answer.document(), f"{allocation_table(answer)}\n\n{_verdict(answer)}")


def _along(problem: Problem, named: str | None) -> str:
    """The cost in question: the named one, the only one, or the only one with a budget."""
    known = [c.name for c in problem.costs]
    if named is None and len(known) > 1 and len(problem.budgets) == 1:
        return problem.budgets[0].cost.name
    if named is None and len(known) != 1:
        raise ValueError(f"--within needs --cost NAME; there are: {', '.join(known) or 'none'}")
    return known[0] if named is None else named


def _not_twice(arguments: Namespace, along: str, why: str) -> None:
    if along in pairs(arguments.budget, "NAME=VALUE"):
        raise ValueError(f"--budget {along}=... has no meaning where {why}; leave it out")


def _known(answers: Sequence[Allocation], arguments: Namespace) -> list[Allocation]:
    """The answers with what the problem says of where it came from."""
    known = load_provenance(arguments.problem)
    recipe = known.pop("recipe", None)
    return [replace(a, recipe=recipe, provenance={**known, **a.provenance}) for a in answers]


def _verdict(answer: Allocation) -> str:
    """How good the answer is proven to be, what it cost at least, and who answered and why."""
    told, lines = answer.provenance, [verdict(answer)]
    if told.get("question") == "tolerance":
        figure = answer.figures[told["cost"]]
        bound = "none proven" if told["bound"] is None else readable(told["bound"], figure.unit)
        least = f"least {told['cost']}: {readable(figure.value, figure.unit)}, bound {bound}"
        lines.append(f"{least}, for a loss of at most {told['limit']:.6g} ({answer.unit})")
    if "why" in told:
        lines.append(f"solver {told['solver']}: {told['why']}")
    return "\n".join(lines)


def _top(problem: Problem, arguments: Namespace) -> Said:
    """The best answers, so many layers apart."""
    apart = 1 if arguments.apart is None else arguments.apart
    paths = _numbered(arguments.output, max(arguments.top, 0))
    found = _known(
        questions.top_k(problem, arguments.top, apart, solver=arguments.solver), arguments
    )
    document = {"asked": arguments.top, "apart": apart, "allocations": _documents(found)}
    fewer = len(found) < arguments.top
    notes = [f"no more than {len(found)} differ in {apart} layers or more"] if fewer else []
    return Said(document, "\n\n".join([_several(found), *notes, *_saved(found, paths)]))


def _nested(problem: Problem, arguments: Namespace) -> Said:
    """A chain of answers for growing budgets."""
    ((along, texts),) = pairs([arguments.nested], "NAME=VALUE,VALUE").items()
    _not_twice(arguments, along, "--nested gives its budgets")
    limits = texts.split(",")
    paths = _numbered(arguments.output, len(limits))
    made = questions.nested(problem, along, limits, solver=arguments.solver)
    chain = _known(made.allocations, arguments)
    document = {
        "status": made.status.name.lower(),
        "loss": made.loss,
        "bound": made.bound if math.isfinite(made.bound) else None,
        "price": list(made.price),
        "allocations": _documents(chain),
        "independent": _documents(_known(made.independent, arguments)),
    }
    said = f"{made.status.value}: losses add up to {made.loss:.6g}, bound {made.bound:.6g}"
    price = "nesting costs " + ", ".join(f"{p:.3g}" for p in made.price) + f" ({chain[0].unit})"
    return Said(document, "\n\n".join([_several(chain), f"{said}\n{price}", *_saved(chain, paths)]))


def _documents(answers: Sequence[Allocation]) -> list[dict[str, Any]]:
    return [answer.document() for answer in answers]


def _several(answers: Sequence[Allocation]) -> str:
    """Answers side by side: a column each."""
    first = answers[0]
    rows = [[name, *(str(a[name]) for a in answers)] for name in first]
    rows.append([f"loss ({first.unit})", *(f"{a.loss:.6g}" for a in answers)])
    rows += [
        [name, *(readable(a.cost[name], figure.unit) for a in answers)]
        for name, figure in first.figures.items()
    ]
    rows.append(["status", *(a.status.name.lower() for a in answers)])
    return table(["layer", *(str(i) for i in range(1, len(answers) + 1))], rows)


def _numbered(output: str | None, count: int) -> list[Path]:
    """``bits-1.json``, ``bits-2.json``, ... for ``bits.json``."""
    if output is None:
        return []
    path = Path(output)
    paths = [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, count + 1)]
    for each in paths:
        writable(str(each))
    return paths


def _saved(answers: Sequence[Allocation], paths: Sequence[Path]) -> list[str]:
    """Write each answer to its file, and say so."""
    written = list(zip(answers, paths, strict=False))  # there may be fewer answers than asked
    for answer, path in written:
        answer.save(path)
    return ["wrote " + ", ".join(str(path) for _, path in written)] if written else []


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
    names = along.split(",") if along and "," in along else along
    front = fronts.frontier(
        problem, names, solver=arguments.solver, points=arguments.points, sweep=progress()
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
