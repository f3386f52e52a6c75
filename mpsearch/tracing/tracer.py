"""From a torch module to a `Network`: run it once, and see which layer reads what which one wrote.

Layers are modules that keep a weight: linear, convolution and transposed convolution, the packed
projections of ``nn.MultiheadAttention``, Hugging Face's ``Conv1D``. Products of two activations
(as inside attention) keep no weight: they are no layers, and are in no count of
multiply-accumulates.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from mpsearch.batches import checked, samples
from mpsearch.formats import Option
from mpsearch.network import Fixed, Layer, Network, Tie
from mpsearch.tracing.findings import notes, usable
from mpsearch.tracing.lineage import Lineage
from mpsearch.tracing.origins import INPUT
from mpsearch.tracing.roles import roles
from mpsearch.tracing.runs import answer, evaluating
from mpsearch.tracing.sites import Site, output_first, sites
from mpsearch.tracing.ties import fused, merged, readers, residuals, shared, transitions


def trace(
    model: nn.Module,
    example: Any,
    *,
    pin: Mapping[str, str | Option] | None = None,
    skip: Sequence[str] = (),
    tie_inputs: bool = False,
    tie_residuals: bool = False,
) -> Network:
    """The layers of the model, the graph between them, their ties, and what stays unquantized.

    The model runs once on the example, in eval mode and without gradients, and is left as it was.
    Modules that share a weight, query, key and value, gate and up, and a transition convolution
    with its shortcut are one layer, named for its first member. An embedding table is fixed cost,
    unless a linear layer shares it: then the table is a member of that layer, the lookup reads the
    same quantized weight, and draws no edge.

    Args:
        model: A torch module.
        example: A batch, as in `Task`.
        pin: ``{regular expression: option}``: layers with a member in whose name the expression is
            found may take that option only.
        skip: Regular expressions: modules in whose name one is found are no layers, and their
            weights are fixed cost.
        tie_inputs: Also tie layers that read one tensor.
        tie_residuals: Also tie convolutions whose outputs meet in a residual addition.

    Raises:
        ValueError: The model fails on the example or has no layers, an expression is none or
            matches nothing, an option cannot be read.
    """
    found = sites(_ready(model))
    skipped = {name for pattern in skip for name in _matching(pattern, found)}
    pins = {pattern: _option(pattern, option) for pattern, option in (pin or {}).items()}
    run = Lineage(model, found, example)
    batch = _run(model, example, run)
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept = usable(found, run, names) - {
        site.name for site in found if _shares(site, [o for o in found if o.name in skipped])
    }
    said = notes(model, found, run, kept)
    order = _in_order(found, run, kept)
    if not order:
        raise ValueError(_no_layers(found, skipped, said))
    ties = _ties(found, run, order, tie_inputs=tie_inputs, tie_residuals=tie_residuals)
    layers = _layers(model, order, ties, run, batch)
    return Network(
        layers=layers,
        edges=_edges(run, layers),
        ties=ties,
        fixed=_fixed(model, order),
        parameter_bytes=_parameter_bytes(order),
        ops=tuple(sorted(run.ops)),
        notes=said,
        allowed=_allowed(pins, layers),
    )


def _ready(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model is a {type(model).__name__}; wanted a torch.nn.Module")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"parameter {name!r} has no shape yet; run the lazy model once before tracing it"
            )
    return model


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error


def _matching(text: str, found: Sequence[Site]) -> list[str]:
    pattern = _pattern(text)
    names = [site.name for site in found if pattern.search(site.name)]
    if not names:
        raise ValueError(f"skip {text!r} matches no module; there are {_some(found)}")
    return names


def _option(pattern: str, option: str | Option) -> Option:
    _pattern(pattern)
    try:
        return option if isinstance(option, Option) else Option.parse(option)
    except ValueError as error:
        raise ValueError(f"pin {pattern!r}: {error}") from error


def _some(named: Sequence[Site] | Sequence[Layer]) -> str:
    shown = ", ".join(repr(one.name) for one in named[:5])
    return (shown or "none") + (", ..." if len(named) > 5 else "")


def _shares(site: Site, others: Sequence[Site]) -> bool:
    return any(site is o or (o.weight is not None and site.weight is o.weight) for o in others)


def _run(model: nn.Module, example: Any, run: Lineage) -> int:
    """Run the model under the eye of ``run``; how many samples it saw."""
    checked([example])
    with evaluating(model), run:
        answer(model, example)
    return samples(example)


def _in_order(found: Sequence[Site], run: Lineage, kept: set[str]) -> tuple[Site, ...]:
    """The kept sites by first use; lookups, and what never ran but shares a weight, come last."""
    first = {use.site: place for place, use in reversed(list(enumerate(run.uses)))}
    last = len(run.uses)

    def place(site: Site) -> int:
        return last if site.kind == "embedding" else first.get(site.name, last)

    return tuple(sorted((site for site in found if site.name in kept), key=place))


def _no_layers(found: Sequence[Site], skipped: set[str], said: Sequence[str]) -> str:
    why = "; ".join(said) or (f"{len(skipped)} modules were skipped" if skipped else "")
    return (
        f"the model has no layers to offer options to; its modules with a weight: {_some(found)}"
        + (f" ({why})" if why else "")
        + "; wanted at least one linear layer or convolution that the example reaches"
    )


def _ties(
    found: Sequence[Site],
    run: Lineage,
    order: Sequence[Site],
    *,
    tie_inputs: bool,
    tie_residuals: bool,
) -> tuple[Tie, ...]:
    kinds = {site.name: site.kind for site in found}
    reads = {
        name: frozenset(use.reads for use in run.uses if use.site == name)
        for name in dict.fromkeys(use.site for use in run.uses if kinds[use.site] != "embedding")
    }
    ran = [site for site in found if site.name in reads]
    groups = [*shared(found), *fused(ran, reads), *transitions(ran, reads, run.sums)]
    groups += readers(reads) if tie_inputs else ()
    groups += residuals(ran, run.sums) if tie_residuals else ()
    return merged(groups, [site.name for site in order])


def _layers(
    model: nn.Module, order: Sequence[Site], ties: Sequence[Tie], run: Lineage, batch: int
) -> tuple[Layer, ...]:
    by_name = {site.name: site for site in order}
    group = {name: tie.members for tie in ties for name in tie.members}
    members = dict.fromkeys(group.get(site.name, (site.name,)) for site in order)
    role = roles(model, order, *_ends(run, order))
    return tuple(_layer([by_name[name] for name in m], role, run, batch) for m in members)


def _ends(run: Lineage, order: Sequence[Site]) -> tuple[str | None, str | None]:
    """The site that first reads the example itself, where one does, and the last to run."""
    kinds = {site.name: site.kind for site in order}
    uses = [use for use in run.uses if kinds.get(use.site, "embedding") != "embedding"]
    first = next((use.site for use in uses if INPUT in use.origin.sources), None)
    return first, uses[-1].site if uses else None


def _layer(members: Sequence[Site], role: Mapping[str, str], run: Lineage, batch: int) -> Layer:
    first = members[0]
    weights = {site.weight: site.module for site in members if site.weight is not None}
    computing = {site.name for site in members if site.kind != "embedding"}
    uses = [use for use in run.uses if use.site in computing]

    read = {use.reads: use.inputs for use in uses}  # what several members read counts once

    def each(counts: Iterable[int]) -> int:
        return -(-sum(counts) // batch)

    return Layer(
        name=first.name,
        params=sum(weight.numel() for weight in weights),
        macs=each(use.macs for use in uses),
        kind=first.kind,
        role=role[first.name],
        shapes=tuple(tuple(output_first(w, module).shape) for w, module in weights.items()),
        inputs=each(read.values()),
        outputs=each(use.outputs for use in uses),
        members=tuple(site.name for site in members),
        window=next((use.window for use in uses if use.site == first.name), None),
    )


def _edges(run: Lineage, layers: Sequence[Layer]) -> tuple[tuple[str, str], ...]:
    """Which layer reads what which wrote, through sites that are no layer; no loops."""
    layer = {member: one.name for one in layers for member in one.modules}
    sources: dict[str, set[str]] = {}
    for use in run.uses:
        sources.setdefault(use.site, set()).update(use.origin.sources)

    def behind(name: str) -> set[str]:
        seen, open_, reached = set(), [*sources.get(name, ())], set()
        while open_:
            source = open_.pop()
            if source in layer:
                reached.add(layer[source])
            elif source not in seen:
                seen.add(source)
                open_ += sources.get(source, ())
        return reached

    place = {one.name: number for number, one in enumerate(layers)}
    pairs = {(s, to) for name, to in layer.items() for s in behind(name) if s != to}
    return tuple(sorted(pairs, key=lambda pair: (place[pair[0]], place[pair[1]])))


def _fixed(model: nn.Module, order: Sequence[Site]) -> tuple[Fixed, ...]:
    weights = {site.weight for site in order}
    return tuple(
        Fixed(name, parameter.numel(), parameter.numel() * parameter.element_size())
        for name, parameter in model.named_parameters()
        if parameter not in weights
    )


def _parameter_bytes(order: Sequence[Site]) -> int:
    """Bytes of one weight, as most of them are stored."""
    weights = {site.weight for site in order if site.weight is not None}
    sizes: Counter[int] = Counter()
    for weight in weights:
        sizes[weight.element_size()] += weight.numel()
    return sizes.most_common(1)[0][0]


def _allowed(pins: Mapping[str, Option], layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    allowed: dict[str, tuple[str, ...]] = {}
    for text, option in pins.items():
        pattern = re.compile(text)
        hit = [one for one in layers if any(pattern.search(name) for name in one.modules)]
        if not hit:
            raise ValueError(f"pin {text!r} matches no layer; there are {_some(layers)}")
        for one in hit:
            if allowed.setdefault(one.name, (str(option),)) != (str(option),):
                raise ValueError(
                    f"layer {one.name!r} is pinned to {allowed[one.name][0]!r} and, by {text!r},"
                    f" to {str(option)!r}; pin each layer once"
                )
    return allowed
