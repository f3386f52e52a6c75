"""The command that measures: profile."""

from argparse import Namespace
from dataclasses import replace

from mpsearch import pipeline, registry
from mpsearch.commands.said import Said, pairs, plain, progress, split_options, table_text, writable
from mpsearch.commands.timed import timed_batch
from mpsearch.documents import TABLE, cost_document, save_table
from mpsearch.kernels.placing import beside
from mpsearch.loading import load_task
from mpsearch.sweep import Folder
from mpsearch.tracing import trace


def profile(arguments: Namespace) -> Said:
    """Run each distinct layer at each option on this machine, and write the table of latencies."""
    writable(arguments.output)
    options = split_options(arguments.options)
    sweep = progress()
    if arguments.cache:
        sweep = replace(sweep, cache=Folder(arguments.cache))
    model = registry.load("hwmodels", "measured")(
        arguments.backend, arguments.batch, arguments.rounds, sweep=sweep, phase=arguments.phase
    )
    task = load_task(arguments.task, text=arguments.text)
    batch = timed_batch(task, arguments.batch, arguments.phase)
    network = trace(
        task.model, batch, pin=pairs(arguments.pin, "REGEX=OPTION"), skip=arguments.skip
    )
    rest = beside(task.model, network, batch, arguments.rounds)
    table = pipeline.cost(network, options, replace(model, beside=rest.seconds))
    if arguments.output:
        save_table(table, arguments.output)
    document = {"schema": TABLE, "layers": [layer.name for layer in table.layers]}
    document |= {"options": [str(o) for o in table.options], **plain(cost_document(table))}
    lines = [f"beside the layers: {rest.seconds:.3g} s, in every total"]
    lines += [
        f"{int(where.sum())} of {where.size} entries: {note}" for note, where in table.notes.items()
    ]
    return Said(document, table_text(table) + "\n\n" + "\n".join(lines))
