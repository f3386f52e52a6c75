"""A layer's place in a type template: what vendors give one format to is told by name and shape."""

import re
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from mpsearch.tracing.sites import Site

_ATTENTION = re.compile(
    r"(?:to_|w_?|linear_|lin_|in_|c_)?"
    r"(?:q|k|v|qk|kv|qkv|query|key|value|query_key_value|attn|attention)"
    r"(?:_?proj|_lin|_linear|_a_proj|_b_proj)?|(?:in|out|o)_proj|o|to_out"
)
_WITHIN = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(
    r"fc_?\d|c_fc|w[123]|wi(?:_[01])?|wo|(?:gate|up|down)(?:_up)?_proj|lin(?:ear)?_?[12]"
    r"|dense_h_to_4h|dense_4h_to_h|intermediate|mlp|ffn|feed_?forward"
)


def roles(
    model: nn.Module, sites: Sequence[Site], first: str | None, last: str | None
) -> Mapping[str, str]:
    """Each site's role; ``first`` reads the example, ``last`` was the last to run."""
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    found = {site.name: _own(site, classes) for site in sites}
    blocks = {
        block for name, role in found.items() if role == "attention" for block in _blocks(name)
    }
    for name, role in found.items():
        if role == "linear" and not blocks.isdisjoint(_blocks(name)):
            found[name] = "mlp"
    return (
        found
        | {name: "last" for name in (last,) if name}
        | ({name: "first" for name in (first,) if name})
    )


def _own(site: Site, classes: Mapping[str, str]) -> str:
    *above, leaf = site.name.lower().split(".")
    if site.kind == "embedding":
        return "embedding"
    if _ATTENTION.fullmatch(leaf):
        return "attention"
    if site.kind != "linear":
        return _convolution(site.module)
    if any(_WITHIN.search(name) for name in _above(site.name, classes)):
        return "attention"
    return "mlp" if any(_MLP.fullmatch(part) for part in (*above, leaf)) else "linear"


def _above(name: str, classes: Mapping[str, str]) -> list[str]:
    """Names and classes of the modules that hold this one, the whole model left out."""
    parts = name.split(".")[:-1]
    held = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return parts + [classes.get(path, "") for path in held]


def _blocks(name: str) -> Collection[str]:
    """The numbered modules that hold it: the blocks of a transformer."""
    parts = name.split(".")[:-1]
    return {".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdigit()}


def _convolution(module: nn.Module) -> str:
    groups, inputs = getattr(module, "groups", 1), getattr(module, "in_channels", 0)
    if groups == inputs > 1:
        return "depthwise"
    return "pointwise" if set(getattr(module, "kernel_size", ())) == {1} else "conv"
