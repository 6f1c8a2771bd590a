"""Where calibrations are kept between runs: one file per machine and disk. Free of torch."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from headrace.errors import DiskSpaceError
from headrace.planner.calibration_record import Calibration
from headrace.planner.disk import device_id
from headrace.planner.machine import MachineIdentity, identify_machine
from headrace.planner.placement import Rates
from headrace.storage.folders import CALIBRATIONS_FOLDER, cache_folder

_SWEEP_TOKENS = 512
"""Of the matrix rate that stands for a whole sweep's."""


def calibration_file(machine: MachineIdentity, disk_id: int) -> Path:
    """Returns where the rates of this machine and disk are, or would be."""
    key = json.dumps([dataclasses.astuple(machine), disk_id])
    return cache_folder() / CALIBRATIONS_FOLDER / f"{blake2b(key.encode(), digest_size=8).hexdigest()}.json"


def load_calibration(machine: MachineIdentity, disk_id: int, note: Callable[[str], None]) -> Calibration | None:
    """Returns the last calibration of machine and disk; None where there is none, or it is broken: `note` hears."""
    found = _read(calibration_file(machine, disk_id), note)
    return found if found is not None and (found.machine, found.disk_id) == (machine, disk_id) else None


def latest_calibration(machine: MachineIdentity, note: Callable[[str], None]) -> Calibration | None:
    """Returns the last calibration of a machine, whichever of its disks it measured; None where there is none.

    Args:
        note: hears of files that cannot be read.
    """
    files = sorted((cache_folder() / CALIBRATIONS_FOLDER).glob("*.json"))
    found = [calibration for file in files if (calibration := _read(file, note)) is not None]
    return max((one for one in found if one.machine == machine), key=lambda one: one.date, default=None)


def save_calibration(calibration: Calibration) -> Path:
    """Keeps `calibration` in the place of the one before it, and returns where.

    Raises:
        DiskSpaceError: the cache folder cannot be written.
    """
    file = calibration_file(calibration.machine, calibration.disk_id)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(calibration.to_json(), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DiskSpaceError(
            f"{file}: cannot write: {error.strerror}; name another folder with HEADRACE_CACHE=FOLDER"
        ) from error
    return file


def _read(file: Path, note: Callable[[str], None]) -> Calibration | None:
    try:
        return Calibration.from_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        note(f"{file}: ignored, since it cannot be read: {error}; headrace doctor --calibrate writes it anew")
        return None


def calibrated_rates(weights_file: Path, *, dtype: str, num_threads: int, block_bytes: int) -> Rates | None:
    """Returns the rates at which this machine's CPU streams weights from the disk of `weights_file`.

    None where they were never measured; nothing is measured here.

    Args:
        num_threads, block_bytes: how the weights are read.
    """
    try:
        disk_id = device_id(weights_file)
    except OSError:
        return None
    found = load_calibration(identify_machine(), disk_id, logging.getLogger(__name__).warning)
    if found is None:
        return None
    disk = found.disk_rate(num_threads=num_threads, block_bytes=block_bytes)
    matrix = found.matrix_rate(dtype=dtype, num_tokens=_SWEEP_TOKENS)
    return None if disk is None or matrix is None else Rates(below=disk, matrix=matrix)
