"""What a run shows that cannot be offered an option: each by name, in a sentence.

A weight is a layer's only where its own module reads it as it is stored. Whatever else happens to
it (functional calls, parametrizations, no call at all) makes it fixed cost, and is said.
"""

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from mpsearch.tracing.lineage import Lineage
from mpsearch.tracing.sites import Site

_FIXED = "its weights are counted as fixed"


def usable(sites: Sequence[Site], run: Lineage, names: dict[nn.Parameter, str]) -> set[str]:
    """Names of the sites an option can be given to: all that keep a weight, or none of them."""
    used = {use.site for use in run.uses}
    keeping: dict[nn.Parameter, list[Site]] = {}
    for site in sites:
        if site.weight is not None:
            keeping.setdefault(site.weight, []).append(site)
    return {
        site.name
        for weight, group in keeping.items()
        if any(site.kind != "embedding" and site.name in used for site in group)
        and names[weight] not in run.elsewhere
        for site in group
    }


def notes(
    model: nn.Module, sites: Sequence[Site], run: Lineage, kept: Collection[str]
) -> tuple[str, ...]:
    """A sentence for each thing found, in the order of the model."""
    return (*_of_modules(sites, run, kept), *_of_parameters(model, sites, run), *_of_flow(run))


def _of_modules(sites: Sequence[Site], run: Lineage, kept: Collection[str]) -> Iterator[str]:
    used = {use.site for use in run.uses}
    for site in sites:
        times = run.calls[site.module]
        if site.kind == "embedding":
            continue
        if site.weight is None:
            yield (
                f"{site.name!r} computes its weight from other parameters; {_FIXED}: remove the"
                " parametrization to offer it an option"
            )
        elif times > 1 and site.name in kept:
            yield (
                f"{site.name!r} is called {times} times; it is one layer, and its"
                " multiply-accumulates are those of all calls"
            )
        elif not times and site.name not in kept and site.name not in used:
            yield f"{site.name!r} never ran with this example; {_FIXED}"
        elif times and site.name not in used:
            yield (
                f"{site.name!r} ran without a convolution or matrix product reading its weight;"
                f" {_FIXED}"
            )
    seen = {use.site for use in run.uses if use.site in kept and not use.origin.data}
    for name in dict.fromkeys(use.site for use in run.uses if use.site in seen):
        yield f"{name!r} reads a tensor that does not depend on the example"


def _of_parameters(model: nn.Module, sites: Sequence[Site], run: Lineage) -> Iterator[str]:
    computed = {site.module for site in sites if site.weight is None}
    said = {id(p) for module in computed for p in module.parameters()}
    for name, parameter in model.named_parameters():
        found = run.elsewhere.get(name)
        if found is None or id(parameter) in said:
            continue
        place = f"in {found.module!r}" if found.module else "in the model itself"
        if found.derived:
            yield (
                f"parameter {name!r} is changed before {found.op} {place} reads it; it is counted"
                " as fixed"
            )
        else:
            yield (
                f"parameter {name!r} is read by a functional call ({found.op}) {place}, outside"
                " any layer; it is counted as fixed"
            )


def _of_flow(run: Lineage) -> Iterator[str]:
    for module in run.decisions:
        place = repr(module) if module else "the model itself"
        yield (
            f"{place} reads the value of a tensor that depends on the example: another example may"
            " take another path, whose layers were not seen"
        )
