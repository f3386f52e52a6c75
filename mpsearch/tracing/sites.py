"""Where weights that an option can be given to are kept: which modules, under which names.

A site is one stored weight and the module that computes with it. `nn.MultiheadAttention` holds
several: its packed projections are sites named as if they were modules, ``attn.in_proj`` (or
``attn.q_proj`` and so on where they are stored apart) and ``attn.out_proj``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Linear, "linear"),
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.ConvTranspose1d, "conv_transpose1d"),
    (nn.ConvTranspose2d, "conv_transpose2d"),
    (nn.ConvTranspose3d, "conv_transpose3d"),
    (nn.Embedding, "embedding"),
)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION = {  # site -> attribute
    "in_proj": "in_proj_weight",
    "q_proj": "q_proj_weight",
    "k_proj": "k_proj_weight",
    "v_proj": "v_proj_weight",
}


@dataclass(frozen=True, eq=False)
class Site:
    """One stored weight.

    Attributes:
        name: The member's name in a layer.
        kind: The operator, as in ``Layer.kind``.
        module: What has to be called for the weight to be used.
        weight: The parameter, or ``None`` where the module computes its weight from others.
    """

    name: str
    kind: str
    module: nn.Module
    weight: nn.Parameter | None


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Every site of the model, in the order of its modules."""
    found: list[Site] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found += _of_attention(name, module)
            inside.add(module.out_proj)
        elif module not in inside and (kind := kind_of(module)):
            found.append(Site(name, kind, module, _own(module, "weight")))
    return tuple(found)


def _of_attention(name: str, module: nn.MultiheadAttention) -> Iterator[Site]:
    prefix = f"{name}." if name else ""
    for site, attribute in _ATTENTION.items():
        if (weight := _own(module, attribute)) is not None:
            yield Site(prefix + site, "linear", module, weight)
    yield Site(prefix + "out_proj", "linear", module, _own(module.out_proj, "weight"))


def _own(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter, unless a parametrization computes it."""
    return module._parameters.get(name)  # noqa: SLF001  (an attribute may be computed)


def kind_of(module: nn.Module) -> str | None:
    """The kind of layer a module is, subclasses included; ``None`` where it is none."""
    if is_conv1d_of_transformers(module):
        return "linear"
    return next((kind for cls, kind in _KINDS if isinstance(module, cls)), None)


def is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Whether it is Hugging Face's ``Conv1D``: a linear layer stored (inputs, outputs)."""
    weight = _own(module, "weight")
    return (
        any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)
        and weight is not None
        and weight.dim() == 2
        and getattr(module, "nf", None) == weight.shape[1]
    )


def module_weight(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter that a layer's member of this name stores its weight in.

    Raises:
        KeyError: The model has no such member, or one that computes its weight.
    """
    owner, _, leaf = name.rpartition(".")
    try:
        parent = model.get_submodule(owner)
        packed = isinstance(parent, nn.MultiheadAttention) and leaf in _ATTENTION
        found = (
            _own(parent, _ATTENTION[leaf]) if packed else _own(model.get_submodule(name), "weight")
        )
    except AttributeError:
        found = None
    if found is None:
        raise KeyError(
            f"the model keeps no weight named {name!r}; wanted the name of a module with a weight,"
            " or of a projection of nn.MultiheadAttention such as 'attn.in_proj': use the names"
            " mpsearch.trace gives"
        )
    return found


def output_first(weight: Tensor, module: nn.Module) -> Tensor:
    """(out, in / groups, *kernel): a module's weight with its output channels first.

    It is its own inverse: given that, it returns the weight as the module stores it. A view,
    except for grouped transposed convolutions.
    """
    if isinstance(module, _TRANSPOSED):
        groups = module.groups
        apart = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return apart.transpose(1, 2).flatten(0, 1)
    return weight.t() if is_conv1d_of_transformers(module) else weight
