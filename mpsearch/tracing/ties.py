"""Which layers must share an option: what serving stacks fuse, and what an integer sum needs.

A transition convolution and its shortcut share one input and meet in a sum, so hardware that adds
integers gives both one format (HAWQ-V3, Yao et al. 2021).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mpsearch.network import Tie
from mpsearch.tracing.origins import Origin, Token
from mpsearch.tracing.sites import Site

_QKV = re.compile(
    r"(?:to_|w_?|linear_|lin_)?(?P<part>q|k|v|query|key|value)(?:_?proj|_lin|_linear)?"
)
_GATED = ({"gate_proj", "up_proj"}, {"gate", "up"}, {"w1", "w3"}, {"wi_0", "wi_1"})


@dataclass(frozen=True)
class Group:
    """Sites to make one layer, by name, and why."""

    members: tuple[str, ...]
    reason: str


Reads = Mapping[str, frozenset[Token]]
"""What each site was seen to read."""


def shared(sites: Sequence[Site]) -> Iterator[Group]:
    """Sites that keep one and the same parameter."""
    for same in _grouped((site.weight, site.name) for site in sites if site.weight is not None):
        yield Group(same, "they share one weight")


def fused(sites: Sequence[Site], reads: Reads) -> Iterator[Group]:
    """Query, key and value, and gate and up, where they read one tensor."""
    linear = [site.name for site in sites if site.kind == "linear" or _is_conv(site)]
    beside = [(name.rpartition(".")[0], name, name.rpartition(".")[2].lower()) for name in linear]
    for same in _grouped(
        ((parent, token), name)
        for parent, name, leaf in beside
        if _QKV.fullmatch(leaf)
        for token in reads.get(name, ())
    ):
        yield Group(same, "serving stacks fuse query, key and value, which read one tensor")
    for pair in _GATED:
        for same in _grouped(
            ((parent, token), name)
            for parent, name, leaf in beside
            if leaf in pair
            for token in reads.get(name, ())
        ):
            yield Group(same, "serving stacks fuse gate and up, which read one tensor")


def transitions(
    sites: Sequence[Site], reads: Reads, sums: Iterable[tuple[Origin, Origin]]
) -> Iterator[Group]:
    """A convolution on one side of a sum and the shortcut on the other that reads its tensor."""
    convolutions = {site.name for site in sites if _is_conv(site)}
    for one, other in dict.fromkeys(sums):
        for near, far in ((one, other), (other, one)):
            for shortcut in sorted(near.sources & convolutions):
                for name in sorted((far.branch | far.sources) & convolutions - near.branch):
                    if reads[name] & reads[shortcut]:
                        yield Group((name, shortcut), _TRANSITION)


_TRANSITION = "a transition convolution and its shortcut read one tensor and meet in a sum"


def readers(reads: Reads) -> Iterator[Group]:
    """Sites that read one and the same tensor."""
    for same in _grouped((token, name) for name, tokens in reads.items() for token in tokens):
        yield Group(same, "they read one tensor")


def residuals(sites: Sequence[Site], sums: Iterable[tuple[Origin, Origin]]) -> Iterator[Group]:
    """Convolutions whose outputs meet in a sum."""
    convolutions = {site.name for site in sites if _is_conv(site)}
    for one, other in dict.fromkeys(sums):
        met = tuple(sorted((one.sources | other.sources) & convolutions))
        if len(met) > 1:
            yield Group(met, "their outputs meet in residual additions")


def merged(groups: Iterable[Group], order: Sequence[str]) -> tuple[Tie, ...]:
    """The groups with those that overlap made one, members and ties in the order given.

    What is not in ``order`` (a skipped module) still ties others, and then is left out.
    """
    found: list[tuple[set[str], list[str]]] = []
    for group in groups:
        members, reasons = set(group.members), [group.reason]
        apart = [tie for tie in found if tie[0].isdisjoint(members)]
        for tie in found:
            if tie not in apart:
                members |= tie[0]
                reasons = tie[1] + reasons
        found = [*apart, (members, reasons)]
    ties = [
        Tie(tuple(name for name in order if name in members), "; ".join(dict.fromkeys(reasons)))
        for members, reasons in found
        if len(members.intersection(order)) > 1
    ]
    return tuple(sorted(ties, key=lambda tie: order.index(tie.members[0])))


def _grouped(pairs: Iterable[tuple[object, str]]) -> Iterator[tuple[str, ...]]:
    """Names that come with equal keys, where there are several."""
    found: dict[object, dict[str, None]] = {}
    for key, name in pairs:
        found.setdefault(key, {})[name] = None
    return (tuple(names) for names in found.values() if len(names) > 1)


def _is_conv(site: Site) -> bool:
    return site.kind.startswith("conv")
