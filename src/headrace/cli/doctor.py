"""`headrace doctor`: what this machine is and can do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.options import add_common_options
from headrace.errors import OptionError
from headrace.units import format_seconds

if TYPE_CHECKING:
    from headrace.planner.calibration_record import Calibration

SUMMARY = "show what this machine is, and measure what it can do"
DESCRIPTION = """
Shows system, versions, processors, memory and the disk of FOLDER, and the rates that were last measured here. With
--calibrate it measures them, in under a minute: the disk by a file of up to 1 GiB in FOLDER, memory, matrix products
and attention, in the shapes of the model in FOLDER if there is one. Runs that stream weights then plan with them.
"""
EPILOG = """
headrace doctor
headrace doctor ./folder --calibrate
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="a model's folder, or another one on the disk in question (default: $HEADRACE_CACHE or ~/.cache/headrace)",
    )
    parser.add_argument("--calibrate", action="store_true", help="measure now, and keep the rates")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto, CUDA where there is one)")
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON; units are in the names of the fields"
    )
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what was found and returns the exit status."""
    from headrace.cli.doctor_tables import show_tables
    from headrace.storage.folders import cache_folder

    folder = cache_folder() if args.folder is None else Path(args.folder).expanduser()
    if args.folder is not None and not folder.is_dir():
        raise OptionError(
            f"no such folder: {args.folder}; expected a model's folder, or any other on the disk to look at"
        )

    from headrace.models.choices import choose_device
    from headrace.planner.calibration_store import load_calibration, save_calibration
    from headrace.planner.disk import describe_disk
    from headrace.planner.machine import describe_machine, identify_machine

    device = choose_device(args.device)
    machine = describe_machine()
    calibration: Calibration | None
    if args.calibrate:
        from headrace.planner.calibrate_machine import calibrate_machine

        calibration = calibrate_machine(folder, device=device, note=_ignore if args.quiet else _say)
        file = save_calibration(calibration)
        if not args.quiet:
            _say(f"measured in {format_seconds(calibration.seconds)}; the rates are kept in {file}")
        disk = describe_disk(folder)
    else:
        disk = describe_disk(folder)
        calibration = load_calibration(identify_machine(str(device)), disk.device_id, _say)
    if args.json:
        found = {
            "machine": dataclasses.asdict(machine),
            "disk": dataclasses.asdict(disk),
            "calibration": None if calibration is None else dataclasses.asdict(calibration),
        }
        print(json.dumps(found, indent=2))
    else:
        show_tables(machine, disk, calibration)
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _ignore(message: str) -> None:
    """Nothing is shown."""
