"""The tiers that an engine has: a device that computes, the host, and a disk; and the budgets of the first two."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.engine.options import EngineOptions
from headrace.errors import OptionError
from headrace.models.choices import choose_device
from headrace.storage.budget import Budget
from headrace.storage.cuda_link import CudaLink
from headrace.storage.cuda_runtime import CudaRuntime
from headrace.storage.device_memory import default_limit_bytes, gpu_held_bytes
from headrace.storage.folders import DiskTier, parse_disk
from headrace.storage.link import Link
from headrace.storage.process_memory import release_freed_memory, resident_bytes
from headrace.storage.simulated_device import SimulatedLink, parse_simulated
from headrace.storage.throttle import Throttle
from headrace.trace import NoTrace, Trace, TraceFile

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiers:
    """Where bytes can be.

    Attributes:
        device: that computes, as torch names it; the CPU for a simulated one.
        device_budget: the host's own where the CPU computes.
        link: between host and device; None where these are one.
        throttle: on what sweeps read from disk and write there.
        is_simulated: the device's memory is the host's, too, and is counted for both.
    """

    device: torch.device
    host_budget: Budget
    device_budget: Budget
    disk: DiskTier
    link: Link | None
    throttle: Throttle | None
    trace: Trace
    is_simulated: bool = False

    @property
    def are_one(self) -> bool:
        """Whether host and device share their memory."""
        return self.device_budget is self.host_budget

    def host_resident_bytes(self) -> int:
        """What the process uses of the host's memory; a simulated device's is not part of it."""
        return resident_bytes() - (self.device_budget.charged_bytes if self.is_simulated else 0)

    def settle(self) -> None:
        """Charges what torch and its libraries have brought in since the start and keep."""
        release_freed_memory()
        self.host_budget.settle("libraries", self.host_resident_bytes())
        if self.device.type == "cuda":
            self.device_budget.settle("libraries", gpu_held_bytes(self.device))

    def __str__(self) -> str:
        return "a simulated device" if self.is_simulated else str(self.device)


def open_tiers(options: EngineOptions, opened: ExitStack) -> Tiers:
    """Returns the tiers that `options` describe; what has to be closed is left to `opened`.

    Raises:
        OptionError: an option means nothing here.
        PlatformError: there is no such device.
    """
    trace: Trace = NoTrace() if options.trace is None else opened.enter_context(TraceFile(Path(options.trace)))
    simulated = parse_simulated(options.device)
    device = CPU if simulated is not None else choose_device(options.device)
    _refuse_what_has_no_effect(options, has_gpu=device.type != "cpu", is_simulated=simulated is not None)
    limit = options.memory_bytes or default_limit_bytes(CPU)
    host = device_budget = Budget(tier="host", limit_bytes=limit, option="--memory")
    link: Link | None = None
    if simulated is not None:
        link = SimulatedLink(simulated, trace)
        device_budget = Budget(
            tier="device", limit_bytes=simulated.memory_bytes, option="--device simulated with a SIZE of"
        )
    elif device.type != "cpu":
        link = CudaLink(CudaRuntime(device), pins=options.pin_memory, trace=trace)
        limit = options.gpu_memory_bytes or default_limit_bytes(device)
        device_budget = Budget(tier="device", limit_bytes=limit, option="--gpu-memory")
    if link is not None:
        opened.callback(link.close)
    return Tiers(
        device=device,
        host_budget=host,
        device_budget=device_budget,
        disk=parse_disk(options.disk),
        link=link,
        throttle=None if options.disk_bytes_per_second is None else Throttle(options.disk_bytes_per_second),
        trace=trace,
        is_simulated=simulated is not None,
    )


def _refuse_what_has_no_effect(options: EngineOptions, *, has_gpu: bool, is_simulated: bool) -> None:
    if not has_gpu and options.gpu_memory_bytes is not None:
        raise OptionError(
            "--gpu-memory (or max_memory for GPU 0) was given, but the model runs on the CPU; give --memory, or "
            "--device cuda"
        )
    if not has_gpu and not options.pin_memory:
        raise OptionError("pin_memory is False, but there is no GPU, and so nothing to pin; leave it out")
    if has_gpu or is_simulated:
        return
    if options.activations_on_device not in (None, 1):
        raise OptionError(
            f"activations_on_device is {options.activations_on_device}, but the model runs in the memory of the CPU, "
            "where all activations are; leave it out"
        )
    if options.attend_on_host is not None:
        raise OptionError(
            f"attend_on_host is {options.attend_on_host}, but the model runs on the CPU, which attends wherever the KV "
            "lies; leave it out"
        )
    for name, share in (("weights_on_host", options.weights_on_host), ("kv_on_host", options.kv_on_host)):
        if share is not None:
            raise OptionError(
                f"{name} is {share}, but the model runs in the memory of the CPU, which is the host's; leave it "
                f"out, and say with {name.replace('host', 'device')} how much is in memory"
            )
