"""The C of ``native/`` as a library: found where it was installed or built, never built unasked.

``python -m mpsearch.kernels.native`` builds it where an installation could not. A library made from
other sources than those beside this module is not used: each says what it was made from.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).with_name("native")
FLAGS = ("-O3", "-std=c11", "-ffp-contract=off")  # setup.py gives the same
PATHS = ("portable", "avx2", "avx512")  # in the order of the library's own numbers
_ASK = "run python -m mpsearch.kernels.native to build it"


class Matrix(Structure):
    """A weight in memory: ``matrix`` of layout.h."""

    _fields_ = (
        *((n, c_int64) for n in ("rows", "columns", "group", "bits", "twice", "brain")),
        *((n, c_void_p) for n in ("codes", "scales", "zeros")),
        ("zero", c_int64),
    )


class Rule(Structure):
    """How an input becomes codes: ``rule`` of packed.c."""

    _fields_ = (("inverse", c_float), ("zero", c_int32), ("low", c_int32), ("high", c_int32))


class Inputs(Structure):
    """Inputs as codes: ``inputs`` of layout.h."""

    _fields_ = (("tokens", c_int64), *((n, c_void_p) for n in ("codes", "sums", "scales")))


class Outputs(Structure):
    """Where results go: ``outputs`` of layout.h."""

    _fields_ = tuple((n, c_void_p) for n in ("y", "bias", "sums"))


def digest() -> str:
    """What tells these sources from others."""
    files = sorted(SOURCES.glob("*.[ch]"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def installed() -> list[Path]:
    """Where an installation puts the library."""
    return sorted(Path(__file__).parent.glob("_packed*.so"))


def built() -> Path:
    """Where :func:`build` puts the library, unless told: the user's cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "mpsearch" / f"packed-{platform.machine()}-{digest()}.so"


def build(to: Path | None = None, *flags: str) -> Path:
    """Compile the sources, with more flags where given; the library's path.

    Raises:
        RuntimeError: No compiler, or one that does not take these sources.
    """
    to = to or built()
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made = Path(folder) / to.name
        source = f'-DSOURCE="{digest()}"'
        command = [compiler(), *FLAGS, "-shared", "-fPIC", source, *flags, "-o", str(made)]
        done = subprocess.run(  # noqa: S603  (the compiler this machine names)
            [*command, str(SOURCES / "packed.c")], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
        made.replace(to)  # at once: another process may be loading it
    return to


def compiler() -> str:
    """The C compiler's path: what CC names, else cc, gcc or clang."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for found in map(shutil.which, names):
        if found:
            return found
    raise RuntimeError(
        f"cannot build the kernels of cpu-packed: no C compiler found, looked for"
        f" {', '.join(names)}; install gcc or clang, or name one in CC"
    )


@cache
def library() -> ctypes.CDLL:
    """The library, its functions declared.

    Raises:
        RuntimeError: There is none, or only ones made from other sources.
    """
    stale = []
    for path in filter(Path.is_file, (*installed(), built())):
        found = opened(path)
        made_from = found.packed_source().decode()
        if made_from == digest():
            return found
        stale.append(f"{path} was made from {made_from}, not {digest()}")
    why = "; ".join(stale) or "no C compiler was there when mpsearch was installed"
    raise RuntimeError(f"cpu-packed has no kernels here: {why}; {_ASK}")


def opened(path: Path) -> ctypes.CDLL:
    """A library, its functions declared; ``RuntimeError`` where it cannot be loaded."""
    try:
        found = ctypes.CDLL(str(path))
        found.packed_source.restype = c_char_p
        found.packed_path.restype = found.packed_codes.restype = c_int64
        found.packed_weights.argtypes = [POINTER(Matrix), c_void_p, c_void_p]
        found.packed_weights.restype = found.packed_rows.restype = None
        found.packed_codes.argtypes = [
            *(POINTER(Matrix), POINTER(Rule), c_void_p, c_int64),
            *(c_void_p, c_void_p, c_void_p, c_int64),
        ]
        found.packed_rows.argtypes = [
            *(POINTER(Matrix), POINTER(Inputs), POINTER(Outputs)),
            *(c_int64, c_int64, c_int64),
        ]
    except (AttributeError, OSError) as error:
        raise RuntimeError(f"cannot load {path}: {error}; {_ASK}") from None
    return found


if __name__ == "__main__":
    print(build())  # noqa: T201
