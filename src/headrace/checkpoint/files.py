"""Opens the files of a checkpoint's folder: plain ones that lie in it, and JSON of a bounded size.

A link in the folder is followed where it stays inside, or leads to the `blobs` of a snapshot of the hub's cache, which
keeps every file that way. Any other link is refused, so that a folder from elsewhere cannot have files of this machine
read as its own. The folder itself may be reached over any link.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import stat
from pathlib import Path
from typing import BinaryIO

from headrace.errors import CheckpointNotFoundError, CorruptCheckpointError, UnsafeCheckpointError
from headrace.units import format_bytes

MAX_JSON_BYTES = 100_000_000
"""The most that is read of a file with JSON, or of a header: the reference implementation's bound for headers."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "bpe.codes",
    "word_shape.json",
    "word_pronunciation.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What transformers makes a tokenizer and its chat template of, as far as it lies in a folder."""

DOWNLOAD_AGAIN = "download or copy the file again"


def check_place(file: Path, folder: Path) -> None:
    """Raises unless `file` is there and its links lead to where the files of the checkpoint in `folder` lie.

    Raises:
        CheckpointNotFoundError: no such file, or a link that leads to none.
        UnsafeCheckpointError: a link out of the folder.
    """
    try:
        target = os.path.realpath(file, strict=True)
    except OSError as error:
        raise _not_found(file, error) from error
    home = Path(os.path.realpath(folder))
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(Path(target).is_relative_to(allowed) for allowed in homes):
        raise UnsafeCheckpointError(
            f"{file} is a link to {target}, out of the checkpoint's folder; expected a file that lies in it; "
            "copy the file there, or make the whole folder a link"
        )


def open_plain(file: Path) -> BinaryIO:
    """Opens a file to read it; the caller closes it. Pipes and devices are refused and not waited for.

    Raises:
        CheckpointNotFoundError: no such file, or a link that leads to none.
        CorruptCheckpointError: it is no plain file, or may not be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for someone who writes to it.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_found(file, error) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_found(file, error) from error
        raise CorruptCheckpointError(f"{file}: cannot open it: {error.strerror}; {DOWNLOAD_AGAIN}") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise CorruptCheckpointError(f"{file} is {what}; expected a plain file; {DOWNLOAD_AGAIN}")


def read_json(file: Path) -> dict[str, object]:
    """Returns the JSON object that `file` holds.

    Raises:
        CheckpointNotFoundError: there is no such file.
        CorruptCheckpointError: it holds anything else, or more than `MAX_JSON_BYTES`.
    """
    with open_plain(file) as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        check_size(file, num_bytes)
        try:
            content = stream.read(num_bytes)
        except OSError as error:
            raise CorruptCheckpointError(f"{file}: cannot read it: {error.strerror}; {DOWNLOAD_AGAIN}") from error
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        what = describe_wrong_start(content[:64]) or f"not JSON ({error}); {DOWNLOAD_AGAIN}"
        raise CorruptCheckpointError(f"{file}: {what}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{file}: holds {reprlib.repr(value)}; expected a JSON object; {DOWNLOAD_AGAIN}")
    return value


def check_size(file: Path, num_bytes: int) -> None:
    """Raises CorruptCheckpointError where settings of `num_bytes` are too large to be any."""
    if num_bytes > MAX_JSON_BYTES:
        raise CorruptCheckpointError(
            f"{file}: {format_bytes(num_bytes)}, larger than such a file may be ({format_bytes(MAX_JSON_BYTES)}); "
            f"{DOWNLOAD_AGAIN}"
        )


def describe_wrong_start(start: bytes) -> str | None:
    """Says what a file of a checkpoint really is, and what to do, when its first bytes give it away."""
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; run `git lfs pull` in the checkpoint's folder"
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return f"it is a web page, not the file itself; {DOWNLOAD_AGAIN}"
    return None


def _not_found(file: Path, error: OSError) -> CheckpointNotFoundError:
    if error.errno == errno.ELOOP:
        return CheckpointNotFoundError(f"{file} is a link that leads in a circle; {DOWNLOAD_AGAIN}")
    if os.path.islink(file):
        return CheckpointNotFoundError(f"{file} is a link to {os.readlink(file)}, which is not there; {DOWNLOAD_AGAIN}")
    return CheckpointNotFoundError(f"no such file: {file}; {DOWNLOAD_AGAIN}")
