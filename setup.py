"""The C kernels of cpu-packed, where there is a compiler; all else is in pyproject.toml.

The library has no Python in it: mpsearch.kernels.native loads it with ctypes. Without a compiler
the build goes on, and the backend says what it lacks.
"""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("mpsearch/kernels/native")
FILES = sorted(FOLDER.glob("*.[ch]"))
DIGEST = hashlib.sha256(b"".join(file.read_bytes() for file in FILES)).hexdigest()[:16]

setup(
    ext_modules=[
        Extension(
            "mpsearch.kernels._packed",
            [str(FOLDER / "packed.c")],
            depends=[str(file) for file in FILES],
            define_macros=[("SOURCE", f'"{DIGEST}"')],
            extra_compile_args=["-O3", "-std=c11", "-ffp-contract=off", "-g0"],
            optional=True,
        )
    ]
)
