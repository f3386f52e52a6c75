"""The C library: built, found, refused, and run under sanitizers."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpsearch.kernels import native
from tests.conftest import ROOT, require
from tests.kernels import fuzz

COMPILER = os.environ.get("CC") or "gcc"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing that a test found or made is found by the next."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("compiler", shutil.which(COMPILER), "no C compiler")
    return native.build(
        tmp_path_factory.mktemp("native") / "packed.so", "-Wall", "-Wextra", "-Werror"
    )


def test_every_path_of_this_cpu_equals_the_reference_on_random_shapes(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzz.main(str(built), 60)
    print(capsys.readouterr().out)


@pytest.mark.slow
def test_sanitizers_find_nothing_on_random_shapes(tmp_path: Path) -> None:
    require("compiler", shutil.which(COMPILER), "no C compiler")
    runtimes = [
        subprocess.run(
            [COMPILER, f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    require(
        "sanitizers", all(Path(name).is_absolute() for name in runtimes), f"{COMPILER} has none"
    )
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
    library = native.build(tmp_path / "packed.so", *flags)
    environment = os.environ | {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.fuzz", str(library), "100"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100 cases on portable")


def test_without_a_compiler_the_message_says_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(
        RuntimeError, match="no C compiler found, looked for cc, gcc, clang; install"
    ):
        native.build(tmp_path / "packed.so")
    monkeypatch.setenv("CC", "icx")
    with pytest.raises(RuntimeError, match="looked for icx; install"):
        native.build(tmp_path / "packed.so")


def test_a_compiler_that_refuses_is_quoted(tmp_path: Path) -> None:
    require("compiler", shutil.which(COMPILER), "no C compiler")
    with pytest.raises(RuntimeError, match="-no-such-flag"):
        native.build(tmp_path / "packed.so", "-no-such-flag")
    assert not (tmp_path / "packed.so").exists()


def test_where_none_was_built_the_message_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "installed", list)
    monkeypatch.setattr(native, "built", lambda: tmp_path / "packed.so")
    with pytest.raises(
        RuntimeError, match=r"no C compiler was there .*; run python -m mpsearch\.kernels"
    ):
        native.library()


def test_a_library_of_other_sources_is_not_used(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "installed", lambda: [built])
    assert native.library().packed_source().decode() == native.digest()
    native.library.cache_clear()
    monkeypatch.setattr(native, "digest", lambda: "0123456789abcdef")
    with pytest.raises(
        RuntimeError, match=r"packed.so was made from \w{16}, not 0123456789abcdef; run"
    ):
        native.library()


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "packed.so").write_text("no library")
    with pytest.raises(RuntimeError, match=r"cannot load .*packed\.so: .* run python -m"):
        native.opened(tmp_path / "packed.so")
