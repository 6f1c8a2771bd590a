"""Memory of the device that computes: an accelerator's own, or the host's where there is none."""

from __future__ import annotations

from collections.abc import Callable

import torch

from headrace.storage.process_memory import available_bytes, peak_growth_bytes, resident_bytes

DEFAULT_SHARE = 0.8
"""Part of the memory that is free at the start which is taken when the user names no budget."""


def device_available_bytes(device: torch.device) -> int:
    """Returns what could still be taken on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def default_limit_bytes(device: torch.device) -> int:
    """Returns a budget for this process where the user names none."""
    own = resident_bytes() if device.type == "cpu" else 0
    return int(DEFAULT_SHARE * (device_available_bytes(device) + own))


def gpu_held_bytes(device: torch.device) -> int:
    """Returns what torch holds of a GPU's memory for this process, the workspaces of its libraries included."""
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def device_peak_growth_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """Runs `run` and returns by how much memory on `device` rose above its value before, at the highest."""
    if device.type != "cuda":
        return peak_growth_bytes(run)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    run()
    return max(0, torch.cuda.max_memory_reserved(device) - before)
