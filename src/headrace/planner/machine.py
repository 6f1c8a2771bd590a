"""What this machine is: system, versions, processors, memory. Free of torch until it is asked about GPUs or threads."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from headrace.storage.process_memory import available_bytes, container_limit_bytes

_CPU_INFO = Path("/proc/cpuinfo")
_INSTRUCTION_SETS = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "bf16": {"avx512_bf16", "bf16"},
    "amx": {"amx_tile"},
    "neon": {"asimd"},
    "sve": {"sve"},
    "i8mm": {"i8mm"},
}
"""Ours, and the system's names for each, on x86 and on ARM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """An accelerator that torch can use."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineIdentity:
    """What measured rates hold for.

    Attributes:
        num_cores: that this process may use.
        num_threads: that torch uses for one operation.
        device: that computes: `cpu`, or the name of a GPU.
        kernels: instruction set of the C++ library; None where torch does its work.
    """

    cpu: str
    num_cores: int
    num_threads: int
    torch: str
    device: str
    kernels: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """See `describe_machine`.

    Attributes:
        instruction_sets: of those that matter to matrix products, the ones that are there.
        memory_free_bytes: what this process could still take, container included.
        container_limit_bytes: None where there is none below the machine's own memory.
        kernels: instruction set of the C++ library that is used; None where torch does its work.
    """

    system: str
    python: str
    headrace: str
    torch: str
    transformers: str
    cpu: str
    instruction_sets: tuple[str, ...]
    kernels: str | None
    num_cores: int
    num_threads: int
    memory_total_bytes: int
    memory_free_bytes: int
    container_limit_bytes: int | None
    gpus: tuple[Gpu, ...]


def describe_machine() -> Machine:
    """Looks at the machine; imports torch to do so."""
    import torch

    from headrace.kernels.library import instruction_set

    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        headrace=_version("headrace"),
        torch=_version("torch"),
        transformers=_version("transformers"),
        cpu=cpu_name(),
        instruction_sets=instruction_sets(),
        kernels=instruction_set(),
        num_cores=num_cores(),
        num_threads=torch.get_num_threads(),
        memory_total_bytes=psutil.virtual_memory().total,
        memory_free_bytes=available_bytes(),
        container_limit_bytes=container_limit_bytes(),
        gpus=tuple(
            Gpu(
                name=torch.cuda.get_device_name(index),
                memory_bytes=torch.cuda.get_device_properties(index).total_memory,
            )
            for index in range(torch.cuda.device_count())
        ),
    )


def identify_machine(device: str = "cpu") -> MachineIdentity:
    """Returns what rates that are measured on `device`, in torch's spelling, hold for; imports torch."""
    import torch

    from headrace.kernels.library import instruction_set

    return MachineIdentity(
        cpu=cpu_name(),
        num_cores=num_cores(),
        num_threads=torch.get_num_threads(),
        torch=_version("torch"),
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        kernels=instruction_set(),
    )


def cpu_name() -> str:
    """Returns the processor's model as the system names it."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """Returns the instruction sets that matter and are there."""
    flags = set(f"{_cpu_info('flags')} {_cpu_info('Features')}".split())
    return tuple(name for name, spellings in _INSTRUCTION_SETS.items() if flags & spellings)


def num_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _cpu_info(field: str) -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")
