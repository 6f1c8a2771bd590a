"""`headrace cache`: what Headrace wrote to disk for itself, and how to be rid of it."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.options import add_common_options
from headrace.cli.parsing import did_you_mean
from headrace.errors import OptionError
from headrace.units import format_bytes

if TYPE_CHECKING:
    from headrace.storage.own_files import OwnEntry

SUMMARY = "list or remove what Headrace keeps on disk"
DESCRIPTION = """
Lists the copies of weights and the calibrations that Headrace keeps in its folder, with their sizes and dates. --clear
removes all of them, or those that are named. Nothing is removed that Headrace did not write.
"""
EPILOG = """
headrace cache
headrace cache --disk /fast/ssd --clear
"""
_PIPED_WIDTH = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--disk",
        metavar="FOLDER",
        help="the folder that was given to run (default: $HEADRACE_CACHE or ~/.cache/headrace)",
    )
    parser.add_argument(
        "--clear", nargs="*", metavar="NAME", help="remove what has these names, or everything where none is given"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the list as JSON; units are in the names of the fields"
    )
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the list, or removes from it, and returns the exit status."""
    from headrace.storage.folders import parse_disk
    from headrace.storage.own_files import own_entries, remove_entries

    folder = parse_disk(args.disk).folder
    if args.disk is not None and not folder.is_dir():
        raise OptionError(f"no such folder: {folder}; give --disk the folder that was given to run")
    entries = own_entries(folder)
    removed: list[OwnEntry] = []
    if args.clear is not None:
        removed = _named(entries, args.clear, folder) if args.clear else entries
        remove_entries(folder, removed)
        entries = [entry for entry in entries if entry not in removed]
    if args.json:
        print(json.dumps(_report(folder, entries, removed), indent=2))
        return 0
    if args.clear is None:
        _show(folder, entries)
        return 0
    for entry in removed:
        print(f"removed {entry.name} ({entry.what}), {format_bytes(entry.num_bytes)}")
    if not args.quiet:
        freed = format_bytes(sum(entry.num_bytes for entry in removed))
        print(f"{freed} of {folder} are free again" if removed else _nothing(folder), file=sys.stderr)
    return 0


def _named(entries: list[OwnEntry], names: list[str], folder: Path) -> list[OwnEntry]:
    """The entries with these names.

    Raises:
        OptionError: there is none with one of them; nothing is to be removed then.
    """
    known = {entry.name: entry for entry in entries}
    for name in names:
        if name not in known:
            raise OptionError(
                f"{name!r} is nothing that Headrace wrote to {folder}, so it stays, as does the rest"
                f"{did_you_mean(name, known)}; headrace cache lists what is there"
            )
    return [known[name] for name in dict.fromkeys(names)]


def _report(folder: Path, entries: list[OwnEntry], removed: list[OwnEntry]) -> dict[str, object]:
    return {
        "folder": str(folder),
        "total_bytes": sum(entry.num_bytes for entry in entries),
        "entries": [_entry(entry) for entry in entries],
        "removed_bytes": sum(entry.num_bytes for entry in removed),
        "removed": [_entry(entry) for entry in removed],
    }


def _entry(entry: OwnEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "what": entry.what,
        "num_files": len(entry.files),
        "size_bytes": entry.num_bytes,
        "written": _date(entry).isoformat(timespec="seconds"),
    }


def _show(folder: Path, entries: list[OwnEntry]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not entries:
        print(_nothing(folder))
        return
    table = Table(title=str(folder), title_justify="left", show_footer=True)
    table.add_column("name", "total", overflow="fold")
    table.add_column("what", overflow="fold")
    table.add_column("files", str(sum(len(entry.files) for entry in entries)), justify="right")
    table.add_column("size", format_bytes(sum(entry.num_bytes for entry in entries)), justify="right", no_wrap=True)
    table.add_column("written (UTC)", no_wrap=True)
    for entry in entries:
        size, date = format_bytes(entry.num_bytes), f"{_date(entry):%Y-%m-%d %H:%M}"
        table.add_row(entry.name, entry.what, str(len(entry.files)), size, date)
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def _nothing(folder: Path) -> str:
    return f"{folder} holds nothing that Headrace wrote"


def _date(entry: OwnEntry) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(entry.written_seconds, datetime.UTC)
