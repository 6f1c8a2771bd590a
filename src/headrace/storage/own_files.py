"""What Headrace wrote into a folder, and how it is removed again. Nothing else there is ever touched."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import psutil

from headrace.errors import DiskSpaceError
from headrace.storage.folders import CALIBRATIONS_FOLDER, WEIGHTS_FOLDER

_COPY = re.compile(r"[0-9a-f]{32}\.safetensors")
_CALIBRATION = re.compile(r"[0-9a-f]{16}\.json")
_UNFINISHED = re.compile(r"(?:[0-9a-f]{16}|[0-9a-f]{32})\.(?P<pid>\d+)\.tmp")
_LARGEST_HEADER = 1 << 24

Kind = Literal["weights", "calibration", "unfinished"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnEntry:
    """Files that belong together.

    Attributes:
        name: unique in the folder, and the same every time.
        what: the model whose weights these are, or the processor and the folder that were measured.
        num_bytes: of all files.
        written_seconds: since the epoch, when the last of them was written.
    """

    name: str
    kind: Kind
    what: str
    files: tuple[Path, ...]
    num_bytes: int
    written_seconds: float


def own_entries(folder: Path) -> list[OwnEntry]:
    """Lists copies of weights, one entry per model and dtype, then calibrations, then what a process left half written.

    Raises:
        DiskSpaceError: the folder cannot be read.
    """
    groups: dict[tuple[Kind, str, str], list[tuple[Path, int, float]]] = {}
    try:
        for subfolder in (WEIGHTS_FOLDER, CALIBRATIONS_FOLDER):
            for file, num_bytes, written in _regular_files(folder / subfolder):
                described = _describe(file)
                if described is not None:
                    groups.setdefault(described, []).append((file, num_bytes, written))
    except OSError as error:
        raise DiskSpaceError(f"{folder}: cannot read: {error.strerror}; check who may read it") from error
    order: list[Kind] = ["weights", "calibration", "unfinished"]
    return [
        OwnEntry(
            name=name,
            kind=kind,
            what=what,
            files=tuple(file for file, _, _ in members),
            num_bytes=sum(num_bytes for _, num_bytes, _ in members),
            written_seconds=max(written for _, _, written in members),
        )
        for (kind, name, what), members in sorted(groups.items(), key=lambda group: (order.index(group[0][0]), group))
    ]


def remove_entries(folder: Path, entries: Iterable[OwnEntry]) -> None:
    """Removes the entries' files, and the folders that this leaves empty. A process that has them open can go on.

    Raises:
        DiskSpaceError: a file cannot be removed; those before it are gone.
    """
    for entry in entries:
        for file in entry.files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise DiskSpaceError(f"{file}: cannot remove: {error.strerror}; check who may write there") from error
    for subfolder in (WEIGHTS_FOLDER, CALIBRATIONS_FOLDER):
        with suppress(OSError):  # it is not there, or not empty
            (folder / subfolder).rmdir()


def copy_metadata(model: str, dtype: str) -> dict[str, str]:
    """Returns what the header of a copy of weights says about it, for `own_entries`."""
    return {"headrace_model": model, "headrace_dtype": dtype}


def _regular_files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    if folder.is_symlink() or not folder.is_dir():
        return
    for file in sorted(folder.iterdir()):
        with suppress(FileNotFoundError):  # it was removed meanwhile
            state = file.lstat()
            if stat.S_ISREG(state.st_mode):
                yield file, state.st_size, state.st_mtime


def _describe(file: Path) -> tuple[Kind, str, str] | None:
    """Kind, name and description of the entry that a file belongs to; None for what is not ours, or in the making."""
    if file.parent.name == WEIGHTS_FOLDER and _COPY.fullmatch(file.name):
        metadata = _copy_header(file)
        model, dtype = metadata.get("headrace_model"), metadata.get("headrace_dtype")
        if not isinstance(model, str) or not isinstance(dtype, str):
            return "weights", f"unknown-{file.name[:8]}", "a copy that says no model, or is damaged"
        digest = blake2b(f"{model}\n{dtype}".encode(), digest_size=2).hexdigest()
        short = re.sub(r"[^A-Za-z0-9._]+", "-", Path(model).name).strip("-")
        return "weights", f"{short}-{digest}", f"{model} in {dtype}"
    if file.parent.name == CALIBRATIONS_FOLDER and _CALIBRATION.fullmatch(file.name):
        return "calibration", f"calibration-{file.name[:8]}", _calibrated(file)
    unfinished = _UNFINISHED.fullmatch(file.name)
    if unfinished and not psutil.pid_exists(int(unfinished["pid"])):
        return "unfinished", f"unfinished-{file.name[:8]}", f"left by process {unfinished['pid']}, which has ended"
    return None


def _copy_header(file: Path) -> dict[str, object]:
    with suppress(OSError, ValueError), file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length <= _LARGEST_HEADER:
            header = json.loads(stream.read(length))
            metadata = header.get("__metadata__") if isinstance(header, dict) else None
            if isinstance(metadata, dict):
                return metadata
    return {}


def _calibrated(file: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return f"{found['machine']['cpu']}, {found['machine']['device']}, {found['folder']}"
    return "rates that cannot be read"
