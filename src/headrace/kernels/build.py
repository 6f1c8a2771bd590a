"""Compiles the C++ library for each instruction set: when Headrace is installed, or `python -m headrace.kernels.build`.

Only the standard library and a C++ compiler are used: hatch_build.py runs this file before Headrace can be imported.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCES = (
    "attention.cpp",
    "int4_linear.cpp",
    "int8_linear.cpp",
    "kv_write.cpp",
    "linear.cpp",
    "pointwise.cpp",
    "replay.cpp",
)
HEADERS = (
    "ahead.h",
    "attention.h",
    "blocks.h",
    "bytes.h",
    "codes.h",
    "column_weights.h",
    "floats.h",
    "interleaved_weights.h",
    "kv_write.h",
    "linear.h",
    "packed_linear.h",
    "packing.h",
    "pages.h",
    "panels.h",
    "parties.h",
    "pointwise.h",
    "results.h",
    "replay.h",
    "row_weights.h",
    "scratch.h",
    "tiles.h",
    "types.h",
    "weights.h",
    "words.h",
)
INSTRUCTION_SETS = {
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
    "avx512_vnni": ("-march=x86-64-v4", "-mavx512vnni"),
    "avx512": ("-march=x86-64-v4",),
    "avx2": ("-march=x86-64-v3",),
}
"""The best first, and the compiler's options for the processors that have it."""
# Products and sums become one operation where the code says so, and nowhere else: with and without AVX-512 the same.
# GCC 12 warns of its own headers here.
OPTIONS = (
    "-O3",
    "-ffp-contract=off",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-mprfchw",
    "-Wall",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
)
FOLDER = Path(__file__).resolve().parent


class BuildError(Exception):
    """The library cannot be built here; Headrace runs without it."""


def library_file(instruction_set: str) -> Path:
    """Where the library for `instruction_set` is, once it is built of the sources as they are now."""
    content = b"".join((FOLDER / name).read_bytes() for name in (*SOURCES, *HEADERS, Path(__file__).name))
    return FOLDER / f"headrace_{instruction_set}_{hashlib.sha256(content).hexdigest()[:8]}.so"


def build() -> list[Path]:
    """Compiles what is missing, removes what older sources gave, and returns the libraries.

    Raises:
        BuildError: not an x86-64 Linux, no compiler, or it failed.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BuildError(f"kernels are written for x86-64 Linux, this is {platform.machine()} {platform.system()}")
    compiler = find_compiler()
    libraries = {library_file(name): options for name, options in INSTRUCTION_SETS.items()}
    for library, options in libraries.items():
        if not library.exists():
            _compile(compiler, options, library)
    for old in FOLDER.glob("headrace_*.so"):
        if old not in libraries:
            old.unlink()
    return list(libraries)


def find_compiler() -> str:
    """The C++ compiler: `CXX`, else c++, g++ or clang++.

    Raises:
        BuildError: there is none.
    """
    compiler = next(filter(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise BuildError("no C++ compiler (Debian, Ubuntu: apt install g++)")
    return compiler


def _compile(compiler: str, processor: Sequence[str], library: Path) -> None:
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [
        compiler,
        *OPTIONS,
        *processor,
        *(str(FOLDER / name) for name in SOURCES),
        "-o",
        str(unfinished),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        unfinished.unlink(missing_ok=True)
        raise BuildError(f"{' '.join(command)}\n{answer.stderr}")
    unfinished.replace(library)


if __name__ == "__main__":
    try:
        print(*build(), sep="\n")
    except BuildError as error:
        sys.exit(f"headrace.kernels: {error}")
