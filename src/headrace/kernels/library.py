"""Loads the C++ library for the best instruction set that this processor has."""

from __future__ import annotations

import ctypes
import functools
import os

import torch

from headrace.kernels.build import INSTRUCTION_SETS, library_file

CHOICE = "HEADRACE_KERNELS"
"""Environment variable: one of `INSTRUCTION_SETS`, or `none` to leave everything to torch."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns it, or None where there is none for this processor or `HEADRACE_KERNELS=none`.

    It shares torch's pool of OpenMP threads, whose library is in the process already.
    """
    name = instruction_set()
    return None if name is None else load(name)


def instruction_set() -> str | None:
    """The instruction set of `library()`."""
    wanted = os.environ.get(CHOICE)
    return next((name for name in usable() if wanted in (None, name)), None)


def load(name: str) -> ctypes.CDLL:
    """Loads the library for one instruction set of `usable()`."""
    return ctypes.CDLL(str(library_file(name)))


def usable() -> list[str]:
    """The instruction sets that are built for, and that this processor has; the best first."""
    return [name for name in INSTRUCTION_SETS if library_file(name).exists() and _has(name)]


def _has(name: str) -> bool:
    best = torch.backends.cpu.get_cpu_capability()
    match name:
        case "avx512_bf16":
            return best == "AVX512" and torch.cpu._is_vnni_supported() and torch.cpu._is_avx512_bf16_supported()
        case "avx512_vnni":
            return best == "AVX512" and torch.cpu._is_vnni_supported()
        case "avx512":
            return best == "AVX512"
        case _:
            return best in ("AVX512", "AVX2")
