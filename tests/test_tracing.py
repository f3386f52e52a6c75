import json
import math
import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.network import Network, Window
from mpsearch.tracing import (
    check_deterministic,
    curved,
    module_weight,
    output_first,
    piecewise_linear,
)
from tests.conftest import SHARED, require

DEFINITIONS = SHARED / "models/definitions"


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(0))


def counts_every_parameter_once(network: Network, model: nn.Module) -> bool:
    fixed = sum(one.elements for one in network.fixed)
    return network.params + fixed == sum(p.numel() for p in model.parameters())


class Residual(nn.Module):
    """A stem, a block with a transition, a plain block, and a head."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.short = nn.Conv2d(4, 8, 1, stride=2)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=self.inplace)
        y = self.conv2(F.relu(self.conv1(x), inplace=self.inplace))
        if self.inplace:
            y += self.short(x)
        else:
            y = y + self.short(x)
        x = F.relu(y, inplace=self.inplace)
        x = x + F.relu(self.bn(self.conv3(x)), inplace=self.inplace)
        return torch.as_tensor(self.head(x.mean((2, 3))))


class Attention(nn.Module):
    """Separate projections, as in a Llama block; values are half as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.k_proj = nn.Linear(8, 8, bias=False)
        self.v_proj = nn.Linear(8, 4)
        self.o_proj = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return torch.as_tensor(self.o_proj((q @ k.mT).softmax(-1) @ v))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = Attention(), nn.LayerNorm(8)
        self.gate_proj, self.up_proj = nn.Linear(8, 12), nn.Linear(8, 12)
        self.down_proj = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + torch.as_tensor(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Language(nn.Module):
    """A language model whose head keeps the embedding's table."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.layers = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, 32, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.layers(self.embed(input_ids))))


class Called(nn.Module):
    """A model written as one function of its parts."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def test_a_residual_network_comes_out_as_written_by_hand() -> None:
    network = mp.trace(Residual(), image(2, 3, 6, 6))
    assert [layer.name for layer in network.layers] == ["stem", "conv1", "conv2", "conv3", "head"]
    assert set(network.edges) == {
        ("stem", "conv1"),
        ("conv1", "conv2"),
        ("conv1", "conv3"),  # the shortcut's output
        ("conv2", "conv3"),
        ("conv1", "head"),
        ("conv2", "head"),
        ("conv3", "head"),
    }
    assert network["short"].members == ("conv1", "short")
    assert network["short"].shapes == ((8, 4, 3, 3), (8, 4, 1, 1))
    assert [layer.macs for layer in network.layers] == [3888, 2592 + 288, 5184, 5184, 40]
    assert network.layers[1].window == Window(
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        dilation=(1, 1),
        groups=1,
        image=(6, 6),
        output=(3, 3),
    )
    assert network.layers[4].window is None
    assert [layer.inputs for layer in network.layers] == [108, 144, 72, 72, 8]
    assert [layer.outputs for layer in network.layers] == [144, 72 + 72, 72, 72, 5]
    assert [layer.role for layer in network.layers] == ["first", "conv", "conv", "conv", "last"]
    assert not network.notes
    assert piecewise_linear(network)


def test_operations_in_place_change_nothing() -> None:
    plain, inplace = (mp.trace(Residual(inplace=b), image(2, 3, 6, 6)) for b in (False, True))
    assert plain.layers == inplace.layers
    assert plain.edges == inplace.edges
    assert plain.ties == inplace.ties


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_counts_are_of_one_sample(batch: int) -> None:
    assert mp.trace(Residual(), image(batch, 3, 6, 6)).layers == (
        mp.trace(Residual(), image(3, 3, 6, 6)).layers
    )


def test_the_graph_carries_the_layers() -> None:
    graph = mp.trace(Residual(), image(1, 3, 6, 6)).graph
    assert graph.nodes["conv2"]["layer"].kind == "conv2d"
    assert list(graph.successors("conv2")) == ["conv3", "head"]


def test_query_key_value_and_gate_up_are_one_layer_each() -> None:
    network = mp.trace(Language(), tokens(2, 6))
    first = [layer for layer in network.layers if layer.name.startswith("layers.0")]
    assert [layer.members for layer in first] == [
        tuple(f"layers.0.attn.{part}_proj" for part in "qkv"),
        ("layers.0.attn.o_proj",),
        ("layers.0.gate_proj", "layers.0.up_proj"),
        ("layers.0.down_proj",),
    ]
    assert [layer.role for layer in first] == ["attention", "attention", "mlp", "mlp"]
    assert first[0].shapes == ((8, 8), (8, 8), (4, 8))
    assert (first[0].macs, first[0].inputs, first[0].outputs) == (6 * 160, 48, 6 * 20)
    assert "fuse query, key and value" in network.ties[0].reason
    assert ("layers.0.gate_proj", "layers.0.down_proj") in network.edges
    assert not piecewise_linear(network)


def test_a_tied_head_and_table_are_one_layer_and_make_no_cycle() -> None:
    import networkx

    model = Language()
    network = mp.trace(model, tokens(2, 6))
    head = network["embed"]
    assert (head.name, head.kind, head.role) == ("head", "linear", "last")
    assert head.members == ("head", "embed")
    assert (head.params, head.shapes, head.macs) == (256, ((32, 8),), 6 * 256)
    assert network.layers[-1] is head
    assert networkx.is_directed_acyclic_graph(network.graph)
    assert counts_every_parameter_once(network, model)


def test_an_embedding_of_its_own_is_fixed_cost() -> None:
    model = Language(tied=False)
    network = mp.trace(model, {"input_ids": tokens(2, 6)})
    assert {f.name: (f.elements, f.bytes) for f in network.fixed}["embed.weight"] == (256, 1024)
    assert network["head"].members == ("head",)
    assert "first" not in {layer.role for layer in network.layers}  # none reads the example
    assert counts_every_parameter_once(network, model)


def test_one_weight_in_two_modules_is_stored_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    network = mp.trace(model, image(3, 4))
    assert network.layers[0].members == ("0", "2")
    assert (network.layers[0].params, network.layers[0].macs) == (16, 32)
    assert network.ties[0].reason == "they share one weight"
    assert network.edges == (("0", "3"),)
    assert counts_every_parameter_once(network, model)


def test_cross_attention_ties_keys_and_values_only() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        memory = m.enc(x)
        q, k, v = m.q(x), m.k(memory), m.v(memory)
        return torch.as_tensor((q @ k.mT).softmax(-1) @ v)

    parts = {name: nn.Linear(4, 4) for name in ("enc", "q", "k", "v")}
    network = mp.trace(Called(forward, **parts), image(2, 3, 4))
    assert [tie.members for tie in network.ties] == [("k", "v")]


def test_projections_that_read_copies_of_one_tensor_are_tied() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)  # not contiguous: each projection makes its own copy
        return torch.as_tensor(m.q(x) + m.k(x) + m.v(x))

    parts = {name: nn.Linear(4, 4) for name in "qkv"}
    assert mp.trace(Called(forward, **parts), image(2, 4, 3)).ties[0].members == ("q", "k", "v")


def test_a_tensor_rewritten_in_place_is_another_tensor() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        q = m.q(x)
        x.relu_()
        return torch.as_tensor(q + m.k(x) + m.v(x))

    parts = {name: nn.Linear(4, 4) for name in ("stem", "q", "k", "v")}
    assert mp.trace(Called(forward, **parts), image(2, 4)).ties[0].members == ("k", "v")


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_shows_its_packed_projections(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, dropout=0.1)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    network = mp.trace(model, image(2, 5, 16) if batch_first else image(5, 2, 16))
    names = [layer.name for layer in network.layers]
    leaves = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    assert names == [f"layers.{i}.{leaf}" for i in (0, 1) for leaf in leaves]
    assert network["layers.0.self_attn.in_proj"].shapes == ((48, 16),)
    assert network["layers.1.self_attn.in_proj"].role == "attention"
    assert network["layers.1.linear1"].role == "mlp"
    if batch_first:
        assert network.macs == 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32)
    assert counts_every_parameter_once(network, model)
    assert not network.notes
    assert torch.backends.mha.get_fastpath_enabled()


def test_multihead_attention_over_another_tensor_has_three_projections() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        memory = m.enc(x)
        return m.attn(x, memory, memory)[0]

    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
    model = Called(forward, enc=nn.Linear(8, 6), attn=attention)
    network = mp.trace(model, image(2, 5, 8))
    assert [layer.members for layer in network.layers] == [
        ("enc",),
        ("attn.q_proj",),
        ("attn.k_proj", "attn.v_proj"),
        ("attn.out_proj",),
    ]
    assert network["attn.k_proj"].shapes == ((8, 6), (8, 6))
    assert counts_every_parameter_once(network, model)


def test_packed_projections_over_another_tensor_are_one_layer() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        memory = m.enc(x)
        return m.attn(x, memory, memory)[0]

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    network = mp.trace(Called(forward, enc=nn.Linear(8, 8), attn=attention), image(2, 5, 8))
    layer = network["attn.in_proj"]
    assert (layer.macs, layer.inputs, layer.outputs) == (5 * 192, 80, 120)


def test_conv1d_of_transformers_is_linear_and_stored_the_other_way_round() -> None:
    class Conv1D(nn.Module):
        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf = nf
            self.weight, self.bias = nn.Parameter(torch.zeros(nx, nf)), nn.Parameter(torch.ones(nf))

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.addmm(self.bias, x.flatten(0, -2), self.weight)
            return rows.view(*x.shape[:-1], self.nf)

    network = mp.trace(nn.Sequential(Conv1D(6, 4)), image(2, 3, 4))
    assert (network.layers[0].kind, network.layers[0].shapes) == ("linear", ((6, 4),))
    assert network.layers[0].macs == 3 * 24


def test_a_subclass_with_its_own_forward_is_the_layer_it_derives_from() -> None:
    class Same(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return torch.as_tensor(F.relu6(super().forward(F.pad(input, (0, 1, 0, 1)))))

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return torch.as_tensor(m.conv(x) + m.short(x))

    parts = {name: Same(c, 4, 3, 2) for name, c in (("stem", 3), ("conv", 4), ("short", 4))}
    network = mp.trace(Called(forward, **parts), image(1, 3, 8, 8))
    assert network["stem"].inputs == 3 * 64  # what it is called on, not what it pads
    assert network["conv"].members == ("conv", "short")


CONVOLUTIONS = {
    "conv1d": (nn.Conv1d, 1),
    "conv2d": (nn.Conv2d, 2),
    "conv3d": (nn.Conv3d, 3),
    "conv_transpose1d": (nn.ConvTranspose1d, 1),
    "conv_transpose2d": (nn.ConvTranspose2d, 2),
    "conv_transpose3d": (nn.ConvTranspose3d, 3),
}


@given(
    kind=st.sampled_from(sorted(CONVOLUTIONS)),
    groups=st.integers(1, 3),
    ins=st.integers(1, 3),
    outs=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 3),
)
def test_a_convolution_of_ones_sums_to_its_macs(
    kind: str,
    groups: int,
    ins: int,
    outs: int,
    kernel: int,
    stride: int,
    dilation: int,
    batch: int,
) -> None:
    make, axes = CONVOLUTIONS[kind]
    layer: Any = make(
        ins * groups,
        outs * groups,
        kernel,
        stride=stride,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    nn.init.ones_(layer.weight)
    ones = torch.ones(batch, ins * groups, *[5] * axes)
    network = mp.trace(nn.Sequential(layer), ones)
    assert network.macs * batch == layer(ones).sum().item()
    assert network.layers[0].kind == kind
    assert network.layers[0].shapes == ((outs * groups, ins, *[kernel] * axes),)
    assert network.layers[0].inputs == ones[0].numel()
    assert network.layers[0].outputs == layer(ones)[0].numel()


@given(rows=st.lists(st.integers(1, 3), max_size=2), ins=st.integers(1, 4), outs=st.integers(1, 4))
def test_a_linear_layer_counts_the_rows_of_all_axes(rows: list[int], ins: int, outs: int) -> None:
    network = mp.trace(nn.Sequential(nn.Linear(ins, outs)), image(2, *rows, ins))
    assert network.macs == math.prod(rows) * ins * outs


@given(groups=st.integers(1, 3), ins=st.integers(1, 3), outs=st.integers(1, 3))
def test_output_first_is_its_own_inverse_and_finds_the_outputs(
    groups: int, ins: int, outs: int
) -> None:
    layer = nn.ConvTranspose2d(ins * groups, outs * groups, 2, groups=groups, bias=False)
    weight = layer.weight.detach()
    turned = output_first(weight, layer)
    assert torch.equal(output_first(turned, layer), weight)
    for channel in range(outs * groups):  # the k-th output depends on the k-th row alone
        row = torch.zeros_like(turned)
        row[channel] = 1
        with torch.no_grad():
            layer.weight.copy_(output_first(row, layer))
        seen = layer(torch.ones(1, ins * groups, 1, 1)).detach().abs().sum((0, 2, 3)).nonzero()
        assert seen.flatten().tolist() == [channel]


def test_the_first_layer_is_the_first_that_reads_the_example_itself() -> None:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.time = nn.Embedding(9, 4), nn.Linear(4, 3)
            self.conv, self.out = nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.as_tensor(self.out(self.conv(x + self.time(self.steps(t))[..., None])))

    network = mp.trace(Denoiser(), {"x": image(2, 3, 5), "t": torch.tensor([1, 2])})
    assert [(layer.name, layer.role) for layer in network.layers] == [
        ("time", "linear"),
        ("conv", "first"),
        ("out", "last"),
    ]


def test_a_feature_pyramid_is_no_transition() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        low = m.stem(x)
        high = low + m.b(m.a(low))  # a residual block, whose last sum is not the pyramid's
        return torch.as_tensor(m.lateral(low) + m.top(high))

    parts = {name: nn.Conv2d(3, 3, 1) for name in ("stem", "a", "b", "lateral", "top")}
    assert not mp.trace(Called(forward, **parts), image(1, 3, 4, 4)).ties


def test_linear_layers_beside_attention_in_a_block_are_its_mlp() -> None:
    def mixer(m: Any, x: Tensor) -> Any:
        return m.self_attention(x, x, x)

    blocks = nn.ModuleList(
        nn.ModuleDict(
            {
                "mixer": Called(mixer, self_attention=nn.MultiheadAttention(4, 1)),
                "dense": nn.Linear(4, 4),
            }
        )
        for _ in range(2)
    )

    def run(m: Any, x: Tensor) -> Tensor:
        for block in m.blocks:
            x = block["dense"](block["mixer"](x)[0])
        return torch.as_tensor(m.pool(m.dense(x)))

    model = Called(run, blocks=blocks, dense=nn.Linear(4, 4), pool=nn.Linear(4, 4))
    network = mp.trace(model, image(2, 3, 4))
    assert network["blocks.1.dense"].role == "mlp"
    assert network["dense"].role == "linear"


def test_depthwise_and_pointwise_convolutions_are_told_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 2)
    )
    roles = [layer.role for layer in mp.trace(model, image(1, 3, 8, 8)).layers]
    assert roles == ["first", "depthwise", "pointwise", "last"]


def test_layers_that_read_one_tensor_are_tied_on_request() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return torch.cat([m.a(x), m.b(x), m.c(x.relu())], 1)

    model = Called(forward, **{name: nn.Conv1d(3, 3, 1) for name in ("stem", "a", "b", "c")})
    assert not mp.trace(model, image(1, 3, 5)).ties
    network = mp.trace(model, image(1, 3, 5), tie_inputs=True)
    assert [(tie.members, tie.reason) for tie in network.ties] == [
        (("a", "b"), "they read one tensor")
    ]


def test_convolutions_that_meet_in_residual_additions_are_tied_on_request() -> None:
    network = mp.trace(Residual(), image(1, 3, 6, 6), tie_residuals=True)
    members = network["conv3"].members
    assert members == ("conv1", "conv2", "short", "conv3")  # conv1 by its shortcut
    assert "residual additions" in network.ties[0].reason
    without = mp.trace(Residual(), image(1, 3, 6, 6), tie_residuals=True, skip=["conv2"])
    assert without["conv3"].members == ("conv1", "short", "conv3")


def test_pins_allow_one_option_and_skips_make_fixed_cost() -> None:
    model = Residual()
    pin = {"^head$": "w8a8", "short": "int4g128/int8"}
    network = mp.trace(model, image(1, 3, 6, 6), pin=pin, skip=["conv[23]", "^stem"])
    assert [layer.name for layer in network.layers] == ["conv1", "head"]
    assert network.allowed == {"head": ("int8/int8",), "conv1": ("int4g128/int8",)}
    assert network.edges == (("conv1", "head"),)
    assert {"stem.weight", "conv2.weight", "conv3.weight"} <= {one.name for one in network.fixed}
    assert counts_every_parameter_once(network, model)


def test_edges_pass_through_what_is_no_layer() -> None:
    model = Called(lambda m, x: m.head(m.mid(m.mid(m.fc(x)))), mid=nn.Linear(4, 4), **pair())
    network = mp.trace(model, image(2, 4), skip=["mid"])
    assert network.edges == (("fc", "head"),)
    assert not network.notes


def test_skipping_one_holder_of_a_weight_skips_the_weight() -> None:
    network = mp.trace(Language(), tokens(1, 4), skip=["^head$"])
    assert "embed.weight" in {one.name for one in network.fixed}
    with pytest.raises(KeyError, match="no layer is named 'head'"):
        network["head"]


def test_fixed_cost_is_in_the_parameters_own_bytes() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=True), nn.LayerNorm(4)).to(torch.float64)
    model[1].to(torch.float32)
    network = mp.trace(Called(lambda m, x: m.net[0](x), net=model), image(1, 4).double())
    assert network.parameter_bytes == 8
    assert {one.name: one.bytes for one in network.fixed} == {
        "net.0.bias": 32,
        "net.1.weight": 16,
        "net.1.bias": 16,
    }


def noted(forward: Callable[..., Any], **parts: Any) -> tuple[Network, str]:
    model = Called(forward, **parts)
    network = mp.trace(model, image(2, 4))
    assert counts_every_parameter_once(network, model)
    return network, "\n".join(network.notes)


def test_says_which_module_is_called_twice() -> None:
    network, notes = noted(lambda m, x: m.head(m.fc(m.fc(x))), **pair())
    assert "'fc' is called 2 times; it is one layer" in notes
    assert (network["fc"].macs, network["fc"].inputs) == (32, 8)
    assert network.edges == (("fc", "head"),)


def pair() -> dict[str, nn.Module]:
    return {"fc": nn.Linear(4, 4), "head": nn.Linear(4, 4)}


def test_says_which_module_never_ran() -> None:
    network, notes = noted(lambda m, x: m.head(x), **pair())
    assert notes == "'fc' never ran with this example; its weights are counted as fixed"
    assert [layer.name for layer in network.layers] == ["head"]
    _, notes = noted(lambda m, x: m.head(x), attn=nn.MultiheadAttention(4, 1), **pair())
    assert [line.split()[0] for line in notes.splitlines()] == [
        "'attn.in_proj'",
        "'attn.out_proj'",
        "'fc'",
    ]


def test_says_which_parameter_a_functional_call_reads() -> None:
    _, notes = noted(lambda m, x: F.linear(m.head(x), m.w), w=nn.Parameter(image(4, 4)), **pair())
    assert "parameter 'w' is read by a functional call (aten.mm) in the model itself" in notes
    _, notes = noted(lambda m, x: m.head(x) @ m.w, w=nn.Parameter(image(4, 4)), **pair())
    assert "parameter 'w' is read by a functional call (aten.mm)" in notes


def test_says_which_layers_weight_a_functional_call_reads() -> None:
    network, notes = noted(lambda m, x: F.linear(m.head(x), m.fc.weight), **pair())
    assert "parameter 'fc.weight' is read by a functional call" in notes
    assert "fc.weight" in {one.name for one in network.fixed}
    network, notes = noted(lambda m, x: F.linear(m.head(m.fc(x)), m.fc.weight), **pair())
    assert [layer.name for layer in network.layers] == ["head"]  # it is used both ways
    assert "'fc.weight'" in notes


def test_says_which_parameter_is_changed_before_it_is_read() -> None:
    class Standardized(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            weight = self.weight - self.weight.mean()
            return torch.as_tensor(F.linear(input, weight, self.bias))

    parts = {"fc": Standardized(4, 4), "head": nn.Linear(4, 4)}
    network, notes = noted(lambda m, x: m.head(m.fc(x)), **parts)
    assert "parameter 'fc.weight' is changed before aten.addmm in 'fc' reads it" in notes
    assert [layer.name for layer in network.layers] == ["head"]


def test_says_which_module_computes_its_weight() -> None:
    parts = {"fc": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "head": nn.Linear(4, 4)}
    network, notes = noted(lambda m, x: m.head(m.fc(x)), **parts)
    assert notes.startswith("'fc' computes its weight from other parameters")
    assert [layer.name for layer in network.layers] == ["head"]


def test_says_which_module_ran_without_a_product() -> None:
    class Sums(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return torch.as_tensor((input[:, None] * self.weight).sum(-1))

    _, notes = noted(lambda m, x: m.head(m.fc(x)), fc=Sums(4, 4), head=nn.Linear(4, 4))
    assert notes.startswith("'fc' ran without a convolution or matrix product reading its weight")


def test_says_which_parameters_a_recurrent_network_keeps() -> None:
    _, notes = noted(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(4, 4), head=nn.Linear(4, 4))
    assert "parameter 'rnn.weight_ih_l0' is read by a functional call" in notes
    assert "parameter 'rnn.weight_hh_l0'" in notes


def test_says_where_the_run_depended_on_values() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(m.fc(x) if x.sum() > -1e9 else x)

    _, notes = noted(forward, **pair())
    assert "the model itself reads the value of a tensor that depends on the example" in notes


def test_says_which_layer_reads_no_data() -> None:
    _, notes = noted(lambda m, x: m.head(x) + m.fc(torch.ones(4)), **pair())
    assert notes == "'fc' reads a tensor that does not depend on the example"


def test_a_product_of_two_activations_is_marked() -> None:
    network, _ = noted(lambda m, x: m.head(x) * m.fc(x), **pair())
    assert curved(network) == ("aten.mul(data,data)",)
    network, _ = noted(lambda m, x: m.head(x) * 2 / torch.ones(4), **pair())
    assert piecewise_linear(network)
    network, _ = noted(lambda m, x: m.head(x) / m.fc(x), **pair())
    assert curved(network) == ("aten.div(data)",)
    network, _ = noted(lambda m, x: m.head(x).sigmoid().softmax(-1), **pair())
    assert curved(network) == ("aten._softmax", "aten.sigmoid")


def test_batch_norm_by_the_batchs_own_statistics_is_curved() -> None:
    def network(**settings: bool) -> Network:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, **settings), nn.ReLU6())
        return mp.trace(model, image(2, 3, 4, 4))

    assert piecewise_linear(network())
    assert curved(network(track_running_stats=False)) == ("aten.native_batch_norm(training)",)


def state(model: nn.Module) -> list[object]:
    tensors = [t for kept in (model.parameters(), model.buffers()) for t in kept]
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]
    everywhere = nn.modules.module
    return [
        [(id(t), t.requires_grad, t.tolist()) for t in tensors],
        [(name, m.training) for name, m in model.named_modules()],
        hooks,
        len(everywhere._global_forward_hooks) + len(everywhere._global_forward_pre_hooks),
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
    ]


class Counting(nn.Module):
    """Counts its calls, and fails where asked to."""

    calls: Tensor

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.fails:
            raise RuntimeError("no room")
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Counting(fails=fails), nn.Conv2d(4, 2, 3)
    )
    model[1].eval()  # frozen, in a model that trains
    before = state(model)
    if fails:
        with pytest.raises(ValueError, match=r"the model failed on the example .*no room"):
            mp.trace(model, image(2, 3, 8, 8))
    else:
        mp.trace(model, image(2, 3, 8, 8))
    assert state(model) == before


def test_a_model_that_catches_an_error_inside_is_followed() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        try:
            m.fails(x)
        except RuntimeError:
            x = m.fc(x)
        return m.head(x) if x.isfinite().all() else x

    network = mp.trace(Called(forward, fails=Counting(fails=True), **pair()), image(2, 4))
    assert network.edges == (("fc", "head"),)
    assert network.notes[0].startswith("the model itself reads the value")


def test_refuses_what_it_cannot_trace() -> None:
    model, x = Residual(), image(1, 3, 6, 6)
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, r"failed on the example \(RuntimeError: .*wanted a batch as", (
            lambda: mp.trace(model, image(1, 4, 6, 6)))),
        (ValueError, "batch 0 is empty", lambda: mp.trace(model, image(0, 3, 6, 6))),
        (ValueError, "no layers to offer options to; its modules with a weight: none;", (
            lambda: mp.trace(nn.ReLU(), x))),
        (ValueError, r"no layers .*\(6 modules were skipped\)", (
            lambda: mp.trace(model, x, skip=["."]))),
        (ValueError, "skip 'conv9' matches no module; there are 'stem', 'conv1'", (
            lambda: mp.trace(model, x, skip=["conv9"]))),
        (ValueError, "pin 'conv9' matches no layer; there are 'stem', 'conv1'", (
            lambda: mp.trace(model, x, pin={"conv9": "w8a8"}))),
        (ValueError, r"'\(' is no regular expression", (
            lambda: mp.trace(model, x, pin={"(": "w8a8"}))),
        (ValueError, r"'\(' is no regular expression", lambda: mp.trace(model, x, skip=["("])),
        (ValueError, "pin 'conv': no option is written 'eight'", (
            lambda: mp.trace(model, x, pin={"conv": "eight"}))),
        (ValueError, "layer 'head' is pinned to 'int8/int8' and, by 'ea', to 'int4/int8'", (
            lambda: mp.trace(model, x, pin={"head": "w8a8", "ea": "w4a8"}))),
        (ValueError, "parameter '0.weight' has no shape yet", (
            lambda: mp.trace(nn.Sequential(nn.LazyLinear(2)), image(1, 2)))),
        (TypeError, "the model is a str; wanted a torch.nn.Module", (
            lambda: mp.trace("resnet18", x))),  # type: ignore[arg-type]
        (KeyError, "keeps no weight named 'conv9'", lambda: module_weight(model, "conv9")),
        (KeyError, "keeps no weight named ''", lambda: module_weight(model, "")),
    ]  # fmt: skip
    for kind, message, attempt in refused:
        with pytest.raises(kind, match=message):
            attempt()


def test_module_weight_finds_every_members_parameter() -> None:
    models = [(Residual(), image(1, 3, 6, 6)), (Language(), tokens(1, 4))]
    models.append((nn.TransformerEncoderLayer(8, 2, 8), image(3, 1, 8)))
    for model, x in models:
        for layer in mp.trace(model, x).layers:
            kept = {id(w): w for w in (module_weight(model, name) for name in layer.modules)}
            assert sum(weight.numel() for weight in kept.values()) == layer.params


def test_a_random_model_is_not_deterministic() -> None:
    check_deterministic(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), image(2, 4))
    check_deterministic(Called(lambda _, x: x / 0), image(2, 4))  # infinite, but the same
    with pytest.raises(ValueError, match=r"gave different outputs.*dropout"):
        check_deterministic(Called(lambda _, x: F.dropout(x)), image(8, 64))


# What others have counted.


def transformers(name: str, configuration: str, **settings: Any) -> nn.Module:
    module = pytest.importorskip("transformers")
    model: nn.Module = getattr(module, name)(getattr(module, configuration)(**settings))
    return model


def resnet(depths: list[int], **settings: Any) -> nn.Module:
    return transformers(
        "ResNetForImageClassification", "ResNetConfig", depths=depths, num_labels=1000, **settings
    )


def published(path: str) -> Any:
    require("shared", (SHARED / path).is_file(), f"no {path}; set MPSEARCH_SHARED")
    return json.loads((SHARED / path).read_text())


IMAGE = {"pixel_values": torch.zeros(1, 3, 224, 224)}


def torchvision_name(name: str) -> str:
    """``layer1.0.conv1`` for transformers' ``resnet.encoder.stages.0.layers.0.layer.0``."""
    if "embedder" in name:
        return "conv1"
    if "classifier" in name:
        return "fc"
    found = re.search(r"stages\.(\d)\.layers\.(\d)\.(?:layer\.(\d)|(shortcut))", name)
    assert found
    stage, unit, conv, _ = found.groups()
    leaf = f"conv{int(conv) + 1}" if conv else "downsample.0"
    return f"layer{int(stage) + 1}.{unit}.{leaf}"


def test_resnet50_has_the_published_macs_layer_by_layer() -> None:
    ace = published("oracles/ace/resnet50_ace.json")
    network = mp.trace(resnet([3, 4, 6, 3], downsample_in_bottleneck=False), IMAGE)
    assert network.macs == 4_089_184_256
    assert network.params == 25_502_912
    for layer in network.layers:
        members = [torchvision_name(name) for name in layer.members]
        assert layer.macs == sum(ace["macs"][name] for name in members)
        assert layer.params == sum(ace["params"][name] for name in members)
    assert sum(len(layer.members) for layer in network.layers) == len(ace["macs"])


def test_resnet50_v1_has_the_published_macs() -> None:
    network = mp.trace(resnet([3, 4, 6, 3], downsample_in_bottleneck=True), IMAGE)
    assert network.macs == 3_857_973_248


def test_resnet18_has_the_macs_and_ties_of_hawq() -> None:
    settings = {"hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    network = mp.trace(resnet([2, 2, 2, 2], **settings), IMAGE)
    assert network.macs == 1_814_073_344
    assert piecewise_linear(network)
    hawq = published("oracles/hawq/ilp_tables.json")["resnet18"]
    by_name = {}
    for name, macs in zip(hawq["layer_names"], hawq["macs"], strict=True):
        stage, unit, leaf = name.split(".")
        conv = {"quant_convbn1": "conv1", "quant_convbn2": "conv2"}.get(leaf, "downsample.0")
        by_name[f"layer{stage[-1]}.{int(unit[-1]) - 1}.{conv}"] = macs
    for layer in network.layers[1:-1]:
        members = [torchvision_name(name) for name in layer.members]
        assert layer.macs == sum(by_name[name] for name in members)
    names = list(by_name)
    assert [tuple(map(torchvision_name, tie.members)) for tie in network.ties] == [
        (names[one], names[other]) for one, other in hawq["tied_pairs"]
    ]


def test_mobilenet_v2_has_the_published_macs() -> None:
    model = transformers("MobileNetV2ForImageClassification", "MobileNetV2Config", num_labels=1000)
    network = mp.trace(model, IMAGE)
    assert network.macs == 300_774_272
    assert sum(layer.role == "depthwise" for layer in network.layers) == 17
    assert piecewise_linear(network)
    assert counts_every_parameter_once(network, model)


def test_deit_tiny_has_the_macs_of_its_closed_form() -> None:
    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "intermediate_size": 768}
    model = transformers(
        "ViTForImageClassification", "ViTConfig", num_attention_heads=3, num_labels=1000, **sizes
    )
    network = mp.trace(model, IMAGE)
    block = 197 * (4 * 192 * 192 + 2 * 192 * 768)
    assert network.macs == 196 * 192 * 3 * 16 * 16 + 12 * block + 192 * 1000
    assert len(network.ties) == 12
    roles = [layer.role for layer in network.layers]
    assert roles == ["first", *["attention", "attention", "mlp", "mlp"] * 12, "last"]
    assert counts_every_parameter_once(network, model)


def test_llama_has_the_macs_of_its_closed_form() -> None:
    model = transformers(
        "LlamaForCausalLM",
        "LlamaConfig",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    network = mp.trace(model, {"input_ids": tokens(2, 8)})
    assert network.macs == 8 * (2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48) + 32 * 64)
    assert network["lm_head"].members == ("lm_head", "model.embed_tokens")
    assert [len(tie.members) for tie in network.ties] == [3, 2, 3, 2, 2]
    assert counts_every_parameter_once(network, model)


def test_gpt2_is_linear_layers_stored_the_other_way_round() -> None:
    model = transformers(
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=8,
        bos_token_id=0,
        eos_token_id=1,
    )
    network = mp.trace(model, {"input_ids": tokens(2, 8)})
    shapes = [layer.shapes[0] for layer in network.layers]
    assert shapes == [(48, 16), (16, 16), (64, 16), (16, 64), (32, 16)]
    roles = [layer.role for layer in network.layers]
    assert roles == ["attention", "attention", "mlp", "mlp", "last"]
    assert counts_every_parameter_once(network, model)


def definition(name: str) -> Any:
    """A module of the shared definitions; each sets the number of threads, which is put back."""
    path = Path(DEFINITIONS, f"{name}.py")
    require("shared", path.is_file(), f"no {path}; set MPSEARCH_SHARED")
    spec = spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module, threads = module_from_spec(spec), torch.get_num_threads()
    spec.loader.exec_module(module)
    torch.set_num_threads(threads)
    return module


def test_resnet20_of_cifar_is_a_stem_nine_blocks_and_a_head() -> None:
    model = definition("resnet_cifar").ResNetCifar(20)
    network = mp.trace(model, image(2, 3, 32, 32))
    assert (len(network.layers), network.macs) == (20, 40_551_040)
    assert not network.ties  # its shortcuts have no weights
    assert not network.notes
    assert piecewise_linear(network)
    assert {"layer1.2.conv2", "conv1"} <= set(network.graph.predecessors("layer2.0.conv1"))
    assert counts_every_parameter_once(network, model)


def test_stories260k_is_five_blocks_with_grouped_queries_and_a_tied_head() -> None:
    sizes = published("models/lm/stories260K.json")
    model = definition("llama").Llama(sizes)
    model.lm_head.weight = model.embed_tokens.weight  # as the checkpoint says it is
    network = mp.trace(model, torch.zeros(2, 16, dtype=torch.long))
    width, hidden = sizes["dim"], sizes["hidden_dim"]
    keys = width * sizes["n_kv_heads"] // sizes["n_heads"]
    block = width * (2 * width + 2 * keys + 3 * hidden)
    assert network.params == sizes["n_layers"] * block + width * sizes["vocab_size"]
    assert network.macs == 16 * network.params
    assert len(network.layers) == 4 * sizes["n_layers"] + 1
    assert network.layers[-1].members == ("lm_head", "embed_tokens")
    assert counts_every_parameter_once(network, model)


def test_the_vision_transformer_of_cifar_is_six_blocks() -> None:
    network = mp.trace(definition("vit_cifar").ViT(), image(1, 3, 32, 32))
    roles = [layer.role for layer in network.layers]
    assert roles == ["first", *["attention", "attention", "mlp", "mlp"] * 6, "last"]
    assert network.macs == 64 * 48 * 128 + 6 * 65 * (4 * 128**2 + 2 * 128 * 256) + 1280
    assert network["layers.0.attn.v"].members == tuple(f"layers.0.attn.{c}" for c in "qkv")


def test_mobilenet_v2_of_tensorflow_pads_inside_its_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(DEFINITIONS))
    network = mp.trace(definition("mobilenet_v2").MobileNetV2(), image(1, 3, 224, 224))
    assert network.macs == 300_774_272
    assert network.layers[0].inputs == 3 * 224 * 224
    assert piecewise_linear(network)
