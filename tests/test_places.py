"""Places: nothing is lost between a layer and its channels, groups or experts."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.formats import options
from mpsearch.hwmodels.size import Size
from mpsearch.network import Fixed, Layer, Network
from mpsearch.places import Per, Places, expert_of, finer

CONV = Layer("conv1", 54, 54 * 16, "conv2d", "first", ((6, 1, 3, 3),), 36, 96, ("conv1",))
FC = Layer("fc", 900, 900, "linear", "last", ((3, 300),), 300, 3)
TINY = Network((CONV, FC), edges=(("conv1", "fc"),), fixed=(Fixed("bias", 3, 12),))

WITHIN: list[Per] = ["channel", "group"]

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
layers = st.lists(shapes, min_size=1, max_size=3).map(tuple)


def _layer(name: str, own: tuple[tuple[int, ...], ...], macs: int) -> Layer:
    params = sum(int(np.prod(shape)) for shape in own)
    return Layer(name, params, macs, shapes=own, inputs=macs % 11, outputs=macs % 7)


def test_channels_are_rows() -> None:
    fine = finer(TINY, "channel")
    assert len(fine.layers) == 9
    assert fine.layers[3] == Layer(
        "conv1[3]", 9, 144, "conv2d", "first", ((1, 9),), 6, 16, ("conv1",)
    )
    assert [place.name for place in fine.layers[6:]] == ["fc[0]", "fc[1]", "fc[2]"]
    assert fine.fixed == TINY.fixed
    assert fine.edges == ()


def test_groups_are_parts_of_rows() -> None:
    fine = finer(TINY, "group", group=128)
    assert [place.name for place in fine.layers[6:9]] == [
        "fc[0,0:128]",
        "fc[0,128:256]",
        "fc[0,256:300]",
    ]
    assert [place.params for place in fine.layers[6:9]] == [128, 128, 44]
    assert fine.layers[5].name == "conv1[5,0:9]"


def test_rows_are_counted_through_all_weights_of_a_layer() -> None:
    qkv = _layer("q", ((2, 3), (1, 3), (1, 3)), 12)
    fine = finer(Network((qkv,)), "group", group=2)
    names = [place.name for place in fine.layers]
    assert names == [f"q[{row},{part}]" for row in range(4) for part in ("0:2", "2:3")]


@given(st.lists(layers, min_size=1, max_size=4), st.integers(0, 1000), st.integers(1, 9))
def test_what_places_have_adds_up_to_what_their_layer_has(
    made: list[tuple[tuple[int, ...], ...]], macs: int, group: int
) -> None:
    network = Network(tuple(_layer(f"l{i}", own, macs + i) for i, own in enumerate(made)))
    for per in WITHIN:
        fine = finer(network, per, group=group)
        assert isinstance(fine.layers, Places)
        assert len(fine.layers.tensors) == len(fine.layers) == len(list(fine.layers))
        for row, layer in enumerate(network.layers):
            own = fine.layers[fine.layers.rows(row)]
            assert (fine.layers.tensors[fine.layers.rows(row)] == row).all()
            for what in ("params", "macs", "inputs", "outputs"):
                assert sum(getattr(p, what) for p in own) == getattr(layer, what)
                assert all(getattr(p, what) >= 0 for p in own)
            assert all(place.shapes == ((1, place.params),) for place in own)
        names = [place.name for place in fine.layers]
        assert len(set(names)) == len(names)
        assert names == [fine.layers[i].name for i in range(len(names))]


@given(
    layers,
    st.sampled_from(["int3", "int4", "int8", "int4a", "int3g4a", "int2g8", "fp8_e4m3", "bf16"]),
    st.integers(1, 9),
)
def test_places_at_one_option_take_what_the_layer_does_up_to_a_byte_for_each_stream(
    own: tuple[tuple[int, ...], ...], form: str, group: int
) -> None:
    network = Network((_layer("l", own, 0),))
    for per in WITHIN:
        each = f"{form}g{group}" if per == "group" and form in ("int3", "int4", "int8") else form
        if per == "group" and each == form:
            continue  # its own groups, or channels: not those of the places
        fine = finer(network, per, group=group)
        chosen = options(f"{each}/fp16")
        whole, table = (Size().costs(n, chosen)["size"].values for n in (network, fine))
        streams = 2 if form.endswith("a") else 1
        padding = int(table.sum() - whole.sum())
        assert -2 * len(own) < padding <= streams * len(fine.layers)
        bits = chosen[0].weight.bits
        if all(p.params * bits % 8 == 0 for p in fine.layers) and streams == 1:
            assert padding == 0


def test_a_format_with_fewer_scales_than_places_gets_one_for_each() -> None:
    network = Network((_layer("l", ((4, 64),), 0),))

    def bytes_at(network: Network, form: str) -> int:
        return int(Size().costs(network, options(f"{form}/fp16"))["size"].values.sum())

    groups, channels = finer(network, "group", group=16), finer(network, "channel")
    assert bytes_at(groups, "int4") == bytes_at(network, "int4g16") == 128 + 2 * 16
    assert bytes_at(channels, "int4t") == bytes_at(network, "int4") == 128 + 2 * 4


def test_the_unquantized_network_costs_the_same() -> None:
    for per in WITHIN:
        table = Size().costs(finer(TINY, per), options("fp32/fp32"))["size"]
        assert table.total([0] * len(table.layers)) == table.reference == 954 * 4 + 12


def test_many_places_are_made_when_asked_for() -> None:
    network = Network((Layer("fc", 1 << 24, shapes=((4096, 4096),)),))
    fine = finer(network, "group", group=16)
    assert len(fine.layers) == 1 << 20
    assert fine.layers[-1].name == "fc[4095,4080:4096]"
    assert isinstance(fine.layers, Places)
    assert len(fine.layers.blocks) == 1


def test_numbers_out_of_range_are_errors() -> None:
    places = finer(TINY, "channel").layers
    assert places[-1].name == "fc[2]"
    for index in (9, -10):
        with pytest.raises(IndexError, match=f"place {index} of 9"):
            places[index]


def test_places_of_pinned_layers_are_pinned() -> None:
    pinned = replace(TINY, allowed={"fc": ("int8/int8",)})
    mask = finer(pinned, "channel").mask(options("w4a8", "w8a8"))
    assert mask.tolist() == [[True, True]] * 6 + [[False, True]] * 3


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (TINY, {"per": "row"}, "per is 'row'; there are channel, group, expert"),
        (TINY, {"per": "group", "group": 0}, "group is 0; wanted at least one weight"),
        (Network((Layer("a", 9),)), {}, "layer 'a' says no shape of its weights, so it has no channels"),
        (Network((Layer("a", 0, shapes=((0, 3),)),)), {}, "layer 'a' says no shape"),
        (finer(TINY, "channel"), {}, "layers are places already, one per channel"),
        (TINY, {"per": "expert"}, "no layer is part of an expert; wanted modules of a list named 'experts'"),
        (
            replace(TINY, fixed=(Fixed("mlp.experts.gate_up_proj", 9, 36),)),
            {"per": "expert"},
            re.escape("('mlp.experts.gate_up_proj' holds several experts: unfuse the model first)"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_apart_is_an_error(
    network: Network, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finer(network, **settings)  # type: ignore[arg-type]


def _mixture() -> Network:
    def part(name: str, *members: str) -> Layer:
        own = tuple((2, 3) for _ in members or ("",))
        return Layer(name, 6 * len(own), 60, "linear", "mlp", own, 3, 2, members)

    return Network(
        (
            part("attn"),
            part("mlp.experts.0.gate", "mlp.experts.0.gate", "mlp.experts.0.up"),
            part("mlp.experts.0.down"),
            part("mlp.experts.1.gate", "mlp.experts.1.gate", "mlp.experts.1.up"),
            part("mlp.experts.1.down"),
            part("mlp.experts_norm.proj"),
        ),
        edges=(
            ("attn", "mlp.experts.0.gate"),
            ("mlp.experts.0.gate", "mlp.experts.0.down"),
            ("attn", "mlp.experts.1.gate"),
        ),
        allowed={"mlp.experts.0.gate": ("int4/int8", "int8/int8")},
    )


def test_layers_of_an_expert_are_one() -> None:
    network = _mixture()
    fine = finer(network, "expert")
    names = ["attn", "mlp.experts.0", "mlp.experts.1", "mlp.experts_norm.proj"]
    assert [layer.name for layer in fine.layers] == names
    expert = fine.layers[1]
    assert expert.kind == "expert"
    assert expert.members == ("mlp.experts.0.gate", "mlp.experts.0.up", "mlp.experts.0.down")
    assert (expert.params, expert.macs, expert.shapes) == (18, 120, ((2, 3),) * 3)
    assert fine.edges == (("attn", "mlp.experts.0"), ("attn", "mlp.experts.1"))
    assert fine.allowed == {"mlp.experts.0": ("int4/int8", "int8/int8")}
    assert (fine.params, fine.macs) == (network.params, network.macs)
    (before, after) = (Size().costs(n, options("w4a8"))["size"].values for n in (network, fine))
    assert before.sum() == after.sum()


def test_experts_of_experts_are_themselves() -> None:
    fine = finer(_mixture(), "expert")
    assert finer(fine, "expert").layers == fine.layers
    assert expert_of(fine.layers[0]) is None


def test_channels_of_experts_can_be_had() -> None:
    fine = finer(finer(_mixture(), "expert"), "channel")
    assert [place.name for place in fine.layers[2:4]] == ["mlp.experts.0[0]", "mlp.experts.0[1]"]


def test_an_expert_with_two_pins_is_an_error() -> None:
    pins: dict[str, tuple[str, ...]] = {
        "mlp.experts.0.gate": ("int4/int8",),
        "mlp.experts.0.down": ("int8/int8",),
    }
    with pytest.raises(ValueError, match=r"'mlp\.experts\.0' is pinned to 'int4/int8' and 'int8/"):
        finer(replace(_mixture(), allowed=pins), "expert")
