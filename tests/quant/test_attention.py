import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpsearch.quant.attention import Attention, explicit


def _fused(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **settings).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def _agree(fused: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        wanted = fused(*args, **kwargs)
        got = explicit(copy.deepcopy(fused))(*args, **kwargs)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert (got[1] is None) == (wanted[1] is None)
    if wanted[1] is not None:
        torch.testing.assert_close(got[1], wanted[1], rtol=1e-4, atol=1e-5)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"kdim": 6, "vdim": 5},
    {"kdim": 6, "vdim": 5, "bias": False, "add_bias_kv": True, "add_zero_attn": True},
]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_agrees_with_the_fused_module(settings: dict[str, Any], weights: bool, first: bool) -> None:
    fused = _fused(batch_first=first, **settings)
    q, k, v = _inputs(fused, first=first)
    _agree(fused, q, k, v, need_weights=weights)
    _agree(fused, q, k, v, need_weights=weights, average_attn_weights=False)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("settings", SETTINGS[:4])
def test_agrees_under_masks(settings: dict[str, Any], weights: bool, first: bool) -> None:
    fused = _fused(batch_first=first, **settings)
    x = torch.randn(3, 3, 8)
    causal = nn.Transformer.generate_square_subsequent_mask(3)
    padding = torch.tensor([[False, False, False], [False, False, True], [False, True, True]])
    each = torch.randn(6, 3, 3)
    ask = {"need_weights": weights}
    _agree(fused, x, x, x, attn_mask=causal, **ask)
    _agree(fused, x, x, x, attn_mask=causal, is_causal=True, **ask)
    _agree(fused, x, x, x, attn_mask=causal < 0, **ask)
    _agree(fused, x, x, x, attn_mask=each, **ask)
    _agree(fused, x, x, x, key_padding_mask=padding, **ask)
    _agree(fused, x, x, x, key_padding_mask=padding, attn_mask=causal < 0, **ask)


@pytest.mark.parametrize("first", [False, True])
def test_agrees_on_one_sample_without_a_batch(first: bool) -> None:
    fused = _fused(batch_first=first)
    x, y = torch.randn(3, 8), torch.randn(5, 8)
    _agree(fused, x, x, x)
    _agree(fused, x, y, y, key_padding_mask=torch.tensor([False] * 4 + [True]))


def _inputs(fused: nn.MultiheadAttention, *, first: bool) -> list[Tensor]:
    shapes = [(3, 2, 8), (5, 2, fused.kdim), (5, 2, fused.vdim)]
    made = [torch.randn(shape) for shape in shapes]
    return [x.transpose(0, 1) for x in made] if first else made


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_calls_every_projection(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    new = explicit(copy.deepcopy(model))
    called: list[str] = []
    for name, module in new.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        wanted, got = (m(x, src_key_padding_mask=padding) for m in (model, new))
        torch.testing.assert_close(got[~padding], wanted[~padding])
        torch.testing.assert_close(new(x), model(x))
    names = ["self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"]
    assert called[:8] == [f"layers.{i}.{name}" for i in (0, 1) for name in names]


def test_no_fused_path_is_taken_without_hooks_either() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    new = explicit(copy.deepcopy(layer))
    attention = new.get_submodule("self_attn")
    assert isinstance(attention, Attention)
    attention.in_proj.weight.data.zero_()
    attention.in_proj.register_parameter("bias", None)
    x = torch.randn(1, 4, 8)
    assert not torch.allclose(new(x), layer(x))


def test_says_that_a_causal_hint_needs_its_mask() -> None:
    x = torch.randn(3, 2, 8)
    with pytest.raises(ValueError, match="give attn_mask"):
        explicit(_fused())(x, x, x, is_causal=True)
