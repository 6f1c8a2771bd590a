"""Rates of this machine."""

from __future__ import annotations

import pytest
import torch

from headrace.planner.calibration import calibrate
from headrace.storage.device_memory import device_available_bytes
from headrace.storage.process_memory import peak_growth_bytes
from headrace.units import MIB

CPU = torch.device("cpu")


def test_rates_are_those_of_a_machine() -> None:
    found = calibrate(CPU, torch.float32)
    assert found.device == "cpu"
    assert 1e8 < found.matrix_rate < 1e15
    assert 1e8 < found.memory_rate < 1e13
    assert 0 < found.memory_bytes <= 2 * device_available_bytes(CPU)


def test_measuring_takes_about_its_weights() -> None:
    assert peak_growth_bytes(lambda: calibrate(CPU, torch.float32)) < 600 * MIB


@pytest.mark.gpu
def test_a_gpu_is_measured_as_well() -> None:
    found = calibrate(torch.device("cuda"), torch.bfloat16)
    assert found.matrix_rate > 1e12 and found.memory_rate > 5e10
