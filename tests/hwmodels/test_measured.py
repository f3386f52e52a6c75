"""Layers run on this machine: what the table says, and what it refuses."""

import importlib
import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpsearch as mp
from mpsearch import registry
from mpsearch.commands import profiling
from mpsearch.documents import load_table
from mpsearch.hwmodels.measured import Measured
from mpsearch.sweep import Sweep
from mpsearch.testing import HardwareSuite
from mpsearch.testing.hardware import network

OPTIONS = mp.options("w2a8", "w4a8", "w8a8", "bf16/bf16", "fp32/fp32", "nvfp4/nvfp4")
MEASURING = importlib.import_module("mpsearch.kernels.measuring")


class TestMeasured(HardwareSuite):
    hardware = Measured(rounds=5)
    monotone = False  # fewer bits run in the containers of more

    def test_a_batch_costs_no_less_than_a_sample_and_no_more_than_each_alone(self) -> None:
        # The suite's bounds are exact and its layers take the time of a call; these take more,
        # and what is asserted holds by far, whatever else the machine does.
        wide = mp.Network((mp.Layer("fc", 1 << 18, 1 << 23, "linear", shapes=((512, 512),)),))
        model: Any = self.hardware
        one, many = (
            replace(model, batch=batch).costs(wide, OPTIONS[2:3])["latency"].values.item()
            for batch in (1, 32)
        )
        assert 3 * one < many < 96 * one


class TestPlain(TestMeasured):
    hardware = Measured("plain", rounds=5)


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer takes a second, and the calls of the first one are far apart."""

    def measured(layers: Any, options: Any, *_: Any, **__: Any) -> Any:
        return [
            [MEASURING.Priced(1.0, 0.1, 0.31 if not i else 0.29, str(o)) for o in options]
            for i, _ in enumerate(layers)
        ]

    monkeypatch.setattr(MEASURING, "measured", measured)


def latency(options: tuple[mp.Option, ...], **settings: Any) -> mp.Table:
    return Measured(**settings).costs(network(), options)["latency"]


def test_entries_without_a_kernel_are_priced_as_what_runs_and_noted() -> None:
    table = latency(OPTIONS, rounds=5)
    np.testing.assert_array_equal(table.values[:, 0], table.values[:, 2])
    np.testing.assert_array_equal(table.values[:, 5], table.values[:, 4])
    container, floats = (table.notes[f"runs as {name}"] for name in ("int8/int8", "fp32/fp32"))
    stem, lookup = 0, 2
    assert container[stem].tolist() == [True, True, False, False, False, False]
    assert floats[stem].tolist() == [False] * 5 + [True]
    assert floats[lookup].tolist() == [True, True, True, False, False, True]
    assert table.stderr is not None
    assert (table.stderr > 0).all()


def test_a_machine_under_load_is_noted_where_the_spread_says_so(spread: None) -> None:
    (note,) = (text for text in latency(OPTIONS).notes if text.startswith("spread above 30%"))
    assert "measure again on a quiet machine" in note
    assert latency(OPTIONS).notes[note].sum(axis=1).tolist() == [6, 0, 0, 0]


def test_what_is_beside_the_layers_is_in_every_total_and_in_the_reference(spread: None) -> None:
    table = latency(OPTIONS, beside=0.5)
    assert table.total([0] * 4) == 4.5
    assert table.reference == 4.5


def test_pins_are_kept() -> None:
    pinned = replace(network(), allowed={"stem": ("int8/int8",)})
    table = Measured(rounds=5).costs(pinned, OPTIONS)["latency"]
    assert table.allowed[0].tolist() == [False, False, True, False, False, False]


def test_methods_change_no_time() -> None:
    one, other = (
        Measured(rounds=5)
        .costs(network(), mp.options("w4a16", "int4/fp16+gptq"))["latency"]
        .values.T
    )
    np.testing.assert_array_equal(one, other)


def test_the_sweep_s_cache_is_filled_and_used() -> None:
    sweep = Sweep()
    first = latency(OPTIONS, rounds=5, sweep=sweep)
    count = len(sweep.cache)
    again = latency(OPTIONS, rounds=5, sweep=sweep)
    np.testing.assert_array_equal(first.values, again.values)
    assert len(sweep.cache) == count > 0


def test_the_name_after_the_colon_is_the_backend() -> None:
    assert registry.make("hwmodels", "measured:plain").backend == "plain"
    assert {"cpu-packed", "onednn", "plain"} <= set(registry.names("backends"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch is 0; wanted at least 1"),
        ({"rounds": 1}, "rounds is 1; wanted at least 2"),
        ({"backend": "cuda"}, "runs on a GPU, and times are of this CPU; price GPUs with"),
        ({"phase": "prefill"}, "no phase is named 'prefill'; there are traced and decode"),
        ({"beside": -1.0}, r"beside is -1.0; wanted seconds from 0 up"),
        ({"beside": float("nan")}, r"beside is nan; wanted seconds from 0 up"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Measured(**settings)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(
        LookupError, match="nothing in backends is named 'tpu'; there are: cpu-packed"
    ):
        Measured("tpu")


def test_a_layer_that_cannot_be_built_is_refused_by_name() -> None:
    odd = mp.Network((mp.Layer("rnn", 16, 16, "lstm", shapes=((4, 4),)),))
    with pytest.raises(ValueError, match="layer 'rnn' is a 'lstm' with weights"):
        Measured().costs(odd, OPTIONS)


def test_to_decode_is_to_read_one_token() -> None:
    whole = mp.Network((mp.Layer("fc", 1 << 18, 1 << 26, "linear", shapes=((512, 512),)),))
    one = replace(whole, layers=(replace(whole.layers[0], macs=1 << 18),))
    options = mp.options("fp32/fp32")
    rounds = Measured(rounds=10)
    every, decoded, alone = (
        model.costs(net, options)["latency"].values.item()
        for net, model in ((whole, rounds), (whole, replace(rounds, phase="decode")), (one, rounds))
    )
    assert 3 * decoded < every  # of 256 tokens
    assert decoded / 3 < alone < 3 * decoded


def test_a_convolution_does_not_decode() -> None:
    with pytest.raises(ValueError, match="layer 'stem' is a convolution, which does not read one"):
        Measured(rounds=5, phase="decode").costs(network(), mp.options("fp32/fp32"))


def arguments(**given: Any) -> Namespace:
    settled: dict[str, Any] = {
        "task": "demo:digits", "text": None, "options": "w4a8,w8a8,fp32/fp32", "pin": [],
        "skip": [], "backend": "onednn", "batch": 2, "rounds": 5, "cache": None, "output": None,
        "phase": "traced",
    }  # fmt: skip
    return Namespace(**settled | given)


def test_profile_writes_the_table_and_goes_on_from_its_cache(tmp_path: Path) -> None:
    paths = {"cache": str(tmp_path / "cache"), "output": str(tmp_path / "latency.json")}
    said = profiling.profile(arguments(**paths))
    assert "latency (s)" in said.text
    assert "beside the layers: " in said.text
    assert "entries: runs as int8/int8" in said.text
    json.dumps(said.document, allow_nan=False)
    table = load_table(paths["output"])
    assert isinstance(table, mp.Table)
    assert table.fixed > 0
    assert "runs as int8/int8" in table.notes
    again = profiling.profile(arguments(**paths))
    assert again.document["values"] == said.document["values"]


def test_profile_refuses_a_larger_batch_than_the_task_has() -> None:
    with pytest.raises(
        ValueError, match=r"hold \d+ samples of one shape, and --batch asks for 99999"
    ):
        profiling.profile(arguments(batch=99999))
