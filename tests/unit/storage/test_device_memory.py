"""Memory of the device that computes."""

from __future__ import annotations

import pytest
import torch

from headrace.storage import device_memory
from headrace.storage.device_memory import (
    default_limit_bytes,
    device_available_bytes,
    device_peak_growth_bytes,
    gpu_held_bytes,
)
from headrace.storage.process_memory import available_bytes
from headrace.units import GIB, MIB

CPU = torch.device("cpu")


def test_without_an_accelerator_the_host_s_memory_is_the_device_s() -> None:
    assert device_available_bytes(CPU) == pytest.approx(available_bytes(), rel=0.2)
    growth = device_peak_growth_bytes(CPU, lambda: torch.ones(64 * MIB, dtype=torch.uint8))
    assert 60 * MIB < growth < 80 * MIB


def test_a_budget_that_nobody_names_is_a_share_of_what_was_free_before_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_memory, "available_bytes", lambda: 9 * GIB)
    monkeypatch.setattr(device_memory, "resident_bytes", lambda: 1 * GIB)
    assert default_limit_bytes(CPU) == 8 * GIB


@pytest.mark.gpu
def test_what_torch_holds_of_a_gpu_comes_and_goes_with_its_tensors() -> None:
    device = torch.device("cuda")
    before = gpu_held_bytes(device)
    tensor = torch.ones(64 * MIB, dtype=torch.uint8, device=device)
    assert before + 64 * MIB <= gpu_held_bytes(device) < before + 128 * MIB
    del tensor
    assert gpu_held_bytes(device) == before


@pytest.mark.gpu
def test_growth_on_a_gpu_is_what_torch_reserves_there() -> None:
    device = torch.device("cuda")
    before = device_available_bytes(device)
    growth = device_peak_growth_bytes(device, lambda: torch.ones(64 * MIB, dtype=torch.uint8, device=device))
    assert 64 * MIB <= growth < 128 * MIB
    assert device_peak_growth_bytes(device, lambda: None) == 0
    assert 0 < default_limit_bytes(device) <= before
