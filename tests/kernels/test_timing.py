"""Measuring: in what order, on how many threads, and what of it is kept."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.kernels import measuring, timing
from mpsearch.kernels.placing import beside, placed, whole_time
from mpsearch.kernels.plain import Plain
from mpsearch.kernels.timing import Call, Taken
from mpsearch.sweep import Folder, Sweep
from tests.kernels.networks import NAMES, Net, at

FP32, W8 = mp.options("fp32/fp32", "w8a8")


class Counted(nn.Module):
    """Writes its name down when it is called, and may fail."""

    def __init__(self, name: str, log: list[str], fails: Callable[[], bool]) -> None:
        super().__init__()
        self.runs_as, self.log, self.fails = name, log, fails

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(self.runs_as)
        if self.fails():
            raise KeyboardInterrupt
        return x


@dataclass(frozen=True)
class Logged:
    """A backend whose kernels write down when they run."""

    log: list[str]
    after: float = float("inf")

    def kernel(self, layer: mp.Layer, option: mp.Option, module: Any) -> nn.Module:
        return Counted(f"{layer.name} {option}", self.log, lambda: len(self.log) > self.after)

    def __repr__(self) -> str:
        return "Logged"


LAYERS = [
    mp.Layer("a", 12, 24, "linear", shapes=((4, 3),)),
    mp.Layer("b", 20, 40, "linear", shapes=((4, 5),)),
    mp.Layer("c", 12, 24, "linear", shapes=((4, 3),)),
]


def run(backend: Any, sweep: Sweep, rounds: int = 10) -> list[list[measuring.Priced]]:
    return measuring.measured(LAYERS, (FP32, W8), backend, batch=1, rounds=rounds, sweep=sweep)


def test_rounds_are_interleaved_and_layers_of_equal_shape_are_measured_once() -> None:
    log: list[str] = []
    found = run(Logged(log), Sweep())
    names = [f"{layer} {option}" for option in (FP32, W8) for layer in ("a", "b")]
    assert sorted(log[:4]) == sorted(names)  # one call each, to see how they lay images out
    del log[:4]
    laps = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert len(laps) == 2 * (timing.ROUNDS + 1)  # in each block one is not counted
    assert all(lap == laps[0] for lap in laps)
    assert sorted(laps[0]) == sorted(names)
    assert found[0] == found[2] != found[1]


def test_options_that_run_as_the_same_are_one_measurement() -> None:
    options = mp.options("w4a8", "w8a8", "fp32/fp32", "w4a16")
    from mpsearch.kernels.onednn import OneDnn

    ((four, eight, floats, weights),) = measuring.measured(
        LAYERS[:1], options, OneDnn(), batch=2, rounds=5, sweep=Sweep()
    )
    assert four == eight
    assert floats == weights
    assert (four.runs_as, floats.runs_as) == ("int8/int8", "fp32/fp32")


@pytest.mark.parametrize("stop", [3, 23, 24, 47])
def test_an_interrupted_measurement_goes_on_where_it_was(stop: int, tmp_path: Path) -> None:
    cache = Folder(tmp_path / "cache")
    block = 4 * (timing.ROUNDS + 1)
    with pytest.raises(KeyboardInterrupt):
        run(Logged([], 4 + stop), Sweep(cache=cache))
    kept = dict(cache)
    assert len(kept) == 4 * (stop // block)
    log: list[str] = []
    first = run(Logged(log), Sweep(cache=cache))
    assert len(log) == 4 + block * (2 - stop // block)
    assert kept.items() <= dict(cache).items()
    log.clear()
    assert run(Logged(log), Sweep(cache=Folder(tmp_path / "cache"))) == first
    assert len(log) == 4  # nothing but how they lay images out


def test_more_rounds_add_to_those_that_are_kept() -> None:
    sweep, log = Sweep(), list[str]()
    run(Logged(log), sweep, 5)
    count = len(log)
    run(Logged(log), sweep, 10)
    assert len(log) == 2 * count


def test_times_of_another_machine_or_batch_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, log = Sweep(), list[str]()
    run(Logged(log), sweep, 5)
    count = len(log)
    monkeypatch.setattr(timing, "machine", lambda: "another")
    run(Logged(log), sweep, 5)
    assert len(log) == 2 * count


def test_progress_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    run(Logged([]), Sweep(progress=True), 5)
    assert "measure" in capsys.readouterr().err


def test_threads_gradients_and_seed_are_as_before() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with timing.pinned():
            assert torch.get_num_threads() == 1
            assert not torch.is_grad_enabled()
            torch.rand(3)
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt):
            run(Logged([], 0), Sweep())
        assert torch.get_num_threads() == 2
        assert torch.is_grad_enabled()
        assert bool((torch.get_rng_state() == state).all())
    finally:
        torch.set_num_threads(threads)


def test_a_median_with_its_spread() -> None:
    taken = Taken.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (taken.seconds, taken.spread, taken.calls) == (3.0, 2 / 3, 5)
    assert taken.stderr == pytest.approx(1.2533 * 2 / 1.349 / 5**0.5)


def test_the_clock_s_own_time_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(0, 7)  # what reading the clock takes
    monkeypatch.setattr("time.process_time_ns", lambda: next(ticks))
    found = timing.rounds({"one": Call(nn.Identity(), torch.zeros(1))}, 3, 1)
    assert found == {"one": [1e-9] * 3}


def test_an_input_is_laid_out_as_the_module_writes() -> None:
    x = torch.randn(2, 3, 8, 8)
    last = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert Call.of(last, x).x.is_contiguous(memory_format=torch.channels_last)
    assert Call.of(nn.ReLU(), x).x.is_contiguous()


def test_a_footprint_is_no_more_than_the_network_has() -> None:
    assert [timing.footprint(n) for n in (0, 1, 5, 1 << 20, 1 << 40)] == [1, 1, 4, 1 << 20, 1 << 24]


def test_a_network_on_kernels_computes_what_the_quantized_one_does() -> None:
    from mpsearch.kernels.onednn import OneDnn

    model, quantized, x = at("w4a8")
    network = mp.trace(model, x)
    options = dict.fromkeys(NAMES, mp.Option.parse("w4a8"))
    real = placed(quantized, network, options, OneDnn())
    with torch.no_grad():
        found, wanted = real(x), quantized(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))
    assert [type(m).__name__ for m in real.children()] == ["Conv2d"] * 3 + ["Linear"] * 2
    assert all(m.runs_as == "int8/int8" for m in real.children())
    assert type(model.get_submodule("stem")) is nn.Conv2d


def test_beside_its_layers_a_network_takes_less_than_with_them() -> None:
    model, x = Net().eval(), torch.randn(4, 3, 64, 64)
    network = mp.trace(model, x)
    whole = placed(model, network, dict.fromkeys(NAMES, FP32), Plain())
    assert 0 < beside(model, network, x, 5).seconds < whole_time(whole, x, 5).seconds
    assert [name for name, _ in model.named_children()] == list(NAMES)
