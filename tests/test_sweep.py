"""Units of work: cached, interrupted, taken up again."""

from pathlib import Path

import pytest

from mpsearch.sweep import Folder, Sweep, Unit

UNITS: list[Unit] = [("a", 1), ("a", 2), ("b", 1)]


def test_results_come_in_order_and_are_computed_once() -> None:
    seen: list[Unit] = []

    def compute(unit: Unit) -> list[float]:
        seen.append(unit)
        return [float(len(seen))]

    sweep = Sweep()
    assert sweep.run("work", UNITS, compute) == [[1.0], [2.0], [3.0]]
    assert sweep.run("work", UNITS[::-1], compute) == [[3.0], [2.0], [1.0]]
    assert seen == UNITS


def test_another_study_or_title_computes_anew() -> None:
    cache: dict[str, list[float]] = {}
    Sweep(cache=cache, study="one").run("work", UNITS, lambda _: [1.0])
    assert Sweep(cache=cache, study="two").run("work", UNITS[:1], lambda _: [2.0]) == [[2.0]]
    assert Sweep(cache=cache, study="one").run("other", UNITS[:1], lambda _: [3.0]) == [[3.0]]
    assert Sweep(cache=cache, study="one").run("work", UNITS[:1], lambda _: [4.0]) == [[1.0]]


@pytest.mark.parametrize("folder", [True, False])
def test_an_interrupted_run_keeps_what_it_computed_and_goes_on(
    tmp_path: Path, folder: bool
) -> None:
    cache = Folder(tmp_path / "cache") if folder else {}
    done: list[Unit] = []

    def stops(unit: Unit) -> list[float]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        return [float(len(done))]

    with pytest.raises(KeyboardInterrupt):
        Sweep(cache=cache).run("work", UNITS, stops)
    later: list[Unit] = []

    def counts(unit: Unit) -> list[float]:
        later.append(unit)
        return [9.0]

    again = Folder(tmp_path / "cache") if folder else cache
    assert Sweep(cache=again).run("work", UNITS, counts) == [[1.0], [2.0], [9.0]]
    assert later == UNITS[2:]


def test_a_damaged_file_of_the_cache_is_computed_again(tmp_path: Path) -> None:
    cache = Folder(tmp_path)
    Sweep(cache=cache).run("work", UNITS, lambda _: [1.0])
    assert len(cache) == 3
    for file, damage in zip(
        sorted(tmp_path.glob("*.json")), ('{"key"', "[]", '{"key": "x"}'), strict=True
    ):
        file.write_text(damage)
    assert Sweep(cache=Folder(tmp_path)).run("work", UNITS, lambda _: [2.0]) == [[2.0]] * 3


def test_a_cache_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot make the cache folder"):
        Folder(tmp_path / "file" / "cache")


def test_progress_is_drawn_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Sweep(progress=True).steps("counting", [1, 2, 3])) == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "counting" in captured.err
