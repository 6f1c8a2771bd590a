"""Memory as transformers spells it (`max_memory`, `offload_folder`), turned into Headrace's options. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from headrace.errors import OptionError
from headrace.units import parse_bytes

Size = str | int
"""Bytes, or text such as `6GiB`."""


class MemoryOptions(TypedDict):
    """The options of `LLM` about memory, in bytes; None where nothing was said."""

    memory: int | None
    gpu_memory: int | None
    disk: str | None


def memory_options(
    max_memory: Mapping[int | str, Size] | None = None,
    offload_folder: str | Path | None = None,
    *,
    memory: Size | None = None,
    gpu_memory: Size | None = None,
    disk: str | Path | None = None,
) -> MemoryOptions:
    """Returns `LLM`'s own options for what was said in either spelling, as for `LLM(model, **memory_options(...))`.

    Args:
        max_memory: GPU 0 under `0`, main memory under `"cpu"`.
        offload_folder: where weights may be written.

    Raises:
        OptionError: something is said in both spellings, a size is none, or more than one GPU is named.
    """
    if max_memory is not None and (memory is not None or gpu_memory is not None):
        own = "memory" if memory is not None else "gpu_memory"
        raise OptionError(f"max_memory and {own} were both given; expected one of the two spellings")
    if offload_folder is not None and disk is not None:
        raise OptionError("offload_folder and disk were both given; expected one of the two spellings")
    limits = {} if max_memory is None else {_name(key): _positive(key, size) for key, size in max_memory.items()}
    folder = disk if offload_folder is None else offload_folder
    return MemoryOptions(
        memory=limits.get("memory", _bytes(memory)),
        gpu_memory=limits.get("gpu_memory", _bytes(gpu_memory)),
        disk=None if folder is None else str(folder),
    )


def _name(key: int | str) -> str:
    if key == "cpu":
        return "memory"
    if key == "disk":
        raise OptionError("max_memory limits 'disk'; expected only 0 and 'cpu' there; give disk='FOLDER:SIZE' instead")
    if isinstance(key, str):
        raise OptionError(f"max_memory names {key!r}; expected 0 for the GPU and 'cpu' for main memory")
    if key != 0:
        raise OptionError(f"max_memory names GPU {key}; this version uses one GPU, number 0; leave the others out")
    return "gpu_memory"


def _positive(key: int | str, size: Size) -> int:
    num_bytes = _bytes(size)
    if num_bytes is None or num_bytes < 1:
        raise OptionError(f"max_memory[{key!r}] is {size!r}; expected a size such as 10GiB, or no such key")
    return num_bytes


def _bytes(size: Size | None) -> int | None:
    return parse_bytes(size) if isinstance(size, str) else size
