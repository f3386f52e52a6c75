"""What estimators share: the weights each layer stores, and their errors once rounded."""

from dataclasses import dataclass

from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.network import Network
from mpsearch.quant.encoding import encode
from mpsearch.quant.recipe import Recipe
from mpsearch.tracing import module_weight, output_first, sites


@dataclass(frozen=True, eq=False)
class Stored:
    """One weight and the module that computes with it."""

    name: str
    module: nn.Module
    weight: nn.Parameter


def stored(model: nn.Module, network: Network) -> tuple[tuple[Stored, ...], ...]:
    """For each layer the weights its members store, each once.

    Raises:
        KeyError: The model has no such member: the network is that of another model.
    """
    modules = {site.name: site.module for site in sites(model)}
    layers = []
    for layer in network.layers:
        distinct: dict[nn.Parameter, Stored] = {}
        for name in layer.modules:
            weight = module_weight(model, name)
            distinct.setdefault(weight, Stored(name, modules[name], weight))
        layers.append(tuple(distinct.values()))
    return tuple(layers)


def squared_error(one: Stored, option: Option, recipe: Recipe) -> float:
    """``||Q(W) - W||^2`` of a weight at an option; see :func:`rounded`."""
    first = output_first(one.weight.detach(), one.module)
    return float((rounded(one, option, recipe).double() - first.double()).square().sum())


def rounded(one: Stored, option: Option, recipe: Recipe) -> Tensor:
    """The weight, outputs first, rounded to nearest in the recipe's ranges; in float32.

    That is what scores of weights are of, whatever rounding the recipe names.

    Raises:
        ValueError: A format that is not supported, a method, or a weight that is not finite.
    """
    check_nearest(option)
    try:
        return encode(
            output_first(one.weight.detach(), one.module), option.weight, recipe.ranges
        ).dequantize()
    except ValueError as error:
        raise ValueError(f"layer {one.name!r}: {error}") from None


def check_nearest(option: Option) -> None:
    """``ValueError`` where an option names a method that scores of weights cannot see."""
    if option.method not in (None, "nearest"):
        raise ValueError(
            f"option {str(option)!r} names method {option.method!r}, and this score is of weights"
            " rounded to nearest; leave it out, or use 'kl', which runs the method"
        )
