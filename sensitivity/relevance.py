"""Layer-wise relevance propagation through any forward that autograd can follow.

What an output says is handed back, operation by operation, in shares that add up to what came in:
so that a model's answer is divided among its inputs, and on the way among its layers (Bach et al.
2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions"; for transformers Chefer, Gur
and Wolf 2021, arXiv 2012.09838). Here relevance takes the place of the gradient in a backward pass:

- what only moves or picks values (views, slices, concatenation, max pooling) keeps its gradient,
  which hands each value on to where it came from; a tensor that is read twice gets both;
- functions of one tensor in its own shape (activations, norms, softmax, scaling) hand it through;
- layers divide it by a :class:`Rule`, biases getting none;
- sums and products of several tensors (skips, attention, gates) and averages divide it by
  :data:`Split`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mpsearch.sensitivity.rules import Rule

Split = Literal["ratio", "signed"]
"""How operands share relevance R, with z what the operation makes of them.

``ratio``: as if all were positive: a sum's operand a gets ``|a| / (|a| + |b|)`` of it. ``signed``:
``a / (a + b)``, then scaled so that operands get shares in proportion to their sums, which add up
to R (Chefer et al., equations 7 to 10).
"""

_MOVES = frozenset(
    """
    __get__ __getitem__ __setitem__ adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax
    amin as_strided bfloat16 broadcast_to cat channel_shuffle chunk clone concat concatenate
    contiguous copy_ cpu diagonal double dsplit dstack expand expand_as flatten flip float gather
    half hsplit hstack index_select masked_fill masked_select max max_pool1d max_pool1d_with_indices
    max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum min minimum
    moveaxis movedim narrow pad permute pixel_shuffle pixel_unshuffle repeat repeat_interleave
    requires_grad_ reshape reshape_as roll select sort split split_with_sizes squeeze stack swapaxes
    swapdims t take_along_dim tensor_split tile to topk transpose tril triu type type_as unbind
    unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as vsplit vstack where
    """.split()
)
_SPLITTABLE = {"sub": torch.add, "__sub__": torch.add, "subtract": torch.add, "__isub__": torch.add}
_FORWARD = ("input", "weight", "bias")
_TRANSPOSED = "stride padding output_padding groups dilation"
_LINEAR: dict[Any, tuple[str, ...]] = {
    F.linear: _FORWARD,
    torch.addmm: ("bias", "input", "weight"),
    **dict.fromkeys([F.conv1d, F.conv2d, F.conv3d], _FORWARD),
    **dict.fromkeys([F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d], _FORWARD),
}


class Relevance(TorchFunctionMode):
    """While it is entered, makes forwards whose backward pass hands back relevance.

    Attributes:
        arrived: For each weight what arrived, in the backward pass, at each use of it.
    """

    def __init__(self, rule: Rule, split: Split, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.split: Split = split
        self.arrived: tuple[list[Tensor], ...] = tuple([] for _ in weights)
        self._places = {id(w): place for w, place in zip(weights, self.arrived, strict=True)}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, with the backward pass of its rule."""
        return self._run(func, list(args), dict(kwargs or {}))

    def _run(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if func is F.embedding:
            return self._looked_up(func, args, kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        data = _data([*args, *kwargs.values()])
        if not data or name in _MOVES:
            return func(*args, **kwargs)
        if func in _LINEAR:
            given = dict(zip(_LINEAR[func], args, strict=False)) | kwargs
            if [id(x) for x in data] == [id(given["input"])]:
                return self._layer(func, given, args[3:])
        return self._several(func, args, kwargs, data)

    def _looked_up(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
        """What comes out of a table of embeddings: there relevance ends."""
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        out: Tensor = func(*args, **kwargs).detach().requires_grad_()
        place = self._places.get(id(weight))
        if place is not None:
            out.register_hook(place.append)
        return out

    def _layer(self, func: Any, given: dict[str, Any], rest: Sequence[Any]) -> Tensor:
        plain = func in (F.conv1d, F.conv2d, F.conv3d)
        names = "stride padding dilation groups" if plain else _TRANSPOSED
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        further = dict(zip(names.split(), rest, strict=False)) | given

        def product(read: Tensor, by: Tensor) -> Tensor:
            made: Tensor = read @ by if func is torch.addmm else func(read, by, **further)
            return made

        kept = x.detach().clone()
        place = self._places.get(id(weight))

        def compute() -> Tensor:
            if func is torch.addmm:
                made: Tensor = func(bias, kept, weight, **further)
                return made
            return func(kept, weight, bias, **further)  # type: ignore[no-any-return]

        def back(relevance: Tensor) -> tuple[Tensor, ...]:
            if place is not None:
                place.append(relevance)
            return (self.rule.divided(relevance, kept, weight, product),)

        return _step(compute, back, [x])

    def _several(
        self, func: Any, args: list[Any], kwargs: dict[str, Any], data: list[Tensor]
    ) -> Any:
        """A function of its own shape hands relevance through; operands of others share it."""
        kept = [x.detach().clone() for x in data]
        with torch.no_grad():
            plain = _replaced(args, kwargs, data, [x.detach() for x in data])
            out = func(*plain[0], **plain[1])
        if not isinstance(out, Tensor) or not out.is_floating_point():
            if _floating(out):
                raise ValueError(
                    f"operation {func.__name__!r} has no rule that hands relevance back through it;"
                    " use 'kl', which needs none"
                )
            return out
        if len(data) == 1 and out.shape == data[0].shape:
            return _step(lambda: out, lambda relevance: (relevance,), data)

        def again(*operands: Tensor) -> Tensor:
            name = getattr(func, "__name__", "")
            given, named = _replaced(args, kwargs, data, operands)
            if self.split == "ratio" and name in _SPLITTABLE:
                return _SPLITTABLE[name](*given[:2])
            made: Tensor = func(*given, **named)
            return made

        return _step(lambda: out, lambda r: divided(r, kept, again, self.split), data)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention written out: products of queries and keys, and of weights and values."""
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores: Tensor = self._run(torch.matmul, [query, key.transpose(-2, -1)], {})
        scores = self._run(torch.mul, [scores, factor], {})
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril().to(scores.device)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = self._run(torch.add, [scores, attn_mask], {})
        shares: Tensor = self._run(torch.softmax, [scores], {"dim": -1})
        out: Tensor = self._run(torch.matmul, [shares, value], {})
        return out


def divided(
    relevance: Tensor, operands: Sequence[Tensor], func: Callable[..., Tensor], split: Split
) -> tuple[Tensor, ...]:
    """The operands' shares of what arrived at ``func`` of them, by their parts in it."""
    with torch.enable_grad():
        reads = [(x.abs() if split == "ratio" else x.clone()).requires_grad_() for x in operands]
        out = func(*[x.clone() for x in reads])  # it may be in place
        parts = torch.autograd.grad(out, reads, _over(relevance, out.detach()))
    shares = [x.detach() * part for x, part in zip(reads, parts, strict=True)]
    alone = any(len(x) != len(relevance) for x in shares) or relevance.dim() == 0
    sums = [x.sum() if alone else x.flatten(1).sum(1) if x.dim() > 1 else x for x in shares]
    total = relevance.sum() if alone else relevance.reshape(len(relevance), -1).sum(1)
    whole = torch.stack([one.abs() for one in sums]).sum(0)
    factors = [_over(total * one.abs(), whole) / _nonzero(one) for one in sums]
    return tuple(
        x * (f if alone else f.reshape(-1, *[1] * (x.dim() - 1)))
        for x, f in zip(shares, factors, strict=True)
    )


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)


def _over(x: Tensor, y: Tensor) -> Tensor:
    """``x / y``, zero where y is."""
    return torch.where(y == 0, 0.0, x / _nonzero(y))


class _Step(torch.autograd.Function):
    """An operation whose backward pass is given."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Tensor], back: Callable[[Tensor], Any], *_: Tensor
    ) -> Tensor:
        ctx.back = back
        return compute()

    @staticmethod
    def backward(ctx: Any, *relevance: Any) -> Any:
        return (None, None, *ctx.back(*relevance))


def _step(
    compute: Callable[[], Tensor], back: Callable[[Tensor], Any], data: Sequence[Tensor]
) -> Tensor:
    out: Tensor = _Step.apply(compute, back, *data)  # type: ignore[no-untyped-call]
    return out


def _data(values: Sequence[Any]) -> list[Tensor]:
    """The tensors that depend on the example, each once."""
    found: dict[int, Tensor] = {}
    for value in values:
        if isinstance(value, tuple | list):
            found |= {id(x): x for x in _data(value)}
        elif isinstance(value, Tensor) and value.requires_grad:
            found[id(value)] = value
    return list(found.values())


def _floating(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_floating, value))
    return isinstance(value, Tensor) and value.is_floating_point()


def _replaced(
    args: Sequence[Any], kwargs: Mapping[str, Any], old: Sequence[Tensor], new: Sequence[Tensor]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with some tensors in place of others."""
    by = {id(x): y for x, y in zip(old, new, strict=True)}
    return [_swapped(a, by) for a in args], {key: _swapped(v, by) for key, v in kwargs.items()}


def _swapped(value: Any, by: Mapping[int, Tensor]) -> Any:
    # Not a function inside another: one that calls itself is a cycle, which keeps tensors alive.
    if isinstance(value, tuple | list):
        return type(value)(_swapped(each, by) for each in value)
    return by.get(id(value), value)
