"""Attention whose projections are modules that are called, so that they can be quantized.

``nn.MultiheadAttention`` reads the weights of its projections in one fused call; here each is an
``nn.Linear`` of its own: ``in_proj`` where queries, keys and values are packed, else ``q_proj``,
``k_proj`` and ``v_proj``; and ``out_proj``. The numbers that come out are the same.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def explicit(model: nn.Module) -> nn.Module:
    """The model with every ``nn.MultiheadAttention`` made explicit, in place: give it a copy."""
    if isinstance(model, nn.MultiheadAttention):
        return Attention(model)
    made: dict[nn.Module, Attention] = {}
    for module in list(model.modules()):
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # nested tensors exist on the fused path only
        for name, child in list(module._modules.items()):  # noqa: SLF001  (every name of a child)
            if isinstance(child, nn.MultiheadAttention):
                made[child] = made.get(child) or Attention(child)
                setattr(module, name, made[child])
    return model


class Attention(nn.Module):
    """Multi-head attention, called like ``nn.MultiheadAttention`` and equal to it."""

    # What nn.TransformerEncoderLayer asks its attention for; the second line keeps it from
    # reading our weights behind our back.
    batch_first: bool
    in_proj_bias: None = None
    _qkv_same_embed_dim = False

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        """Take over the parameters of the fused module."""
        super().__init__()
        self.embed_dim, self.num_heads = fused.embed_dim, fused.num_heads
        self.batch_first, self.dropout = fused.batch_first, fused.dropout
        self.add_zero_attn = fused.add_zero_attn
        self.bias_k, self.bias_v = fused.bias_k, fused.bias_v
        packed: nn.Parameter | None = fused.in_proj_weight
        self.packed = packed is not None
        if packed is not None:
            self.in_proj = _linear(packed, fused.in_proj_bias)
        else:
            bias: Tensor | None = fused.in_proj_bias
            biases = (None, None, None) if bias is None else bias.chunk(3)
            self.q_proj = _linear(fused.q_proj_weight, biases[0])
            self.k_proj = _linear(fused.k_proj_weight, biases[1])
            self.v_proj = _linear(fused.v_proj_weight, biases[2])
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)
        self.train(fused.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The attended values, and the attention weights where they are asked for."""
        batched = query.dim() == 3
        first = self.batch_first or not batched
        q, k, v = (_batched(x, first) for x in self._projected(query, key, value))
        k, v = self._extended(k, self.bias_k), self._extended(v, self.bias_v)
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says what attn_mask is, and there is none; give attn_mask")
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
            scores = scores if mask is None else scores + mask
            weights = F.dropout(scores.softmax(-1), dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            hinted = (
                is_causal and key_padding_mask is None
            )  # and then, as in torch, no mask is read
            mask = None if hinted else mask
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, hinted)
        out = out.transpose(1, 2).flatten(2)
        out = self.out_proj(out if first else out.transpose(0, 1))
        if batched:
            return out, weights
        return out[0], None if weights is None else weights[0]

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if not self.packed:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if query is key and key is value:
            return tuple(self.in_proj(query).chunk(3, -1))
        q = self.in_proj(query).chunk(3, -1)[0]
        of_key = self.in_proj(key).chunk(3, -1)
        of_value = of_key if key is value else self.in_proj(value).chunk(3, -1)
        return q, of_key[1], of_value[2]

    def _extended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values with the learned one and the one of zeros, where the module has them."""
        if bias is not None:
            x = torch.cat([x, bias.expand(len(x), 1, -1)], 1)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """What is added to the scores, to be spread over (batch, heads, queries, keys)."""
        found = None
        if mask is not None:
            found = self._whole(_additive(mask, q), k)
            heads = found.dim() == 3
            found = found.unflatten(0, (len(q), self.num_heads)) if heads else found
        if padding is not None:
            wide = padding if padding.dim() == 2 else padding[None]
            of_keys = self._whole(_additive(wide, q), k)[:, None, None]
            found = of_keys if found is None else found + of_keys
        return found

    @staticmethod
    def _whole(mask: Tensor, k: Tensor) -> Tensor:
        """A mask that lets the keys pass which were put in."""
        return F.pad(mask, (0, k.shape[1] - mask.shape[-1]))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = _parameter(weight)
    if bias is not None:
        module.bias = _parameter(bias)
    return module


def _parameter(values: Tensor) -> nn.Parameter:
    """The same parameter, or one of a part's own."""
    if isinstance(values, nn.Parameter):
        return values
    return nn.Parameter(values.detach().clone(), values.requires_grad)


def _batched(x: Tensor, first: bool) -> Tensor:
    wide = x if x.dim() == 3 else x[None]
    return wide if first else wide.transpose(0, 1)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Zero where a key may be seen, minus infinity where a boolean mask forbids it."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
